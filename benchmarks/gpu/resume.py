"""Resuming, export and generation: bit-identical, or how far off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.models import make_config, write_folder
from benchmarks.gpu.report import Report
from benchmarks.gpu.runs import make_run, make_trainer, write_rows
from benchmarks.gpu.scratch import scratch_folder

STEPS, SAVED = 8, 4
"""Optimizer steps of a run, and those before its checkpoint."""

NOISE = 10
"""How many times further from a run than its repetition a resumed run may be."""

ROUNDING = 1e-7
"""Largest difference on a GPU whose repetitions are identical; on a CPU there is none."""

POLICIES: dict[str, dict[str, Any]] = {"all weights": {}, "LoRA": {"r": 8}}


def measure(report: Report, device: str) -> None:
    """Compare a run with one that resumed, its final model with its policy, and two generations."""
    with scratch_folder() as folder:
        model = write_folder(folder / "model", make_config("toy"), "cpu")
        rows = write_rows(folder / "rows.jsonl", "pairs")
        for name, lora in POLICIES.items():
            for precision in ("32-true", "bf16-mixed"):
                with report.attempt(f"resume, {name}, {precision}"):
                    compare_resumed(report, device, folder / f"{name}-{precision}", model, rows, name, lora, precision)
        with report.attempt("export"):
            compare_export(report, device, folder, model, rows)
        with report.attempt("generation"):
            compare_generation(report, device, model)


def make_policy(lora: dict[str, Any]) -> dict[str, Any]:
    """Make the options of `CausalLM`."""
    from dpo_lightning.models.lora import Lora

    return {"lora": Lora(**lora)} if lora else {}


def compare_resumed(
    report: Report, device: str, folder: Path, model: Path, rows: Path, name: str, lora: dict[str, Any], precision: str
) -> None:
    """Train twice in one go, and once more from the checkpoint in the middle: largest difference of a weight."""
    from lightning.pytorch import seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint

    def train(place: str, checkpoint: Path | None = None) -> dict[str, Tensor]:
        seed_everything(0, verbose=False)
        module, data = make_run("pairs", model, rows, **make_policy(lora))
        saved = ModelCheckpoint(folder / place, "{step}", every_n_train_steps=SAVED, save_top_k=-1)
        trainer = make_trainer(folder, device, precision, STEPS, saved, enable_checkpointing=True)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint and str(checkpoint), weights_only=False)
        trained = {key: value for key, value in module.policy.named_parameters() if value.requires_grad}
        return {key: value.detach().double().cpu() for key, value in trained.items()}

    whole, again = train("whole"), train("again")
    resumed = train("resumed", folder / "whole" / f"step={SAVED}.ckpt")
    noise, apart = (
        max(float((value - other[key]).abs().max()) for key, value in whole.items()) for other in (again, resumed)
    )
    report.add(f"{name}, {precision}: the same run again, largest difference of a weight", noise)
    # On a GPU, gradients may be summed in any order: what a repeated run differs by is no fault of resuming.
    limit = 0.0 if device == "cpu" else max(NOISE * noise, ROUNDING)
    report.at_most(f"{name}, {precision}: resumed from the middle", apart, limit)


def compare_export(report: Report, device: str, folder: Path, model: Path, rows: Path) -> None:
    """Train an adapter, merge it, and compare logits of plain transformers with those of the policy."""
    from transformers import AutoModelForCausalLM

    from dpo_lightning.__main__ import main
    from dpo_lightning.models.causal_lm import save_model

    module, data = make_run("pairs", model, rows, **make_policy(POLICIES["LoRA"]))
    make_trainer(folder, device, "32-true", STEPS).fit(module, datamodule=data)
    policy = module.policy.to(device).eval()
    save_model(policy, module.tokenizer, folder / "adapter", str(model))
    code = main(["export", "--model", str(folder / "adapter"), "--out", str(folder / "merged")])
    report.add("export: exit status", code, "0", code == 0)
    ids = torch.randint(2, 500, (1, 64), generator=torch.Generator().manual_seed(0)).to(device)
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged").to(device).eval()
    with torch.no_grad():
        expected, found = (part(input_ids=ids).logits.double() for part in (policy, merged))
    report.at_most("export: merged against adapter, relative", float((found - expected).norm() / expected.norm()), 1e-4)


def compare_generation(report: Report, device: str, model: Path) -> None:
    """Draw the same answer twice by the same seed."""
    from dpo_lightning.models.causal_lm import CausalLM
    from dpo_lightning.models.generation import answer
    from dpo_lightning.sampling import Sampling

    spec = CausalLM(str(model))
    built, tokenizer = spec.build().to(device).eval(), spec.tokenizer()
    drawn = [answer(built, tokenizer, [[5, 6, 7]], Sampling(32, temperature=1.0, seed=3), frozenset([0])) for _ in "ab"]
    report.add("generation: the same answer by the same seed", drawn[0] == drawn[1], "True", drawn[0] == drawn[1])
