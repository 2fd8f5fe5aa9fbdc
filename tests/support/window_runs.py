"""Runs of two epochs with accumulation windows, which save and record what they do in any hook."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint

from dpo_lightning.data.datamodules import PreferenceDataModule
from support import whole_runs

WINDOW, EPOCHS, STEPS = 3, 2, 4
CUTS = {"rows": {"batch_size": 2}, "tokens": {"max_tokens": 160}}
"""Five batches an epoch either way: a window of three and a last one of two."""

HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_start",
    "on_validation_end",
    "on_train_epoch_end",
)
"""Where a callback of a user's may save."""


class Everywhere(Callback):
    """Saves in every hook; `made` has each checkpoint with its hook and the evaluations before it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.evaluations = folder, 0
        self.made: list[tuple[Path, str, int]] = []

    def save(self, hook: str, trainer: Any, *_: Any, **__: Any) -> None:
        self.evaluations += hook == "on_validation_end"
        path = self.folder / f"{len(self.made):02d}-{hook}.ckpt"
        trainer.save_checkpoint(path)
        self.made.append((path, hook, self.evaluations))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for hook in HOOKS:
            setattr(self, hook, partial(self.save, hook))


class Order(Callback):
    """The batches, and where they were evaluated."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((trainer.current_epoch, batch_idx, batch.indices.tolist()))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(("evaluated", trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx))


def train(
    model: Any,
    folder: Path,
    ckpt: Path | None = None,
    callbacks: Any = (),
    cut: str = "rows",
    module: Any = None,
    **options: Any,
) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Weights after two epochs, evaluated after every second batch; and what was seen on the way."""
    folder.mkdir(exist_ok=True, parents=True)
    made = module or whole_runs.dpo(model)
    files = [
        whole_runs.write_rows(folder, name, whole_runs.preference_rows(n, i))
        for name, n, i in (("t", 10, 0), ("e", 3, 50))
    ]
    data, order = PreferenceDataModule(*files, max_length=64, **CUTS[cut]), Order()
    defaults: dict[str, Any] = {"max_epochs": EPOCHS, "accumulate_grad_batches": WINDOW, "val_check_interval": 2}
    defaults["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)
    whole_runs.fit(made, data, folder, ckpt, callbacks=[order, *callbacks], **{**defaults, **options})
    return whole_runs.weights(made), order.seen


def same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit."""
    return all(torch.equal(value, others[name]) for name, value in weights.items())


def parts(seen: list[Any]) -> tuple[list[Any], ...]:
    """The batches, and the places of evaluations."""
    return tuple([entry for entry in seen if (entry[0] == "evaluated") == wanted] for wanted in (False, True))
