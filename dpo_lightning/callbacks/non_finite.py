"""`NonFinite`: a loss or gradient that is NaN or infinite stops the run before it reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer

from dpo_lightning.errors import MAX_SHOWN, ExitCode, Problem, UserError
from dpo_lightning.folder_names import CHECKPOINTS
from dpo_lightning.log import logger
from dpo_lightning.runs.checkpoint_files import LAST
from dpo_lightning.sharding import local_gradients

SCALED_STEPS = 40
"""Steps in a row with non-finite gradients after which fp16 training has diverged. Each halves the factor of the
losses, which starts at 2**16; gradients that do not fit at 2**-24 do not fit at all.
"""

STEADIER = "a smaller --model.learning_rate, a larger --model.loss.beta, or --trainer.gradient_clip_val 1"
"""The remedy for weights that diverge."""


class NonFinite(Callback):
    """Stop with exit code 76 where a step's loss or gradients are NaN or infinite, or drop up to `skip` steps in a row.

    It runs before each optimizer step, and all ranks come to the same decision, so that weights, the state of the
    optimizer and checkpoints stay finite. The error names the rows. In fp16, whose gradients overflow now and then
    until their scaling fits, only the loss is checked, and 40 overflows in a row.
    """

    def __init__(self, skip: int = 0) -> None:
        """Choose what happens to such a step.

        Args:
            skip: how many steps in a row are dropped, with a warning each, before the run stops. A dropped step
                changes neither weights nor the state of the optimizer; the learning rate's schedule goes on.
        """
        if skip < 0:
            raise UserError(
                ExitCode.CONFIG, Problem("skip is less than 0", "NonFinite.skip", str(skip)), fix="0 or more"
            )
        self.skip = skip
        self.dropped = 0
        """Number of steps that were dropped."""
        self.gradient_norm = math.nan
        """Norm of the gradient of the last step's mean loss over all parameters and ranks, before it is clipped."""
        self._in_a_row = self._overflows = 0
        self._window: list[tuple[Tensor, Tensor]] = []
        self._losses: list[Tensor] = []
        self._indices = torch.empty(0)

    def state_dict(self) -> dict[str, int]:
        """Return how many steps were dropped, in all and in a row, and how many in a row have overflown."""
        return {"dropped": self.dropped, "in_a_row": self._in_a_row, "overflows": self._overflows}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.dropped, self._in_a_row = state_dict["dropped"], state_dict["in_a_row"]
        self._overflows = state_dict["overflows"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin with an empty accumulation window."""
        self._window, self._losses = [], []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember the rows of the micro-batch."""
        self._indices = batch.indices

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        """Remember the losses of the micro-batch."""
        self._losses.append(loss.detach())
        self._window.append((self._indices, pl_module.row_losses))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Check the losses of the accumulation window and the norm of the gradients.

        Raises:
            UserError: 76, one of them is not finite, and the step is not one to drop.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        norm = gradient_norm(pl_module.policy.parameters(), self._losses[0])
        finite = [torch.stack(self._losses).isfinite().all(), norm.isfinite()]
        weight = pl_module.window_weight.to(norm.device)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            weight = scaler.scale(weight)  # a fused optimizer unscales the gradients itself, later
        own = torch.stack([*finite, norm.square(), weight]).float()
        # Over all ranks; the host waits here, once for each optimizer step.
        losses, norms, squares, total = trainer.strategy.reduce(own, reduce_op="sum").tolist()
        lost, overflown = losses < trainer.world_size, norms < trainer.world_size
        copies = 1 if pl_module.mesh is not None else trainer.world_size  # each rank has all gradients, or a part
        self.gradient_norm = math.sqrt(squares / copies) / (total or 1.0)
        window, self._window, self._losses = self._window, [], []
        self._overflows = self._overflows + 1 if overflown else 0
        if not lost and (not overflown or (scaler is not None and self._overflows < SCALED_STEPS)):
            self._in_a_row = 0
            return
        rows, whole = self._find_rows(trainer, window)
        if self._in_a_row >= self.skip:
            raise diverged_error(trainer, rows, "loss" if lost else "gradient norm", all_rows=whole)
        self._in_a_row += 1
        self.dropped += 1
        pl_module.drop_step()
        if scaler is None:  # a scaler leaves the step out itself, and looks at the gradients for it
            for parameter in pl_module.policy.parameters():
                parameter.grad = None
        what = "loss" if lost else "gradient"
        logger.warning(
            f"step {trainer.global_step + 1} is dropped ({self.dropped} so far): its {what} is NaN or infinite "
            f"for {'all of its' if whole else 'these'} rows: {join_rows(rows)}"
        )

    @staticmethod
    def _find_rows(trainer: Trainer, window: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[str], bool]:
        """Return the origins of the rows whose loss is not finite, on all ranks, and whether there are no other rows.

        Where each row's loss is finite, the rows of the whole step are returned.
        """
        found = [find_rows(window)]
        if trainer.world_size > 1:
            found = [([], []) for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(found, find_rows(window))
        bad = sorted({index for indices, _ in found for index in indices})
        every = sorted({index for _, indices in found for index in indices})
        return name_rows(trainer, "train", bad or every), bad in ([], every)


def gradient_norm(parameters: Iterable[Tensor], like: Tensor) -> Tensor:
    """Return the norm of all gradients, or of this rank's part, in float32; 0 on `like`'s device if there are none."""
    gradients = local_gradients(parameters)
    if not gradients:
        return torch.zeros((), device=like.device)
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    return torch.stack(list(norms)).norm()


def find_rows(window: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[int], list[int]]:
    """Return the indices of the rows whose loss is not finite, and those of all rows.

    Args:
        window: for each batch, the index and the loss of each of its rows; -1 for a row that counts nowhere.
    """
    rows = [
        (index, loss)
        for indices, losses in window
        for index, loss in zip(indices.tolist(), losses.tolist(), strict=True)
        if index >= 0
    ]
    return [index for index, loss in rows if not math.isfinite(loss)], [index for index, _ in rows]


def name_rows(trainer: Trainer, name: str, indices: Iterable[int]) -> list[str]:
    """Return `file:line` of rows of a part of the data, or their numbers where no data module of ours knows them."""
    encoded = getattr(getattr(trainer, "datamodule", None), "encoded", {}).get(name)
    return [f"row {index}" if encoded is None else str(encoded[index].origin) for index in indices]


def diverged_error(trainer: Trainer, rows: Sequence[str], what: str, *, all_rows: bool) -> UserError:
    """Make the error for a step whose loss or gradients are not finite.

    Args:
        trainer: the trainer, before the step is taken.
        rows: `file:line` of the rows whose loss is not finite, or of all rows of the step.
        what: the number that is not finite.
        all_rows: whether the step has no other rows, so that the weights are the cause and not a row.
    """
    step = trainer.global_step + 1
    if not all_rows:
        fix = "look at these rows and leave them out, or drop such steps: --trainer.callbacks+=NonFinite "
        fix += "--trainer.callbacks.skip 1"
    elif trainer.global_step == 0:
        fix = "--trainer.precision 32-true, or another model: the weights are still those of the model's folder"
    else:
        fix = STEADIER
    kept = newest_checkpoint(trainer)
    fix += f"; the newest checkpoint is {kept}" if kept else "; there is no checkpoint yet"
    if all_rows:
        problems = [Problem(f"the {what} of step {step} is NaN or infinite; its rows are", join_rows(rows))]
    else:
        problems = [Problem(f"the loss of this row is NaN or infinite in step {step}", row) for row in rows]
    return UserError(ExitCode.DIVERGED, problems, fix=fix)


def join_rows(rows: Sequence[str]) -> str:
    """Join the origins of the first rows, and count the others."""
    more = f" and {len(rows) - MAX_SHOWN} more" if len(rows) > MAX_SHOWN else ""
    return ", ".join(rows[:MAX_SHOWN]) + more


def newest_checkpoint(trainer: Trainer) -> str:
    """Return the path of the run's newest checkpoint; empty without one."""
    paths = [Path(trainer.default_root_dir, CHECKPOINTS, LAST)]
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            paths += [Path(path) for path in (callback.last_model_path, callback.best_model_path) if path]
    there = [path for path in paths if path.is_file()]
    return str(max(there, key=lambda path: path.stat().st_mtime_ns, default=""))
