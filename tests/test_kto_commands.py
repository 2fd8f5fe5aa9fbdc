"""KTO from the command line: every command on unpaired rows, and what does not go together."""

import json

import pytest
from support import kto_runs
from support.command_line import CONFIGS, ON_CPU, QUIET, refused, run


@pytest.fixture
def options(tiny_llama, tmp_path):
    """The recipe on small files and a tiny model."""
    train, held_out = kto_runs.files(tmp_path)
    data = ("--data.train", train, "--data.eval", held_out, "--data.batch_size", "2", "--data.max_length", "128")
    return "--config", CONFIGS / "kto.yaml", *QUIET, *ON_CPU, "--model.policy.path", tiny_llama, *data


@pytest.mark.parametrize("loss", ["KTOLoss", "BCOLoss", "APOZeroUnpairedLoss"])
def test_every_command(loss, options, tmp_path):
    """One run after the other: the metrics of a checkpoint are those of its run, and a prediction a row each."""
    folder = tmp_path / "run"
    given = (*options, "--model.loss", loss, "--trainer.max_epochs", "1", "--output_dir", folder)
    fitted = run("fit", *given)
    assert fitted.code == 0, fitted
    assert "held-out rewards" in fitted.out
    assert ("divergence" in fitted.out) == (loss == "KTOLoss")
    told = json.loads((folder / "metrics.json").read_text())
    assert told["eval/answers"] == 5
    again = ("--config", folder / "config.yaml", "--ckpt_path", folder / "checkpoints/last.ckpt")
    for command in ("validate", "test", "predict"):
        ran = run(command, *again)
        assert ran.code == 0, ran
        if command != "predict":
            assert "rewards/margins" in ran.out
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == [1, 2, 3, 4, 5]
    good = [line["reward"] for line in lines if line["label"]]
    assert sum(good) / len(good) == pytest.approx(told["eval/rewards/chosen"], abs=1e-5)


def test_a_precomputed_reference(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run("precompute", *options, "--output_dir", "outputs/none")
    assert made.code == 0, made
    fitted = run("fit", *options, "--output_dir", "outputs/run", "--model.reference", "Precomputed")
    assert fitted.code == 0, fitted
    assert "computing" not in fitted.out
    assert "self-check: passed (starting loss 0.500000" in fitted.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "PreferenceDataModule"], "KTOModule takes UnpairedDataModule"),
        (["--model.loss", "DPOLoss"], "this class belongs to another module at model.loss\n  | DPOLoss"),
        (["--model.loss.undesirable_weight", "-1"], "must be 0 or more"),
        (["--model.loss.label_smoothing", "0.1"], "label_smoothing"),
        (["--model.reference", "AdapterDisabled"], "AdapterDisabled needs a new adapter"),
        (["--trainer.callbacks", "RewardMargins"], "need pairs"),
    ],
)
def test_what_does_not_go_together(flags, said, options, tmp_path):
    refused(run("fit", *options, "--output_dir", tmp_path / "run", *flags), 64, said)


def test_a_loss_of_unpaired_rows_is_none_of_pairs(tiny_llama, tmp_path):
    options = ("--config", CONFIGS / "dpo.yaml", "--model.policy.path", tiny_llama, "--output_dir", tmp_path / "run")
    for name in ("KTOLoss", "dpo_lightning.losses.KTOLoss"):
        ran = run("fit", *options, "--model.loss", name)
        refused(ran, 64, "this class belongs to another module", "--model KTOModule (configs/kto.yaml)")
    refused(run("fit", *options, "--data", "UnpairedDataModule"), 64, "DPOModule takes PreferenceDataModule")


def test_the_sample_data_are_balanced_and_apart():
    """Half of each group is good, no prompt stands twice or in both files, and both languages are there."""
    sets = []
    for part, rows in (("train", 144), ("eval", 36)):
        found = json.loads((CONFIGS.parent / f"data/thumbs_{part}.json").read_text(encoding="utf-8"))
        prompts = {row["prompt"] for row in found}
        assert len(found) == len(prompts) == rows
        for group in ("general", "safety", "code", "style"):
            labels = [row["label"] for row in found if row["group"] == group]
            assert 0 <= 2 * sum(labels) - len(labels) <= 1
        assert {row["language"] for row in found} == {"en", "ko"}
        pairs = json.loads((CONFIGS.parent / f"data/preference_{part}.json").read_text(encoding="utf-8"))
        known = {(pair["prompt"], pair[name], name == "chosen") for pair in pairs for name in ("chosen", "rejected")}
        assert {(row["prompt"], row["completion"], row["label"]) for row in found} <= known
        sets.append(prompts)
    assert not sets[0] & sets[1]
