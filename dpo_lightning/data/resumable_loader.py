"""`TrainingLoader`: saves the position within an epoch in checkpoints, and resumes from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from dpo_lightning.data.samplers import BatchOrder
from dpo_lightning.errors import ExitCode, Problem, UserError

KEY = "ckpt_path"
ACCUMULATION = "trainer.accumulate_grad_batches"


class TrainingLoader(DataLoader[Any]):
    """A loader that can resume after any optimizer step of an epoch.

    Its place is the number of batches that were trained on, not of those that workers have prefetched. Random numbers
    that a step draws, such as those of dropout, are restored by `RunCheckpoints`.
    """

    fit_loop: Any
    """The trainer's loop over epochs, whose counters give the place."""

    begun_before: int | None = None
    """Batches that had begun when the trainer went on from an epoch's end, which is the place until another begins."""

    def follow(self, fit_loop: Any, place: Mapping[str, int] | None) -> None:
        """Read the place from a trainer's loop; if the trainer resumes, start from its checkpoint's `place`."""
        self.fit_loop = fit_loop
        if not fit_loop.is_resuming:
            return
        if place:
            restore_progress(fit_loop, resumed := self.translate(place))
            self.begun_before = None if resumed["batches"] else fit_loop.epoch_loop.batch_progress.total.ready
        else:
            check_window(fit_loop.epoch_loop.batch_progress.state_dict(), self.window)

    def state_dict(self) -> dict[str, int]:
        """The place; within an accumulation window, its first batch, since accumulated gradients are not saved.

        Weights and optimizer do not change within a window. Lightning writes a step's checkpoint before it counts the
        batch as completed.

        Returns:
            `epoch`, `batches` trained on in it, `order` (a checksum of its batches), `window` (batches per optimizer
            step), `evaluated` (batches whose evaluation, if any, is over), and `torn`: 1 if an optimizer step was
            changing the weights.
        """
        loop = self.fit_loop.epoch_loop
        progress, evaluation, trained = loop.batch_progress, loop.val_loop.batch_progress, self.fit_loop.epoch_progress
        batches, begun = progress.current.processed, progress.current.ready
        evaluating = loop.trainer.validating and not (
            evaluation.is_last_batch and evaluation.current.completed == evaluation.current.ready
        )
        if trained.current.started < trained.current.ready or progress.total.ready == self.begun_before:
            batches = begun = 0  # an epoch begins: the counts are still of the one before
        ended = bool(batches) and progress.is_last_batch and batches == begun
        return {
            **self.order.state(batches - batches % self.window, ended=ended),
            "window": self.window,
            "evaluated": progress.current.completed - evaluating,
            "torn": int(loop.trainer.lightning_module.updating and batches < begun),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from a place; Lightning calls this for a checkpoint within an epoch."""
        self.order.load_state(self.translate(state))

    def translate(self, place: Mapping[str, int]) -> dict[str, int]:
        """Return a place in the batches of this run, whose ranks may be others, if its steps have as many rows.

        Raises:
            UserError: they have not, or the checkpoint was written during an optimizer step.
        """
        place, now = window_start(place, self.window), self.order.rows_per_step
        if not place.get("rows") or not now:
            return place
        kept = place.get("window", self.window)
        if place["rows"] // place["batches"] * kept != now * self.window and kept != self.window:
            raise window_error(self.window, kept)
        batches = place["rows"] // now
        return place if batches == place["batches"] else {**place, "batches": batches, "evaluated": batches}

    @property
    def order(self) -> BatchOrder:
        """The sampler, which defines the order of the batches."""
        assert isinstance(self.sampler, BatchOrder)
        return self.sampler

    @property
    def window(self) -> int:
        """Number of micro-batches per optimizer step (`accumulate_grad_batches`)."""
        window: int = self.fit_loop.trainer.accumulate_grad_batches
        return window


def window_start(place: Mapping[str, int], window: int) -> dict[str, int]:
    """Move a place back to the first batch of its window; checkpoints of earlier versions may be within one.

    Raises:
        UserError: the windows had another size, or the checkpoint was written during an optimizer step.
    """
    check_complete(place)
    kept = place.get("window", window)
    if place["batches"] and kept != window and "rows" not in place:
        raise window_error(window, kept)
    return {**place, "batches": place["batches"] - place["batches"] % kept}


def window_error(window: int, kept: int) -> UserError:
    """Make the error for windows of another size than in the checkpoint's run."""
    return UserError(
        ExitCode.CONFIG,
        Problem(f"accumulate_grad_batches is {window}, but was {kept} in the checkpoint's epoch", ACCUMULATION),
        fix=f"--{ACCUMULATION} {kept}, or give the checkpoint of an epoch's end",
    )


def check_complete(place: Mapping[str, int]) -> None:
    """Refuse a checkpoint that was written during an optimizer step, when some weights had changed and others not.

    Raises:
        UserError: the place is marked `torn`.
    """
    if place.get("torn"):
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem("the checkpoint was written while an optimizer step changed the weights", KEY),
            fix="give an earlier checkpoint, or start anew",
        )


def check_window(progress: Mapping[str, Any], window: int) -> None:
    """Refuse a checkpoint that has no place and was saved within an accumulation window.

    Args:
        progress: the trainer's state of `batch_progress`, from the checkpoint.
        window: micro-batches per optimizer step.

    Raises:
        UserError: it was saved within a window, whose accumulated gradients are lost.
    """
    into = 0 if window == 1 or progress["is_last_batch"] else progress["current"]["processed"] % window
    if into:
        raise UserError(
            ExitCode.CONFIG,
            Problem(
                f"the checkpoint was saved after {into} of {window} micro-batches of a step, without gradients", KEY
            ),
            fix="give the checkpoint of an epoch's end",
        )


def restore_progress(fit_loop: Any, place: Mapping[str, int]) -> None:
    """Set a restored trainer's counters to the place.

    Works around four cases in which the counters that Lightning restores are wrong: (1) an epoch cut short by
    `max_steps` counts as finished; (2) after a checkpoint at an epoch's last batch, the next epoch is not counted, so
    that a checkpoint within it looks like its end; (3) with `max_steps`, resuming at an epoch's end skips the next
    epoch; (4) the batches of an unfinished accumulation window are counted.
    """
    epochs, epoch, batches = fit_loop.epoch_progress, place["epoch"], place["batches"]
    if epochs.current.started > epoch:
        roll_back_batches(fit_loop, place)
    if not batches and epochs.current.processed >= epoch:
        for count in (epochs.total, epochs.current):
            count.ready = count.started = count.processed = count.completed = epoch
        for loop in (fit_loop, fit_loop.epoch_loop):
            loop.on_iteration_done()  # clears the restart flags: the next epoch starts anew
        return
    done = epoch - (not batches)  # an epoch's end that is not counted yet is counted when the loops are reset
    for count in (epochs.total, epochs.current):
        count.ready = count.started = done + 1
        count.processed = count.completed = done
    fit_loop.restarting = True


def roll_back_batches(fit_loop: Any, place: Mapping[str, int]) -> None:
    """Uncount the batches after the place; an evaluation that already ran before it is not repeated."""
    progress, batches = fit_loop.epoch_loop.batch_progress, place["batches"]
    if progress.current.ready == batches:
        return
    earlier = progress.total.processed - progress.current.processed
    for count, value in ((progress.total, earlier + batches), (progress.current, batches)):
        count.ready = count.started = count.processed = count.completed = value
    progress.is_last_batch = False
    fit_loop.epoch_loop.val_loop.batch_progress.reset()
    fit_loop.trainer.lightning_module.evaluated = place.get("evaluated", batches)
