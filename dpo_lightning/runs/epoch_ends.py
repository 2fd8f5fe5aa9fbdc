"""What Lightning leaves out of a run that goes on from a checkpoint at an epoch's end: its evaluation and its hooks."""

from __future__ import annotations

from typing import Any


def is_epoch_end_due(trainer: Any) -> bool:
    """Whether all batches of an epoch are trained and the hooks of its end have not begun, as in its evaluation."""
    epochs, batches = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress
    ended = batches.is_last_batch and 0 < batches.current.ready == batches.current.processed
    return bool(ended and epochs.processed < epochs.started)


def run_evaluation(trainer: Any) -> None:
    """Evaluate as Lightning does after a batch."""
    loop = trainer.fit_loop.epoch_loop
    counted, first = loop._batches_that_stepped, trainer._logger_connector._first_loop_iter
    loop._batches_that_stepped = trainer.global_step - 1  # where Lightning logs the evaluation after a step
    trainer.validating = True
    loop.val_loop.restarting = False  # from its first batch on
    loop.val_loop.run()
    trainer.training = True
    loop._batches_that_stepped, trainer._logger_connector._first_loop_iter = counted, first


def complete_epoch(trainer: Any, *, evaluate: bool) -> None:
    """Evaluate and call the hooks of an epoch's end, before the next epoch begins.

    A trainer that goes on there counts the epoch as ended, and begins the next one without its first hooks.

    Args:
        trainer: at the start of training, with the progress of a checkpoint for which `is_epoch_end_due` was true.
        evaluate: whether the epoch ends with an evaluation.
    """
    loop = trainer.fit_loop
    epochs, batches = loop.epoch_progress, loop.epoch_loop.batch_progress
    for count in (epochs.total, epochs.current):
        count.processed = count.completed = count.started - 1
    for count in (batches.total, batches.current):
        count.completed = count.processed
    loop.restarting = False
    if evaluate:
        run_evaluation(trainer)
    loop.epoch_loop._batches_that_stepped = trainer.global_step
    loop.on_advance_end()
    for each in (loop, loop.epoch_loop):
        each.on_iteration_done()  # clears the restart flags: the next epoch begins as any other
