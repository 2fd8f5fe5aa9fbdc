"""`RunCheckpoints`: saves a run every few minutes and at its end, so that the same command continues it exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import distributed

from dpo_lightning import stopping
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import CHECKPOINTS
from dpo_lightning.log import logger
from dpo_lightning.optimizers import is_settled_later
from dpo_lightning.runs.checkpoint_files import LAST
from dpo_lightning.runs.epoch_ends import complete_epoch, is_epoch_end_due, run_evaluation
from dpo_lightning.runs.log_files import flush_logs
from dpo_lightning.runs.random_state import capture_random, gather, own, restore_random

MOST_SHARE = 0.01
"""The part of a run's time that saving may take; saves that take long are made less often."""


class RunCheckpoints(Callback):
    """Save the run between two optimizer steps, and stop it there when a signal or a time limit has come.

    A checkpoint is written into `checkpoints/last.ckpt`; the one before is kept as `previous.ckpt`. Beside what
    Lightning stores it holds the random state of all processes and whether an evaluation is still due, so that a
    resumed run is the same as one that was never stopped. All processes of a run save and stop after the same step.
    """

    def __init__(self, every_n_minutes: float = 5.0, every_n_steps: int | None = None) -> None:
        """Choose how often the run is saved. It is also saved at the end of training.

        Args:
            every_n_minutes: time between two checkpoints; longer where they take more than a hundredth of it.
            every_n_steps: optimizer steps between two checkpoints at most.
        """
        if not every_n_minutes > 0 or (every_n_steps is not None and every_n_steps < 1):
            name = "every_n_minutes" if not every_n_minutes > 0 else "every_n_steps"
            what = Problem("expected a positive number", f"trainer.callbacks.{name}")
            raise UserError(ExitCode.CONFIG, what, fix=f"{name}: 5, or leave it out")
        self.every_n_minutes, self.every_n_steps = every_n_minutes, every_n_steps
        self.run: Mapping[str, Any] = {}
        self._restored: Mapping[str, Any] | None = None
        self._ended: list[int | None] | None = None
        self._options: list[dict[str, Any]] = []
        self._window_start: dict[str, Any] = {}
        self._before_evaluation: dict[str, Any] | None = None
        self._saved_step, self._saved_at, self._least_seconds = 0, -math.inf, 0.0
        self._began, self._durations = 0.0, list[float]()
        self._epoch_logs: dict[str, int] = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training goes on."""
        self._restored = state_dict

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside Lightning's state.

        Returns:
            `random`, the state of every process's generators at the place from which the run goes on,
            `evaluation_due`, whether the evaluation after the last step has not ended, `epoch_end_due`, whether the
            hooks of an epoch's end follow, `metrics`, the values that callbacks can monitor, `should_stop`, whether a
            callback has ended training,
            `ended`, the limits of steps and epochs of a run that has ended by itself, else None,
            `epochs`, their number as Lightning counts them, `run`, the run's fingerprint, and `logs`, how far the
            files of the loggers are.
        """
        return {
            "random": gather(self._random()),
            "evaluation_due": self._evaluation_due(),
            "epoch_end_due": is_epoch_end_due(self._training),
            "metrics": dict(self._training.callback_metrics),
            "should_stop": self._training.should_stop,
            "ended": self._ended,
            "epochs": self._training.current_epoch,
            "run": self.run,
            "logs": self._epoch_logs if self._at_epoch_start() else self._flush_logs(),
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Within an evaluation, store the loops' progress of the moment before it."""
        if self._before_evaluation is not None:
            loops = checkpoint["loops"]["fit_loop"]
            for count in ("total", "current"):
                loops["epoch_loop.batch_progress"][count]["completed"] -= 1
                evaluated = loops["epoch_loop.val_loop.batch_progress"][count]
                evaluated |= dict.fromkeys(evaluated, evaluated["completed"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the trainer, whose place `state_dict` depends on."""
        self._training: Any = trainer

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the optimizers' options, before a checkpoint brings others; train no further than an ended run did."""
        self._options = [options for optimizer in trainer.optimizers for options in read_options(optimizer)]
        restored = self._restored
        if restored is not None and not restored.get("epoch_end_due"):
            trainer.should_stop |= is_over(restored, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what a checkpoint has brought, and evaluate if it was saved before a due evaluation had ended."""
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._began, self._durations = self._saved_at, []
        self._before_evaluation = self._ended = None
        if self._restored is None:
            return
        if trainer.global_step:
            self._check_options(trainer)
        trainer.callback_metrics.update(self._restored.get("metrics", {}))
        evaluate, epoch_end = self._restored["evaluation_due"], self._restored.get("epoch_end_due")
        if evaluate or epoch_end:
            restore_random(own(self._restored["random"], trainer.global_rank))
            if epoch_end:
                complete_epoch(trainer, evaluate=evaluate)
                trainer.should_stop |= is_over(self._restored, trainer)
            else:
                run_evaluation(trainer)
            self._restored = {**self._restored, "random": gather(capture_random())}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember how far the logs are: a run that goes on from the first step of an epoch begins the epoch again."""
        self._epoch_logs = self._flush_logs()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two optimizer steps: save if it is time, and stop if that was requested."""
        loop: Any = trainer.fit_loop.epoch_loop
        if self._restored is not None:
            # Not before: on the way to its first batch, a trainer draws random numbers and counts a step twice.
            restore_random(own(self._restored["random"], trainer.global_rank))
            loop._batches_that_stepped = trainer.global_step
            self._restored = None
        if batch_idx % trainer.accumulate_grad_batches:
            return
        if trainer.accumulate_grad_batches > 1:
            self._window_start = capture_random()
        stop, due = agree(trainer, stopping.requested(), self._is_due(trainer))
        if stop or due:
            self._save(trainer)
        if stop:
            end(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the random state before an evaluation within training, unless the run is to stop after it.

        That is an evaluation between two micro-batches of a step, and the one after the last step.
        """
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        within = progress.current.processed % trainer.accumulate_grad_batches and not progress.is_last_batch
        last = 0 < trainer.max_steps <= trainer.global_step
        if trainer.state.fn == "fit" and not (trainer.sanity_checking or within or last):
            self._before_evaluation = capture_random()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop within an evaluation, which a resumed run begins again; save the step before it."""
        if self._before_evaluation is not None and agree(trainer, stopping.requested())[0]:
            for callback in find_averages(trainer):
                callback.on_validation_epoch_end(trainer, pl_module)  # the trained weights are back in the model
            self._save(trainer)
            end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the random state before the evaluation."""
        self._before_evaluation = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        self._ended = read_limits(trainer)
        if trainer.global_step:
            self._saved_step = -1  # a checkpoint of this step that was written before does not say that the run ended
        self._save(trainer)
        self._report_cost()
        if agree(trainer, stopping.requested())[0]:
            end(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a run with nothing left to train as it was at its end: averaged weights, an epoch cut short counted."""
        if self._restored is not None:
            for callback in find_averages(trainer):
                callback.on_train_end(trainer, pl_module)
            trainer.fit_loop.epoch_progress.current.completed = self._restored["epochs"]

    def _at_epoch_start(self) -> bool:
        return self._training.training and not self._training.fit_loop.epoch_loop.batch_progress.current.processed

    def _flush_logs(self) -> dict[str, int]:
        trainer = self._training
        return flush_logs(trainer.loggers, Path(trainer.default_root_dir)) if trainer.is_global_zero else {}

    def _is_due(self, trainer: Trainer) -> bool:
        steps, seconds = trainer.global_step - self._saved_step, time.monotonic() - self._saved_at
        if not steps:
            return False
        if self.every_n_steps is not None and steps >= self.every_n_steps:
            return True
        return seconds >= max(self.every_n_minutes * 60, self._least_seconds)

    def _save(self, trainer: Trainer) -> None:
        """Write the checkpoint, unless one of this step has been written."""
        if trainer.global_step == self._saved_step:
            return
        began = time.monotonic()
        trainer.save_checkpoint(Path(trainer.default_root_dir) / CHECKPOINTS / LAST)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._durations.append(self._saved_at - began)
        self._least_seconds = self._durations[-1] / MOST_SHARE

    def _report_cost(self) -> None:
        """Log how many checkpoints were written, and the part of the time since training began that this took."""
        if self._durations:
            seconds, whole = sum(self._durations), time.monotonic() - self._began
            count = f"{len(self._durations)} checkpoint{'s' * (len(self._durations) > 1)}"
            logger.info(f"checkpoints: {count} in {seconds:.1f} s, {seconds / whole:.1%} of the time of training")

    def _random(self) -> dict[str, Any]:
        if self._before_evaluation is not None:
            return self._before_evaluation
        progress = self._training.fit_loop.epoch_loop.batch_progress
        within = progress.current.processed % self._training.accumulate_grad_batches
        return self._window_start if within and not progress.is_last_batch else capture_random()

    def _evaluation_due(self) -> bool:
        """Whether the evaluation after the last batch has not ended, or not even begun."""
        if self._before_evaluation is not None:
            return True
        loop = self._training.fit_loop.epoch_loop
        progress = loop.batch_progress.current
        counted = progress.completed == progress.processed  # a batch is counted after its callbacks
        return not counted and bool(loop._should_check_val_fx(self._training.fit_loop._data_fetcher))

    def _check_options(self, trainer: Trainer) -> None:
        """Refuse a checkpoint whose optimizer has other options than the config: Lightning would take them.

        Raises:
            UserError: 64, with each of them.
        """
        found = [options for optimizer in trainer.optimizers for options in read_options(optimizer)]
        changing = {"lr"} if trainer.lr_scheduler_configs else set()
        if any(getattr(each.scheduler, "cycle_momentum", False) for each in trainer.lr_scheduler_configs):
            changing |= {"betas", "momentum"}
        problems = [
            Problem(f"the checkpoint's optimizer has {name}={new!r}, the config has {name}={old[name]!r}")
            for old, all_new in zip(self._options, found, strict=True)
            for name, new in all_new.items()
            if name in old and new != old[name] and name not in changing and not is_settled_later(name, old)
        ]
        if problems:
            raise UserError(ExitCode.CONFIG, problems, fix="resume from a checkpoint of this config")


def agree(trainer: Trainer, *flags: bool) -> list[bool]:
    """Return for each flag whether it is set on any process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(flags)
    values = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
    distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def end(trainer: Trainer) -> NoReturn:
    """End the run on all processes, after a step that is saved.

    Raises:
        Stopped: always.
    """
    stopping.release_ranks()
    raise stopping.Stopped(f"step {trainer.global_step} is saved" if trainer.global_step else "")


def is_over(state: Mapping[str, Any], trainer: Trainer) -> bool:
    """Whether the run of a checkpoint has ended by itself, and its limits are still the same.

    Args:
        state: of `RunCheckpoints`.
        trainer: the trainer of this command.
    """
    ended = state["ended"]
    return bool(state.get("should_stop")) if ended is None else ended == read_limits(trainer)


def find_averages(trainer: Any) -> list[WeightAveraging]:
    """Return the callbacks that keep averages of the weights, and write them into the model for evaluations."""
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]


def read_limits(trainer: Trainer) -> list[int | None]:
    """Return the limits of steps and epochs by which training ends."""
    return [trainer.max_steps, trainer.max_epochs]


def read_options(optimizer: Any) -> list[dict[str, Any]]:
    """Return the options of each group of an optimizer's parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
