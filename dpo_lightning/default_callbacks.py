"""What every run has beside the callbacks and plugins of its config: progress lines, checkpoints, the final model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar

from dpo_lightning import callbacks as project_callbacks
from dpo_lightning.callbacks.first_step import FirstStep
from dpo_lightning.callbacks.stop_at_batches import StopAtBatches
from dpo_lightning.folder_names import CHECKPOINTS
from dpo_lightning.ranks import RankLimits
from dpo_lightning.runs.checkpoint_files import CheckpointFiles
from dpo_lightning.runs.fingerprint import check_fingerprint, take_fingerprint
from dpo_lightning.runs.resume import KEY


def add_default_callbacks(
    callbacks: list[Callback], folder: Path, command: str | None, trainer: Any, final: Any = None
) -> list[Callback]:
    """Add what every run has: progress lines, a checkpoint of the last step and the final model, or predictions.

    Args:
        callbacks: those of the config.
        folder: of the run.
        command: `fit`, `validate`, `test` or `predict`.
        trainer: the options of the trainer.
        final: the weights of the final model, `last` or `best`; None leaves it to the config's `FinalModel`.
    """
    callbacks.insert(0, RankLimits())
    if not any(isinstance(callback, project_callbacks.ProgressLog) for callback in callbacks):
        callbacks.insert(0, project_callbacks.ProgressLog())
    if trainer.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.insert(0, project_callbacks.StepBar())
    if command == "fit":
        checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        for callback in checkpoints:
            callback.dirpath = callback.dirpath or str(folder / CHECKPOINTS)
            write_out_metrics(callback)
        own = [callback for callback in callbacks if isinstance(callback, project_callbacks.RunCheckpoints)]
        if not own and trainer.get("enable_checkpointing") is not False:
            own = [project_callbacks.RunCheckpoints()]
        # They come first, as what other callbacks do at a batch's start belongs to the next step.
        others = [callback for callback in callbacks if callback not in own]
        callbacks[:] = [*own, *others, StopAtBatches(training=not own), FirstStep()]
        if not any(isinstance(callback, project_callbacks.FinalModel) for callback in callbacks):
            callbacks.append(project_callbacks.FinalModel())
        for each in callbacks:
            if isinstance(each, project_callbacks.FinalModel) and final is not None:
                each.weights = final
        return callbacks
    # Commands other than `fit` write nothing but predictions.
    kept = [c for c in callbacks if not isinstance(c, (ModelCheckpoint, project_callbacks.FinalModel))]
    kept += [StopAtBatches(), FirstStep()]
    return [*kept, project_callbacks.PredictionWriter()] if command == "predict" else kept


def add_checkpoint_files(plugins: Any) -> list[Any]:
    """Add the plugin that writes checkpoints, unless there is another one."""
    several = [] if plugins is None else plugins if isinstance(plugins, list) else [plugins]
    others = any(isinstance(plugin, CheckpointIO) for plugin in several)
    return several if others else [*several, CheckpointFiles()]


def describe_run(trainer: Any, module: Any, data: Any, before: Mapping[str, Any]) -> None:
    """Hand the run's fingerprint to its checkpoints, and refuse to continue one of another model, template or data.

    Args:
        trainer: the trainer.
        module: the module that is trained.
        data: its data module.
        before: the fingerprint in the checkpoint; empty without one.

    Raises:
        UserError: 64, with each difference.
    """
    now = take_fingerprint(module, data, trainer)
    for callback in trainer.callbacks:
        if isinstance(callback, project_callbacks.RunCheckpoints):
            callback.run = now
    if before:
        check_fingerprint(before, now, KEY)


def write_out_metrics(checkpoint: ModelCheckpoint) -> None:
    """Write metrics' names into a checkpoint's file name with `_` for `/`, of which Lightning would make folders."""
    if checkpoint.filename and checkpoint.auto_insert_metric_name:

        def insert_name(field: re.Match[str]) -> str:
            return f"{field[1].replace('/', '_')}{checkpoint.CHECKPOINT_EQUALS_CHAR}{field[0]}"

        checkpoint.filename = re.sub(r"\{(.*?)[:}]", insert_name, checkpoint.filename)
        checkpoint.auto_insert_metric_name = False
