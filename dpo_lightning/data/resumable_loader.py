"""Where training is within an epoch: kept in checkpoints, and taken up by the loader and by the trainer's count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from dpo_lightning.data.samplers import BatchOrder
from dpo_lightning.errors import ExitCode, Problem, UserError

KEY = "ckpt_path"
ACCUMULATION = "trainer.accumulate_grad_batches"


class TrainingLoader(DataLoader[Any]):
    """A loader that goes on from any optimizer step of an epoch.

    Its place is what was trained on, not what workers have prepared ahead. Going on is exact to the bit as long as
    nothing draws random numbers in a training step: the state of the generators that dropout draws from is not kept.
    """

    fit_loop: Any
    """The trainer's loop over epochs, by which the place is told."""

    def follow(self, fit_loop: Any, place: Mapping[str, int] | None) -> None:
        """Follow a trainer, from its checkpoint's place if it goes on from one."""
        self.fit_loop = fit_loop
        if not fit_loop.is_resuming:
            return
        if place:
            count_on(fit_loop, window_start(place, self.window))
        else:
            check_window(fit_loop.epoch_loop.batch_progress.state_dict(), self.window)

    def state_dict(self) -> dict[str, int]:
        """The place, at the first batch of an unfinished accumulation window, whose gradients are not kept.

        Weights and optimizer are the same anywhere in a window. A step's checkpoint is written before the trainer calls
        its batch completed.
        """
        loop = self.fit_loop.epoch_loop
        progress, evaluation, trained = loop.batch_progress, loop.val_loop.batch_progress, self.fit_loop.epoch_progress
        batches, begun = progress.current.processed, progress.current.ready
        evaluating = loop.trainer.validating and not (
            evaluation.is_last_batch and evaluation.current.completed == evaluation.current.ready
        )
        if trained.current.started < trained.current.ready:  # an epoch begins: the batches are the last one's
            batches = begun = 0
        state = self.order.state(batches, ended=bool(batches) and progress.is_last_batch and batches == begun)
        return {
            **state,
            "batches": state["batches"] - state["batches"] % self.window,
            "window": self.window,
            "evaluated": progress.current.completed - evaluating,
            "torn": int(loop.trainer.lightning_module.updating and batches < begun),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there; called by a trainer whose epoch is not over."""
        self.order.load_state(window_start(state, self.window))

    @property
    def order(self) -> BatchOrder:
        """The order of the batches."""
        assert isinstance(self.sampler, BatchOrder)
        return self.sampler

    @property
    def window(self) -> int:
        """Micro-batches of an optimizer step."""
        window: int = self.fit_loop.trainer.accumulate_grad_batches
        return window


def window_start(place: Mapping[str, int], window: int) -> dict[str, int]:
    """A place as its own window's first batch, also where an earlier version wrote another one.

    Raises:
        UserError: windows of this size do not begin there, or the weights were being updated.
    """
    check_whole(place)
    kept = place.get("window", window)
    if place["batches"] and kept != window:
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"accumulate_grad_batches is {window}, in the epoch of the checkpoint it was {kept}", ACCUMULATION),
            fix=f"--{ACCUMULATION} {kept}, or the checkpoint of an epoch's end",
        )
    return {**place, "batches": place["batches"] - place["batches"] % window}


def check_whole(place: Mapping[str, int]) -> None:
    """Refuse weights of which an optimizer step had changed a part, or which it had changed without being counted.

    Raises:
        UserError: that is so.
    """
    if place.get("torn"):
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem("the checkpoint was written while an optimizer step changed the weights", KEY),
            fix="give an earlier checkpoint, or start anew",
        )


def check_window(progress: Mapping[str, Any], window: int) -> None:
    """Refuse a checkpoint without a place that lies between two optimizer steps of an epoch.

    Args:
        progress: the trainer's count of batches, as a checkpoint has it.
        window: micro-batches of an optimizer step.

    Raises:
        UserError: that is so.
    """
    into = 0 if window == 1 or progress["is_last_batch"] else progress["current"]["processed"] % window
    if into:
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"the checkpoint lies {into} of {window} micro-batches into a step, without their gradients", KEY),
            fix="give the checkpoint of an epoch's end",
        )


def count_on(fit_loop: Any, place: Mapping[str, int]) -> None:
    """Make a restored trainer's count agree with the place.

    Lightning's own takes an epoch that `max_steps` ended for a whole one; it does not count the epoch that follows a
    checkpoint of an epoch's last batch, so that a checkpoint within it looks like its end; and with `max_steps` it goes
    on from an epoch's end by passing over the next epoch. It counts the batches of an unfinished window as well.
    """
    epochs, epoch, batches = fit_loop.epoch_progress, place["epoch"], place["batches"]
    if epochs.current.started > epoch:
        count_batches(fit_loop, place)
    if not batches and epochs.current.processed >= epoch:
        for count in (epochs.total, epochs.current):
            count.ready = count.started = count.processed = count.completed = epoch
        for loop in (fit_loop, fit_loop.epoch_loop):
            loop.on_iteration_done()  # nothing is left to restart
        return
    done = epoch - (not batches)  # an epoch's end that is not counted yet is counted when the loops are reset
    for count in (epochs.total, epochs.current):
        count.ready = count.started = done + 1
        count.processed = count.completed = done
    fit_loop.restarting = True


def count_batches(fit_loop: Any, place: Mapping[str, int]) -> None:
    """Take batches back that were begun behind the place; what they were evaluated after is not evaluated again."""
    progress, batches = fit_loop.epoch_loop.batch_progress, place["batches"]
    if progress.current.ready == batches:
        return
    earlier = progress.total.processed - progress.current.processed
    for count, value in ((progress.total, earlier + batches), (progress.current, batches)):
        count.ready = count.started = count.processed = count.completed = value
    progress.is_last_batch = False
    fit_loop.epoch_loop.val_loop.batch_progress.reset()
    fit_loop.trainer.lightning_module.evaluated = place.get("evaluated", batches)
