"""What is not of a run stays where it is while the run goes on: files of users, and of other runs, beside its own."""

import shutil

import pytest
from support.command_line import Bench, refused
from support.run_results import read_curves

SAVED = ("--trainer.callbacks+=RunCheckpoints", "--trainer.callbacks.every_n_steps=1")


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, tiny_llama)


def fit(bench, epochs, out, *more):
    ran = bench.fit(*SAVED, f"--trainer.max_epochs={epochs}", *more, out=out)
    assert ran.code == 0, ran
    return ran


def test_checkpoints_of_users_and_of_runs_inside(bench):
    fit(bench, 1, "outer")
    fit(bench, 3, "outer/inner")
    kept = bench.folder / "outer/checkpoints/good.ckpt"
    shutil.copy(bench.folder / "outer/inner/checkpoints/last.ckpt", kept)
    inner = sorted((bench.folder / "outer/inner").rglob("*.ckpt"))
    fit(bench, 2, "outer")
    assert kept.is_file()
    assert sorted((bench.folder / "outer/inner").rglob("*.ckpt")) == inner


SHARED = (
    "--trainer.logger+=TensorBoardLogger",
    "--trainer.logger.save_dir=logs",
    "--trainer.logger+=CSVLogger",
    "--trainer.logger.save_dir=logs",
    "--trainer.logger.name=tables",
)


def test_logs_in_a_folder_that_runs_share(bench):
    """Each run goes on in its own version."""
    for out in ("first", "second"):
        fit(bench, 1, out, *SHARED)
    logs = bench.folder / "logs"
    other = {path: path.read_bytes() for path in logs.rglob("version_1/*")}
    assert len(other) == 3
    fit(bench, 2, "first", *SHARED)
    assert {path: path.read_bytes() for path in logs.rglob("version_1/*")} == other
    assert not list(logs.rglob("version_2"))
    table = (logs / "tables/version_0/metrics.csv").read_text()
    fit(bench, 2, "whole", *SHARED)
    assert (logs / "tables/version_2/metrics.csv").read_text() == table


def test_logs_of_a_run_that_was_moved(bench):
    """Their place is not known any more: they stay, and a new version begins."""
    fit(bench, 1, "run", *SHARED)
    before = {path: path.read_bytes() for path in (bench.folder / "logs").rglob("version_0/*")}
    (bench.folder / "deep").mkdir()
    shutil.move(bench.folder / "run", bench.folder / "deep/run")
    fit(bench, 2, "deep/run", *SHARED)
    assert {path: path.read_bytes() for path in before} == before


def test_fresh_through_a_link(bench):
    """The run is moved aside on its own disk, and the new one is where the link leads."""
    real = bench.folder / "disk/run"
    real.mkdir(parents=True)
    (bench.folder / "link").symlink_to(real)
    fit(bench, 1, "link")
    fit(bench, 1, "link", "--fresh")
    assert (bench.folder / "link").is_symlink()
    assert (real / "config.yaml").is_file()
    assert len(list((bench.folder / "disk").iterdir())) == 2


def test_a_finished_run_without_checkpoints_is_not_trained_further(bench):
    fit(bench, 1, "run")
    shutil.rmtree(bench.folder / "run/checkpoints")
    assert "finished: " in fit(bench, 1, "run").out
    refused(bench.fit(*SAVED, "--trainer.max_epochs=2", out="run"), 66, "its checkpoints were removed", "final_model")


def test_another_process_that_was_faster(bench, monkeypatch):
    """It continued the run while this one was preparing its rows: what this one has read of the folder is old."""
    from dpo_lightning import cli

    fit(bench, 1, "run")
    describe = cli.describe_run

    def describe_late(*args):
        monkeypatch.setattr(cli, "describe_run", describe)
        fit(bench, 2, "run")
        describe(*args)

    monkeypatch.setattr(cli, "describe_run", describe_late)
    refused(bench.fit(*SAVED, "--trainer.max_epochs=3", out="run"), 73, "another process has gone on with the run")
    assert {step for step, _ in read_curves(bench.folder / "run")["train/loss"]} == {1, 2, 3, 4}


def test_checkpoints_of_another_seed(bench):
    fit(bench, 1, "run")
    fit(bench, 1, "other", "--seed_everything=7")
    shutil.rmtree(bench.folder / "run/checkpoints")
    shutil.copytree(bench.folder / "other/checkpoints", bench.folder / "run/checkpoints")
    refused(bench.fit(*SAVED, "--trainer.max_epochs=2", out="run"), 64, "the seed has changed")


def test_averages_of_weights_are_not_added_or_left_out(bench):
    averaging = ("--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",)
    fit(bench, 1, "run", *averaging)
    said = "the averaging of weights has changed"
    refused(bench.fit(*SAVED, "--trainer.max_epochs=2", out="run"), 64, said)
    fit(bench, 1, "plain")
    refused(bench.fit(*SAVED, *averaging, "--trainer.max_epochs=2", out="plain"), 64, said)
