"""Where training is within an epoch: kept in checkpoints, and taken up by the loader and by the trainer's count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from dpo_lightning.data.batching import BatchOrder


class TrainingLoader(DataLoader[Any]):
    """A loader that goes on from any batch of an epoch.

    Its place is what was trained on, not what workers have prepared ahead. Going on is exact to the bit as long as
    nothing draws random numbers in a training step: the state of the generators that dropout draws from is not kept.
    """

    fit_loop: Any
    """The trainer's loop over epochs, by which the place is told."""

    def follow(self, fit_loop: Any, place: Mapping[str, int] | None) -> None:
        """Follow a trainer, from its checkpoint's place if it goes on from one."""
        self.fit_loop = fit_loop
        if place and fit_loop.is_resuming:
            count_on(fit_loop, place)

    def state_dict(self) -> dict[str, int]:
        """The place; a step's checkpoint is written before the trainer calls its batch completed."""
        progress = self.fit_loop.epoch_loop.batch_progress
        batches = progress.current.processed
        return self.order.state(batches, ended=progress.is_last_batch and batches == progress.current.ready)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there; called by a trainer whose epoch is not over."""
        self.order.load_state(state)

    @property
    def order(self) -> BatchOrder:
        """The order of the batches."""
        assert isinstance(self.sampler, BatchOrder)
        return self.sampler


def count_on(fit_loop: Any, place: Mapping[str, int]) -> None:
    """Make a restored trainer's count agree with the place.

    Lightning's own takes an epoch that `max_steps` ended for a whole one; it does not count the epoch that follows a
    checkpoint of an epoch's last batch, so that a checkpoint within it looks like its end; and with `max_steps` it goes
    on from an epoch's end by passing over the next epoch.
    """
    epochs, ended = fit_loop.epoch_progress, not place["batches"]
    if ended and epochs.current.processed == place["epoch"]:
        for loop in (fit_loop, fit_loop.epoch_loop):
            loop.on_iteration_done()  # nothing is left to restart
        return
    done = place["epoch"] - ended  # an epoch's end that is not counted yet is counted when the loops are reset
    for count in (epochs.total, epochs.current):
        count.ready = count.started = done + 1
        count.processed = count.completed = done
    fit_loop.restarting = True
