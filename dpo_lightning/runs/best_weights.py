"""The best weights of a run, by the metric that its `ModelCheckpoint` monitors, put back at the run's end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.runs.checkpoint_files import find_damage, read_manifest


class Best(NamedTuple):
    """The best weights.

    Attributes:
        step: the number of optimizer steps after which they were saved.
        monitor: the metric.
        score: its value then.
    """

    step: int
    monitor: str
    score: float

    def __str__(self) -> str:
        return f"of step {self.step}, the best {self.monitor} ({self.score:.4f})"


def find_monitor(trainer: Trainer) -> ModelCheckpoint:
    """Return the callback that chooses the best checkpoint: the first by a metric that saves whole checkpoints.

    Raises:
        UserError: 64, there is none.
    """
    choosing = [
        callback
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None and callback.save_top_k != 0
    ]
    whole = [callback for callback in choosing if not callback.save_weights_only]
    if whole:
        return whole[0]
    raise UserError(
        ExitCode.CONFIG,
        Problem("no callback chooses a best checkpoint", "final"),
        fix="leave save_weights_only of ModelCheckpoint out: a checkpoint without its run's state is not read"
        if choosing
        else "list a ModelCheckpoint under trainer.callbacks with monitor: eval/loss, or --final last",
    )


def restore_best(trainer: Trainer, module: Any) -> Best | None:
    """Put the best weights into the module; all ranks call this.

    Returns:
        None where the last weights stay: they are the best, or no whole checkpoint was chosen.
    """
    callback = find_monitor(trainer)
    path = str(trainer.strategy.broadcast(callback.best_model_path))
    reason = "none was chosen" if not path else find_damage(Path(path), read_manifest(Path(path).parent))
    if reason := trainer.strategy.broadcast(reason):
        found = f"{path} {reason}" if path else reason
        logger.warning(f"final model: the last weights, since of checkpoints by {callback.monitor} {found}")
        return None
    checkpoint = trainer.strategy.load_checkpoint(path)
    score = callback.best_model_score
    best = Best(int(checkpoint["global_step"]), str(callback.monitor), float("nan") if score is None else float(score))
    if best.step == trainer.global_step:
        logger.info(f"final model: the last weights, {best}")
        return None
    module.on_load_checkpoint(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint, strict=True)
    return best
