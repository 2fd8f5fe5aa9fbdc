"""Short runs: rows in a file, modules that are ready to step, and trainers that write next to nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.dpo import DPOModule
from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

LN2 = 0.6931471805599453


def write_pairs(path: Path, rows: int = 8, **changed: str) -> Path:
    """A file of pairs whose answers differ in length; `changed` columns replace those of the first row."""
    pairs = [
        {"prompt": f"What is {k} + 46?" * (1 + k % 3), "chosen": f"It is {k + 46}.", "rejected": "No" * k + "?"}
        for k in range(rows)
    ]
    pairs[0] |= changed
    path.write_text("\n".join(json.dumps(pair) for pair in pairs), encoding="utf-8")
    return path


def module(folder: Path, reference: Any = None, loss: Any = None, **policy: Any) -> DPOModule:
    """A module with a learning rate at which a tiny model moves; `policy` holds the options of `CausalLM`."""
    losses = {} if loss is None else {"loss": loss}
    return DPOModule(CausalLM(str(folder), **policy), reference=reference, learning_rate=1e-2, **losses)


def ready(folder: Path, reference: Any = None, **policy: Any) -> DPOModule:
    """A module as it is before its first step: weights loaded, reference bound."""
    made = module(folder, reference, **policy)
    made.configure_model()
    return made


def batch(made: DPOModule, file: Path, rows: int = 4) -> Any:
    """The first rows of a file as one batch."""
    data = PreferenceDataModule(train=str(file), batch_size=1, max_length=128)
    data.prepare("fit", made)
    return data.collator([(row, index) for index, row in enumerate(data.encoded["train"][:rows])])


def take_steps(made: DPOModule, pairs: Any, steps: int = 1) -> None:
    """Optimizer steps without a trainer."""
    optimizer = torch.optim.AdamW([value for value in made.policy.parameters() if value.requires_grad], 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        made.compare(pairs)[0].losses.mean().backward()
        optimizer.step()


def adapter_folder(base: Path, file: Path, folder: Path, steps: int = 2) -> Path:
    """A folder with an adapter of a few steps on the first rows of a file."""
    made = ready(base, lora=Lora(r=2))
    take_steps(made, batch(made, file), steps)
    folder.mkdir()
    save_model(made.policy, made.tokenizer, folder, str(base))
    return folder


def trainer(folder: Path, steps: int = 2, **options: Any) -> Trainer:
    """A trainer on one CPU without logs; it keeps `step=N.ckpt` of every step where checkpoints are on."""
    saved = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"enable_checkpointing": True, "devices": 1, "logger": False, "callbacks": []} | options
    if options["enable_checkpointing"]:
        options["callbacks"] = [*options["callbacks"], saved]
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def fit(made: DPOModule, file: Path, folder: Path, steps: int = 2, ckpt: Path | None = None, **options: Any) -> Trainer:
    """Train `steps` optimizer steps on the file's pairs, two at a time."""
    data = options.pop("data", None) or PreferenceDataModule(train=str(file), batch_size=2, max_length=128)
    runner = trainer(folder, steps, **options)
    runner.fit(made, datamodule=data, ckpt_path=ckpt and str(ckpt))
    return runner
