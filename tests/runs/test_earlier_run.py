"""The same command again: it continues a run, completes what is missing of it, or says that it is finished."""

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import Bench, json_lines, pairs, refused, watch_loading
from support.tiny_models import change_json

from dpo_lightning.runs import run_folder
from dpo_lightning.runs.checkpoint_files import MANIFEST, PREVIOUS, read_manifest
from dpo_lightning.runs.random_state import capture_random, restore_random

SAVED = ("--trainer.callbacks+=RunCheckpoints", "--trainer.callbacks.every_n_steps=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_llama):
    """A finished run with a checkpoint after each of its two steps."""
    bench = Bench(tmp_path_factory.mktemp("earlier"), tiny_llama)
    ran = bench.fit(*SAVED)
    assert ran.code == 0, ran
    return bench


@pytest.fixture
def bench(made, tmp_path, monkeypatch):
    """A copy of it, to be changed."""
    shutil.copytree(made.folder, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    for name in ("config.yaml",):
        path = tmp_path / "work/run" / name
        path.write_text(path.read_text().replace(str(made.folder), str(tmp_path / "work")))
    bench = Bench(tmp_path / "work", made.model, rows=made)
    bench.train, bench.eval = bench.folder / "train.jsonl", bench.folder / "eval.jsonl"
    return bench


def tree(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(bench, out="run"):
    return load_file(bench.folder / out / "final_model/model.safetensors")


def test_a_finished_run_says_so(bench, monkeypatch):
    loaded, before = watch_loading(monkeypatch), tree(bench.folder / "run")
    ran = bench.fit(*SAVED)
    assert (ran.code, loaded, tree(bench.folder / "run")) == (0, [], before), ran
    assert "finished: " in ran.out
    assert "--fresh" in ran.out


def test_both_checkpoints_are_kept(bench):
    steps = [
        torch.load(bench.folder / "run/checkpoints" / name, weights_only=True)["global_step"]
        for name in (PREVIOUS, "last.ckpt")
    ]
    assert steps == [1, 2]


def test_more_steps_train_further(bench):
    """And come to the same as a run that was as long from the beginning."""
    assert bench.fit(*SAVED, "--trainer.max_epochs=2").code == 0
    assert bench.json("metrics.json")["step"] == 4
    assert bench.fit(*SAVED, "--trainer.max_epochs=2", out="whole").code == 0
    for name, value in weights(bench, "whole").items():
        assert torch.equal(weights(bench)[name], value), name


@pytest.mark.parametrize("missing", ["final_model", "metrics.json", "final_model/model.safetensors"])
def test_what_is_missing_is_written(bench, missing):
    before, path = weights(bench), bench.folder / "run" / missing
    measures = bench.json("metrics.json")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    ran = bench.fit(*SAVED)
    assert ran.code == 0, ran
    assert "all 2 steps are done" in ran.out
    assert bench.json("metrics.json") == measures
    for name, value in weights(bench).items():
        assert torch.equal(before[name], value), name


@pytest.mark.parametrize(
    ("option", "named"), [("--model.loss.beta=0.5", "model.loss.beta"), ("--seed_everything=7", "seed_everything")]
)
def test_another_config(bench, option, named):
    before = tree(bench.folder)
    refused(bench.fit(*SAVED, option), 73, named, "--fresh", "--output_dir NAME")
    assert tree(bench.folder) == before


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_folder(path):
    path.unlink()
    path.mkdir()


def make_foreign(path):
    """A checkpoint of another run, whole in itself."""
    torch.save(torch.load(path, weights_only=True) | {"more": torch.ones(1)}, path)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "flipped": flip,
    "removed": lambda path: path.unlink(),
    "a folder": make_folder,
    "another run's": make_foreign,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint(bench, kind):
    """The one before it is used, with one warning; without one, the run does not begin again by itself."""
    before = weights(bench)
    DAMAGE[kind](bench.folder / "run/checkpoints/last.ckpt")
    shutil.rmtree(bench.folder / "run/final_model")
    ran = bench.fit(*SAVED)
    assert ran.code == 0, ran
    assert (ran.out + ran.err).count("warning") == 1
    assert "going on from previous.ckpt" in ran.out + ran.err
    for name, value in weights(bench).items():
        assert torch.equal(before[name], value), name


@pytest.mark.parametrize("kind", DAMAGE)
def test_all_damaged(bench, kind):
    for name in ("last.ckpt", PREVIOUS):
        DAMAGE[kind](bench.folder / "run/checkpoints" / name)
    shutil.rmtree(bench.folder / "run/final_model")
    before = tree(bench.folder)
    refused(bench.fit(*SAVED), 66, "last.ckpt", "--fresh")
    assert tree(bench.folder) == before


@pytest.mark.parametrize("kind", ["empty", "cut", "removed", "a folder"])
def test_a_damaged_manifest(bench, kind):
    """The checksums within the checkpoints are left."""
    DAMAGE[kind](bench.folder / "run/checkpoints" / MANIFEST)
    shutil.rmtree(bench.folder / "run/final_model")
    flip(bench.folder / "run/checkpoints/last.ckpt")
    ran = bench.fit(*SAVED)
    if kind != "a folder":
        assert ran.code == 0, ran
        assert read_manifest(bench.folder / "run/checkpoints")
    assert MANIFEST in ran.out + ran.err
    assert "Traceback" not in ran.err


def add_comment(template):
    """Another template, of the same output."""
    template.write_text(template.read_text() + "{# more #}")


CHANGES = {
    "data": lambda bench: json_lines(bench.train, pairs(8, 20)),
    "model": lambda bench: flip(bench.model / "model.safetensors"),
    "template": lambda bench: add_comment(bench.model / "chat_template.jinja"),
    "tokenizer": lambda bench: change_json(bench.model / "tokenizer.json", normalizer={"type": "NFC"}),
}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("data", "training data have changed"),
        ("model", "the model has changed"),
        ("template", "the chat template has changed"),
        ("tokenizer", "the tokenizer has changed"),
    ],
)
def test_what_changed_since(bench, tmp_path, kind, said):
    """Rows, weights, template, tokenizer: a run on others is another run."""
    bench.model = shutil.copytree(bench.model, tmp_path / "model")
    assert bench.fit(*SAVED, "--trainer.max_steps=1", out="new").code == 0
    CHANGES[kind](bench)
    before = tree(bench.folder / "new")
    refused(bench.fit(*SAVED, "--trainer.max_steps=2", out="new"), 64, said)
    assert tree(bench.folder / "new") == before


def test_options_of_an_optimizer_are_the_configs(bench):
    """A checkpoint brings its moments, not its learning rate."""
    path = bench.folder / "other.ckpt"
    content = torch.load(bench.folder / "run/checkpoints" / PREVIOUS, weights_only=True)
    content["optimizer_states"][0]["param_groups"][0]["betas"] = (0.1, 0.2)
    torch.save(content, path)
    shutil.copy(bench.folder / "run/config.yaml", bench.folder / "config.yaml")
    refused(bench.fit(*SAVED, "--ckpt_path", path, out="new"), 64, "betas=(0.1, 0.2)")


def test_a_run_that_was_killed_before_its_first_checkpoint(bench):
    shutil.rmtree(bench.folder / "run/checkpoints")
    shutil.rmtree(bench.folder / "run/final_model")
    before = bench.json("metrics.json")
    ran = bench.fit(*SAVED)
    assert ran.code == 0, ran
    assert "begins again" in ran.out
    assert bench.json("metrics.json") == before


def test_random_states_are_plain(tmp_path):
    """And restored to the bit."""
    state = capture_random()
    drawn = torch.rand(3)
    torch.save(state, tmp_path / "state.pt")
    restore_random(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(torch.rand(3), drawn)
    assert json.dumps(state["python"])


def test_a_table_of_measures_goes_on(bench):
    """Rows of steps after the checkpoint, which are trained again, are not there twice."""
    logger = ("--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={bench.folder}/table/csv")
    assert bench.fit(*SAVED, *logger, out="table").code == 0
    path = bench.folder / "table/csv/lightning_logs/version_0/metrics.csv"
    before = path.read_text().splitlines()
    (bench.folder / "table/checkpoints/last.ckpt").unlink()
    shutil.rmtree(bench.folder / "table/final_model")
    ran = bench.fit(*SAVED, *logger, out="table")
    assert ran.code == 0, ran
    assert sorted(path.read_text().splitlines()) == sorted(before)
    assert not (bench.folder / "table/csv/lightning_logs/version_1").exists()


def test_other_batches_of_as_many_rows(bench):
    """Two micro-batches of two rows are a step of four; the rows of the next step are those that would have come."""
    halves = ("--data.batch_size=2", "--trainer.accumulate_grad_batches=2")
    assert bench.fit(*SAVED, *halves, "--trainer.max_steps=1", out="new").code == 0
    fewer = ("--data.batch_size=1", "--trainer.accumulate_grad_batches=2", "--trainer.max_steps=2")
    refused(bench.fit(*SAVED, *fewer, out="new"), 64, "the number of rows of an optimizer step has changed", "2, was 4")
    assert bench.fit(*SAVED, "--data.batch_size=4", "--trainer.max_steps=2", out="new").code == 0
    for name, value in weights(bench).items():
        torch.testing.assert_close(weights(bench, "new")[name], value, rtol=0, atol=1e-5)


def test_the_base_of_an_adapter_that_is_trained_further(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llama, tmp_path / "base")
    bench = Bench(tmp_path, tmp_path / "base")
    assert bench.fit("--model.policy.lora.r=2", out="first").code == 0
    bench.model = tmp_path / "first/final_model"
    assert bench.fit(*SAVED).code == 0
    (tmp_path / "run/metrics.json").unlink()
    weights = load_file(tmp_path / "base/model.safetensors")
    next(iter(weights.values()))[0] += 1
    save_file(weights, tmp_path / "base/model.safetensors", {"format": "pt"})
    before = tree(tmp_path / "run")
    ran = bench.fit(*SAVED)
    refused(ran, 64, "the adapter's base model has changed since the checkpoint was written")
    assert tree(tmp_path / "run") == before


def test_weights_alone_are_no_place_to_go_on_from(bench):
    """A newer checkpoint of `ModelCheckpoint` that holds no state of the optimizer."""
    weights_alone = ("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_weights_only=true")
    weights_alone += ("--trainer.callbacks.filename=best", "--trainer.callbacks.every_n_train_steps=1")
    assert bench.fit("--trainer.max_steps=1", *weights_alone, out="new").code == 0
    checkpoints = bench.folder / "new/checkpoints"
    assert {path.name for path in checkpoints.glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    assert list(read_manifest(checkpoints)) == ["last.ckpt"]
    assert bench.fit("--trainer.max_steps=2", *weights_alone, out="new").code == 0
    assert bench.json("metrics.json", "new")["step"] == 2


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EBADF, errno.EWOULDBLOCK])
def test_a_file_system_without_locks(bench, monkeypatch, error):
    """Is no other process that uses the folder."""

    def fail(*_):
        raise OSError(error, "no locks")

    monkeypatch.setattr(run_folder.fcntl, "flock", fail)
    ran = bench.fit(*SAVED, "--trainer.max_epochs=2")
    assert ran.code == (73 if error == errno.EWOULDBLOCK else 0), ran
