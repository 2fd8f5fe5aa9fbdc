"""Until its first step is over, what fails for values of a checkpoint is reported as that, and later as a bug."""

from types import SimpleNamespace

import pytest

from dpo_lightning.callbacks.first_step import FirstStep, values_reported
from dpo_lightning.errors import UserError


def begin():
    """A trainer that has begun to go on from a checkpoint."""
    first = FirstStep()
    trainer = SimpleNamespace(callbacks=[first], accumulate_grad_batches=2, state=SimpleNamespace(fn="fit"))
    first.setup(trainer, None, "fit")
    return first, trainer


@pytest.mark.parametrize("error", [TypeError("an integer\nis required"), KeyError("lr"), AttributeError("x")])
def test_before_the_first_step(error):
    _, trainer = begin()
    with pytest.raises(UserError, match="going on from the checkpoint failed before a step") as caught, \
            values_reported("x.ckpt", trainer):  # fmt: skip
        raise error
    assert caught.value.code == 66


def test_without_a_checkpoint_or_after_the_first_step():
    first, trainer = begin()
    with pytest.raises(KeyError), values_reported(None, trainer):
        raise KeyError
    first.on_train_batch_end(trainer, None, None, None, 0)
    assert not first.over
    first.on_train_batch_end(trainer, None, None, None, 1)
    with pytest.raises(KeyError), values_reported("x.ckpt", trainer):
        raise KeyError


def test_an_error_for_the_user_stays_one():
    _, trainer = begin()
    with pytest.raises(UserError, match="mine"), values_reported("x.ckpt", trainer):
        raise UserError(65, "mine")
