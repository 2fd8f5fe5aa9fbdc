"""QLoRA of a 13B-shaped model: peak memory against the estimate and a 24 GB card, and paged 8-bit AdamW."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import count_values, make_config, write_folder, write_pairs
from benchmarks.gpu.report import Report
from benchmarks.gpu.runs import make_trainer, record_losses
from benchmarks.gpu.scratch import scratch_folder

GIB = 2**30
CARD = 24.0
"""GiB of the card that the run is to fit."""

ACCUMULATED, PROMPT, ANSWER = 16, 512, 512
"""Pairs of an optimizer step, one at a time, and their tokens."""

ESTIMATE = 0.10
"""Largest error of the memory estimate, as a share of the peak."""


def measure(report: Report, device: str) -> None:
    """Train two optimizer steps."""
    import bitsandbytes as bnb

    shape = "toy" if report.toy else "13B"
    config = make_config(shape)
    with scratch_folder(2 * count_values(config)) as folder:
        model = write_folder(folder / "model", config, device, torch.bfloat16)
        prompt, answer = (PROMPT // 16, ANSWER // 16) if report.toy else (PROMPT, ANSWER)
        rows = folder / "rows.jsonl"
        write_pairs(rows, [(prompt, answer)], 2 * ACCUMULATED, config.vocab_size)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        optimizer = bnb.optim.PagedAdamW8bit if device == "cuda" else torch.optim.AdamW
        train(report, device, folder, model, rows, prompt + answer, optimizer)


def train(report: Report, device: str, folder: Path, model: Path, rows: Path, length: int, optimizer: Any) -> None:
    """Train two steps, and compare the peak of the memory with the estimate."""
    from dpo_lightning import DPOModule, PreferenceDataModule
    from dpo_lightning.models.causal_lm import CausalLM
    from dpo_lightning.models.lora import Lora
    from dpo_lightning.models.quantization import Quantization
    from dpo_lightning.runs.memory_estimate import MemoryEstimate

    policy = CausalLM(
        str(model), lora=Lora(r=16), quantization=Quantization(double_quant=True), gradient_checkpointing=True
    )
    module = DPOModule(policy, learning_rate=1e-4, optimizer=partial(optimizer))
    data = PreferenceDataModule(train=str(rows), batch_size=1, max_length=length)
    callback, losses = record_losses()
    name, precision = optimizer.__name__, "bf16-mixed"
    make_trainer(folder, device, precision, 2, callback, accumulate_grad_batches=ACCUMULATED).fit(module, data)
    report.at_most(f"QLoRA, {name}: starting loss less ln 2", abs(losses[0] - math.log(2)), 1e-6)
    report.add(f"QLoRA, {name}: last loss", losses[-1], "finite", math.isfinite(losses[-1]))
    estimate = MemoryEstimate(
        policy.under(precision), precision, name, "", sequences=2, max_length=length
    ).total() / GIB  # fmt: skip
    report.add("QLoRA: estimated memory, GiB", estimate)
    if device == "cuda":
        context = (torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()) / GIB
        peak = torch.cuda.max_memory_allocated() / GIB + context
        reserved = torch.cuda.max_memory_reserved() / GIB + context  # with what the allocator keeps between blocks
        report.add("QLoRA: peak memory of tensors and the context of the GPU, GiB", peak)
        report.at_most("QLoRA: peak memory that is reserved, GiB", reserved, CARD)
        report.at_most("QLoRA: error of the estimate", abs(estimate - peak) / peak, ESTIMATE)
