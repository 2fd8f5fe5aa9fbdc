"""`Precomputed` for ranked lists and unpaired rows: the run of a frozen copy, by file, command and checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support import whole_runs
from support.command_line import CONFIGS, ON_CPU, QUIET, run
from support.kto_runs import KTO, assert_same_weights, kto, labelled_rows

from dpo_lightning import RankedDataModule, UnpairedDataModule
from dpo_lightning.data.collate import Padded
from dpo_lightning.losses import APOZeroUnpairedLoss
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.references import FrozenCopy
from dpo_lightning.references.precomputed import Precomputed
from dpo_lightning.references.table_file import read

pytestmark = pytest.mark.usefixtures("place")

KINDS = {
    "ranked": (whole_runs.listwise, RankedDataModule, whole_runs.ranked_rows, {}),
    "kto": (kto, UnpairedDataModule, labelled_rows, {"loss": KTO}),  # with mismatched answers
    "apo": (kto, UnpairedDataModule, labelled_rows, {"loss": APOZeroUnpairedLoss(0.3)}),
}
ANSWERS = {"ranked": 27, "kto": 18, "apo": 9}
"""Answers of nine rows."""


def made(kind, model, reference, **data):
    """A module and nine rows of a kind."""
    make, rows, content, options = KINDS[kind]
    path = whole_runs.write_rows(Path(), kind, content(9))
    defaults = {"batch_size": 2, "max_length": 64}
    return make(model, reference=reference, **options), rows(path, **{**defaults, **data})


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_run_with_a_frozen_copy(kind, tiny_llama, tmp_path, capsys):
    """Two shuffled epochs; the file is computed in padded rows and used in packed ones."""
    ends = []
    for name, reference, collator, first in (
        ("live", FrozenCopy(), None, False),
        ("padded", Precomputed("ref.safetensors"), Padded(), True),
        ("packed", Precomputed("ref.safetensors"), None, False),
    ):
        module, data = made(kind, tiny_llama, reference, collator=collator)
        memory, _ = whole_runs.fit(module, data, tmp_path / name, max_epochs=2, accumulate_grad_batches=2)
        assert ("computing 9 of 9 rows" in capsys.readouterr().out) == first
        ends.append((memory.curve("train/loss"), whole_runs.weights(module)))
    assert len(read(Path("ref.safetensors"))[1].keys) == ANSWERS[kind]
    start = dict(CausalLM(str(tiny_llama)).build().named_parameters())
    (expected, weights), *others = ends
    assert len(expected) == 6
    for losses, found in others:
        assert losses[0] == pytest.approx(expected[0], abs=1e-4)
        assert losses == pytest.approx(expected, rel=1e-4, abs=1e-4)
        if kind == "ranked":
            for name, value in found.items():
                torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)
        else:  # plain SGD
            assert_same_weights(found, weights, start)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_found_by_their_indices_in_any_batch(kind, tiny_llama):
    """Shuffled, with a filler, of unequal numbers of answers; other rows than the indices tell are no numbers."""
    module, data = made(kind, tiny_llama, Precomputed())
    live, _ = made(kind, tiny_llama, FrozenCopy())
    whole_runs.fit(module, data, ".", max_steps=1)
    live.configure_model()
    rows = data.encoded["train"]
    for order in ([8, 0, 5], [2, 7, 1, 4]):
        batch = data.collator.collate([rows[index] for index in [*order, order[0]]], [*order, -1])
        real = batch.indices[batch.owners[:, 0]] >= 0
        found, expected = (one.reference(one.policy, batch, "train", ("tokens",)) for one in (module, live))
        assert torch.equal(found.lengths[real], expected.lengths[real])
        for name in ("sums", "tokens"):
            left, right = getattr(found, name)[real], getattr(expected, name)[real]
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
        assert found.sums.isfinite().all()
    other = data.collator.collate(rows[:2], [1, 0])
    assert not module.reference(module.policy, other).sums.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_a_checkpoint(kind, tiny_llama, tmp_path):
    """In the middle of the second epoch: weights to the bit."""
    options = {"max_epochs": 2, "enable_checkpointing": True}
    module, data = made(kind, tiny_llama, Precomputed())
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1, filename="{step}")
    whole_runs.fit(module, data, tmp_path, callbacks=[saved], **options)
    again, data = made(kind, tiny_llama, Precomputed())
    whole_runs.fit(again, data, tmp_path, ckpt_path=tmp_path / "step=7.ckpt", **options)
    for name, value in whole_runs.weights(again).items():
        assert torch.equal(value, whole_runs.weights(module)[name]), name


@pytest.mark.parametrize(("kind", "config"), [("ranked", "dpo-listwise.yaml"), ("kto", "kto.yaml")])
def test_the_commands(kind, config, tiny_llama):
    """`precompute`, then `fit` and `predict` that compute nothing more."""
    content = KINDS[kind][2]
    files = [whole_runs.write_rows(Path(), name, content(9, first)) for name, first in (("train", 0), ("eval", 50))]
    flags = ("--config", CONFIGS / config, *QUIET, *ON_CPU, "--model.policy.path", tiny_llama, "--output_dir", "run")
    flags = (
        *flags,
        "--data.max_length",
        128,
        "--data.train",
        files[0],
        "--data.eval",
        files[1],
        "--trainer.max_steps",
        2,
    )
    ran = run("precompute", *flags)
    assert ran.code == 0, ran
    assert "computing 18 of 18 rows, once, into outputs/reference/" in ran.out
    for command in ("fit", "predict"):
        ran = run(command, *flags, "--model.reference", "Precomputed")
        assert (ran.code, "computing" in ran.out) == (0, False), ran
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(9))
    assert all(line["logps"] == pytest.approx(line["reference_logps"], rel=1e-4) for line in lines)
