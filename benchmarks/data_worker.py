"""One start of a run as far as its first batch, in a process of its own: with this package or with TRL.

`python -m benchmarks.data_worker SETTINGS`, settings as JSON. The process reports when libraries, tokenizer and a few
rows have been loaded, so that what follows is only the cost of the rows. With each line of standard input it goes one
stage further and reports again: rows to the first batch; then, here only, all rows read once.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.worker import report

BEGAN = time.perf_counter()

Stages = Iterator[dict[str, Any]]


def ours(settings: dict[str, Any], scratch: str) -> Stages:
    """`PreferenceDataModule`, as `fit` uses it."""
    from dpo_lightning import DPOModule, PreferenceDataModule
    from dpo_lightning.data.collate import PackedSharedPrefix
    from dpo_lightning.data.samplers import RowDataset
    from dpo_lightning.models.causal_lm import CausalLM

    module = DPOModule(CausalLM(settings["model"]))

    def start(rows: str, cache: str) -> PreferenceDataModule:
        data = PreferenceDataModule(
            train=rows, batch_size=settings["batch"], max_length=settings["max_length"], cache=cache
        )
        data.prepare("fit", module)
        collator = PackedSharedPrefix()
        order = data.order(data.encoded["train"], collator, shuffle=True, seed=0)
        collator(RowDataset(data.encoded["train"])[next(iter(order))])
        return data

    start(settings["few_rows"], f"{scratch}/few")
    yield {}
    data = start(settings["rows"], settings["cache"])
    rows = data.encoded["train"]
    yield {"rows": len(rows), "encoded": "train" in data.notes}
    tokens = sum(len(row.prompt_ids) + sum(len(answer.ids) for answer in row.answers) for row in rows)
    yield {"tokens": tokens}


def trl(settings: dict[str, Any], scratch: str) -> Stages:
    """`load_dataset`, and what `DPOTrainer` does with its result; its models have one layer, random weights."""
    from datasets import Dataset, load_dataset
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    def load(rows: str, cache: str) -> Any:
        return load_dataset("json", data_files=rows, split="train", cache_dir=cache)

    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    shape = AutoConfig.from_pretrained(settings["model"], num_hidden_layers=1)
    policy, reference = (AutoModelForCausalLM.from_config(shape) for _ in range(2))
    config = DPOConfig(
        output_dir=scratch,
        use_cpu=True,
        per_device_train_batch_size=settings["batch"],
        max_length=settings["max_length"],
        report_to=[],
    )
    few: Dataset = load(settings["few_rows"], f"{scratch}/few")
    trainer = DPOTrainer(policy, reference, args=config, train_dataset=few, processing_class=tokenizer)
    next(iter(trainer.get_train_dataloader()))
    yield {}
    rows = load(settings["rows"], settings["cache"])
    trainer.train_dataset = trainer._prepare_dataset(rows, tokenizer, config, "train")
    next(iter(trainer.get_train_dataloader()))
    yield {"rows": len(trainer.train_dataset)}


def read_status(name: str) -> float:
    """A line of `/proc/self/status` in MiB: `VmRSS`, the resident set, or `VmHWM`, its peak.

    The peak of `getrusage` is not used: Linux begins it with that of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Go through the stages, and report what each took."""
    settings = json.loads(sys.argv[1])
    os.dup2(2, 1)
    from dpo_lightning.config.library_noise import silence_libraries

    silence_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        wall, processor, base = BEGAN, 0.0, 0.0
        for found in {"ours": ours, "trl": trl}[settings["side"]](settings, scratch):
            found |= {"processor_seconds": time.process_time() - processor, "wall_seconds": time.perf_counter() - wall}
            report(**found, mib=read_status("VmHWM") - base)
            base = read_status("VmRSS")
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins again
            if not sys.stdin.readline():
                return
            wall, processor = time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
