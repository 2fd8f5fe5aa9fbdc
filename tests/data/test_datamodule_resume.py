"""Going on from any step: the same batches in the same order, and weights that are equal to the bit."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from support import whole_runs

from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.errors import UserError

CUTS = {"rows": {"batch_size": 2}, "tokens": {"max_tokens": 160}}
EPOCHS, ROWS, PER_EPOCH = 2, 10, 3
"""Five batches an epoch, two a step."""


class Seen(Callback):
    """The rows of each training batch, and the epochs that began."""

    def __init__(self):
        self.batches, self.epochs = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch.indices.tolist())


def train(model, folder, cut, ckpt=None, rows=ROWS, seen=None, num_workers=0, **options):
    """Weights after training on a few rows, evaluated after every two batches; `folder` gets `step=N` and `last`."""
    folder.mkdir(exist_ok=True)
    made = whole_runs.dpo(model)
    files = [
        whole_runs.write_rows(folder, name, whole_runs.preference_rows(n, i))
        for name, n, i in (("t", rows, 0), ("e", 3, 50))
    ]
    data = PreferenceDataModule(*files, max_length=64, num_workers=num_workers, **CUTS[cut])
    callbacks = [
        seen or Seen(),
        ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder, save_last=True, save_top_k=0),
    ]
    defaults = {"max_epochs": EPOCHS, "accumulate_grad_batches": 2, "val_check_interval": 2}
    options = {**defaults, "callbacks": callbacks, "enable_checkpointing": True, **options}
    whole_runs.fit(made, data, folder, ckpt, **options)
    return whole_runs.weights(made)


class Whole:
    """An uninterrupted run of each kind."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.seen = model, {cut: Seen() for cut in CUTS}
        self.folders = {cut: folder / cut for cut in CUTS}
        self.weights = {cut: train(model, self.folders[cut], cut, seen=self.seen[cut]) for cut in CUTS}

    def check(self, cut, ckpt, folder, step, **options):
        """Go on, and compare what was seen and what came out."""
        seen = Seen()
        weights = train(self.model, folder, cut, ckpt, seen=seen, **options)
        batches = self.seen[cut].batches
        per_epoch = len(batches) // EPOCHS
        done = step // PER_EPOCH * per_epoch + min(2 * (step % PER_EPOCH), per_epoch)
        assert seen.batches == batches[done:]
        for name, value in self.weights[cut].items():
            assert torch.equal(weights[name], value), name


@pytest.fixture(scope="module")
def whole(tiny_llama, tmp_path_factory):
    """Uninterrupted runs."""
    made = Whole(tiny_llama, tmp_path_factory.mktemp("whole"))
    for seen in made.seen.values():
        assert len(seen.batches) == 2 * 5
        assert len({len(batch) for batch in seen.batches}) == (3 if seen is made.seen["tokens"] else 1)
        first, second = seen.batches[:5], seen.batches[5:]
        for batches in (first, second):
            assert sorted(row for batch in batches for row in batch) == list(range(ROWS))
        assert first != second
    return made


@pytest.mark.parametrize("step", range(1, EPOCHS * PER_EPOCH + 1))
@pytest.mark.parametrize("cut", CUTS)
def test_every_step_is_a_place_to_go_on_from(cut, step, whole, tmp_path):
    whole.check(cut, whole.folders[cut] / f"step={step}.ckpt", tmp_path, step)


@pytest.mark.parametrize("step", [2, 3])
def test_what_workers_have_prepared_is_not_counted(step, whole, tmp_path):
    """In the middle of an epoch and at its end, where the worker begins before the epoch is told."""
    whole.check("tokens", whole.folders["tokens"] / f"step={step}.ckpt", tmp_path, step, num_workers=1)


def test_an_epochs_own_checkpoint_goes_on_with_a_worker(whole, tmp_path):
    """It is written after the epoch was counted: lightning then hands no place to the loader."""
    train(whole.model, tmp_path / "a", "rows", max_epochs=1)
    whole.check("rows", tmp_path / "a" / "last.ckpt", tmp_path / "b", PER_EPOCH, num_workers=1)


@pytest.mark.parametrize("cap", [-1, EPOCHS * PER_EPOCH])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_that_max_steps_ended_goes_on_in_its_epoch(step, cap, whole, tmp_path):
    """Lightning takes the epoch for a whole one; with `max_steps` it would also pass over the one after a whole one."""
    train(whole.model, tmp_path / "a", "rows", max_steps=step)
    whole.check("rows", tmp_path / "a" / "last.ckpt", tmp_path / "b", step, max_steps=cap)


@pytest.mark.parametrize("again", [4, 5, 6])
def test_going_on_a_second_time(again, whole, tmp_path):
    """From the end of an epoch, whose count lightning leaves behind, and then from each step of the next."""
    whole.check("rows", whole.folders["rows"] / "step=3.ckpt", tmp_path / "a", 3)
    whole.check("rows", tmp_path / "a" / f"step={again}.ckpt", tmp_path / "b", again)


def test_an_epoch_that_begins_is_told_to_callbacks(whole, tmp_path):
    train(whole.model, tmp_path / "a", "rows", max_epochs=1)
    for cap in (-1, EPOCHS * PER_EPOCH):
        seen = Seen()
        train(whole.model, tmp_path / str(cap), "rows", tmp_path / "a" / "last.ckpt", seen=seen, max_steps=cap)
        assert seen.epochs == [1]


def test_other_rows_are_not_taken_up_in_the_middle(whole, tmp_path):
    with pytest.raises(UserError, match=r"and this run.s batches differ from its at ckpt_path"):
        train(whole.model, tmp_path, "rows", whole.folders["rows"] / "step=2.ckpt", rows=ROWS - 1)
    seen = Seen()
    train(whole.model, tmp_path, "rows", whole.folders["rows"] / "step=3.ckpt", rows=ROWS - 1, seen=seen)
    assert len(seen.batches) == 5


def test_lightning_has_nothing_to_warn_of(whole, tmp_path, monkeypatch):
    """It does where a loader cannot go on from the middle of an epoch."""
    told = []
    monkeypatch.setattr(warnings, "warn", lambda message, *_, **__: told.append(str(message)))
    train(whole.model, tmp_path, "rows", whole.folders["rows"] / "step=2.ckpt")
    assert not [message for message in told if "resum" in message]
