"""`StopAtBatches`: ends a command between stages and batches after a signal or at a time limit, on all ranks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn

from dpo_lightning.stopping import raise_if_any


class StopAtBatches(Callback):
    """Stop where nothing has to be saved: before the first step, and between the batches of an evaluation command.

    Within `fit`, training and its validations end at steps, where `RunCheckpoints` saves them.
    """

    def __init__(self, *, training: bool = False) -> None:
        """Choose where a run stops.

        Args:
            training: stop between training batches too, in a run that saves no checkpoints.
        """
        self.training = training

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stop before the model is loaded, or before the evaluation of a model that `fit` has trained and saved."""
        raise_if_any(trainer.strategy, saved(trainer))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop before the first step, once everything is loaded."""
        raise_if_any(trainer.strategy)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Stop before a batch, where nothing is saved."""
        if self.training:
            raise_if_any(trainer.strategy)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        """Stop before a batch of `validate`, or of the evaluation of a model that `fit` has trained and saved."""
        if trainer.state.fn != TrainerFn.FITTING:
            raise_if_any(trainer.strategy, saved(trainer))
        elif self.training:
            raise_if_any(trainer.strategy)

    def on_test_batch_start(self, trainer: Any, *_: Any) -> None:
        """Stop before a batch of `test`."""
        raise_if_any(trainer.strategy)

    def on_predict_batch_start(self, trainer: Any, *_: Any) -> None:
        """Stop before a batch of `predict`."""
        raise_if_any(trainer.strategy)


def saved(trainer: Any) -> str:
    """What a command that stops outside of training has saved."""
    return "the trained model is saved" if trainer.global_step else ""
