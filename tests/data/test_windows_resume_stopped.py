"""Runs that end within an accumulation window: what was saved by then gives the weights of a whole run."""

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from support import whole_runs
from support.window_runs import Everywhere, parts, same, train

from dpo_lightning.losses import BCOPairLoss


@pytest.fixture(scope="module")
def whole(tiny_llama, tmp_path_factory):
    """The weights of a run that is never stopped, and what it saw."""
    return {"rows": train(tiny_llama, tmp_path_factory.mktemp("whole"))}


class Failing(Callback):
    """An error in the n-th call of a hook."""

    def __init__(self, hook, call):
        self.left = call
        setattr(self, hook, self.fail)

    def fail(self, *_, **__):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("a failure of the test")


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("hook", ["on_before_backward", "on_train_batch_end", "on_validation_batch_end"])
def test_what_is_saved_on_an_error(hook, call, whole, tiny_llama, tmp_path):
    """Within a window, at its last batch and within an evaluation."""
    callbacks = [Failing(hook, call), OnExceptionCheckpoint(tmp_path)]
    with pytest.raises(RuntimeError, match="a failure of the test"):
        train(tiny_llama, tmp_path / "a", callbacks=callbacks)
    weights, _ = train(tiny_llama, tmp_path / "b", tmp_path / "on_exception.ckpt")
    assert same(weights, whole["rows"][0])


class Stop(Callback):
    """Ends training after a batch, as an early stop or a time limit does."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or trainer.fit_loop.total_batch_idx == self.batch


@pytest.mark.parametrize("batch", [0, 1, 3, 5, 6])
def test_a_run_that_ends_within_a_window_goes_on_from_its_start(batch, whole, tiny_llama, tmp_path):
    last = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    stopped = {"callbacks": [Stop(batch), last], "min_epochs": 0}
    train(tiny_llama, tmp_path / "a", **stopped)
    weights, _ = train(tiny_llama, tmp_path / "b", tmp_path / "last.ckpt")
    assert same(weights, whole["rows"][0])


def test_an_evaluation_counts_once_for_an_early_stop(tiny_llama, tmp_path):
    """Both runs stop at the same step, whichever evaluation the second one goes on from."""

    def stop():
        return EarlyStopping("eval/loss", patience=3, min_delta=10.0)

    saver = Everywhere(tmp_path)
    expected, seen = train(tiny_llama, tmp_path / "a", callbacks=[stop(), saver])
    assert len(parts(seen)[0]) < 2 * 5
    for path in [path for path, hook, _ in saver.made if hook == "on_validation_end"][:-1]:
        weights, again = train(tiny_llama, tmp_path / "b", path, callbacks=[stop()])
        assert same(weights, expected), path.name
        assert parts(again)[1] == parts(seen)[1][-len(parts(again)[1]) :]


def test_a_module_that_was_stopped_within_a_window_begins_it_anew(tiny_llama, tmp_path):
    """In one process: what the unfinished window had gathered, for its mean and the loss's, is not counted again."""
    expected, _ = train(tiny_llama, tmp_path / "a", module=whole_runs.dpo(tiny_llama, loss=BCOPairLoss()))
    made = whole_runs.dpo(tiny_llama, loss=BCOPairLoss())
    callbacks = [Failing("on_train_batch_end", 2), OnExceptionCheckpoint(tmp_path)]
    with pytest.raises(RuntimeError, match="a failure of the test"):
        train(tiny_llama, tmp_path / "b", callbacks=callbacks, module=made)
    weights, _ = train(tiny_llama, tmp_path / "c", tmp_path / "on_exception.ckpt", module=made)
    assert same(weights, expected)
