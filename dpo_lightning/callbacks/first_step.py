"""`FirstStep`: until a command has trained a step or evaluated a batch, what fails may be due to its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from dpo_lightning.config.library_errors import translate_error
from dpo_lightning.errors import excerpt
from dpo_lightning.runs.resume import checkpoint_error

WRONG_VALUES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What values of other types, sizes and names lead to, in Lightning, in torch and here."""


class FirstStep(Callback):
    """Notes when the first step of a command, or its first batch of an evaluation, is over.

    Attributes:
        over: whether it is, or the trainer has not begun yet.
    """

    def __init__(self) -> None:
        self.over, self._begun = True, False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Note that the trainer begins; it restores its checkpoint next. `fit` evaluates by another call."""
        self.over, self._begun = self._begun, True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note a step of the optimizer."""
        self.over |= (batch_idx + 1) % trainer.accumulate_grad_batches == 0

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        """Note a batch of `validate`; in `fit`, it may be one before the first step."""
        self.over |= trainer.state.fn != "fit"

    def on_test_batch_end(self, *_: Any) -> None:
        """Note a batch."""
        self.over = True

    def on_predict_batch_end(self, *_: Any) -> None:
        """Note a batch."""
        self.over = True


@contextmanager
def values_reported(checkpoint: str | None, trainer: Any = None) -> Iterator[None]:
    """Report errors as those of a checkpoint, whose values may have types and sizes that no version of this writes.

    Args:
        checkpoint: the file; None where a run does not go on from one.
        trainer: the trainer, once there is one; after its first step, errors are none of the checkpoint's.

    Raises:
        UserError: 66, in place of the error.
    """
    try:
        yield
    except WRONG_VALUES as error:
        first = [callback for callback in getattr(trainer, "callbacks", ()) if isinstance(callback, FirstStep)]
        if not checkpoint or any(callback.over for callback in first) or translate_error(error) is not None:
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        what = f"going on from the checkpoint failed before a step was trained ({excerpt(reason)})"
        raise checkpoint_error(what, Path(checkpoint)) from error
