"""`export` that is refused or fails: nothing half written is left, and a model that became another one is not kept."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support import short_runs
from support.command_line import ROOT, exported, refused, watch_loading

from dpo_lightning.commands import export
from dpo_lightning.models import merging


@pytest.fixture(scope="module")
def adapter(tiny_llama, file, tmp_path_factory):
    """A trained adapter's folder."""
    return short_runs.adapter_folder(tiny_llama, file, tmp_path_factory.mktemp("trained") / "final_model")


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--model", "nowhere/at/all"], 66, "the model folder does not exist"),
        (["--dtype", "int4"], 64, "--dtype"),
        (["--max_shard_size", "much"], 64, "not a size at max_shard_size"),
        (["--out", " "], 64, "not the name of a file or folder"),
        (["--bogus"], 64, "--bogus"),
    ],
)
def test_export_refuses_in_a_few_lines(more, code, said, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(exported(adapter, tmp_path / "out", *more), code, said)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays_before_anything_is_loaded(adapter, tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    loaded = watch_loading(monkeypatch)
    refused(exported(adapter, tmp_path / "out"), 73, "the folder already exists", "--fresh")
    for inside in (adapter / "merged", adapter, tiny_llama / "merged", tiny_llama):
        refused(exported(adapter, inside), 73, "which is read")
    assert not loaded
    assert (tmp_path / "out/mine").read_text() == "x"
    assert exported(adapter, tmp_path / "out", "--fresh").code == 0
    assert not (tmp_path / "out/mine").exists()
    (aside,) = (path for path in tmp_path.iterdir() if path.name != "out")
    assert (aside / "mine").read_text() == "x"


def test_a_full_disk_is_seen_before_anything_is_loaded(adapter, tmp_path, monkeypatch):
    loaded = watch_loading(monkeypatch)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    refused(exported(adapter, tmp_path / "out"), 73, "GB are free", "up to", "--out on another disk")
    assert not [name for name in loaded if name == "AutoModelForCausalLM"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(28, "No space left on device"), 74), (KeyboardInterrupt(), 130), (ValueError("x"), 70)]
)
@pytest.mark.parametrize("part", ["write_model", "make_export_card"])
def test_a_failure_leaves_nothing_half_written(part, error, code, adapter, tmp_path, monkeypatch):
    """Neither where a folder was before nor where none was."""
    owner = merging if part == "write_model" else export
    real = getattr(owner, part)

    def fail(*args):
        if part == "write_model":
            real(*args)
        raise error

    monkeypatch.setattr(owner, part, fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path.parent))
    ran = exported(adapter, tmp_path / "out")
    assert ran.code == code, ran
    if code == 74:
        refused(ran, 74, "No space left on device at out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up(adapter, tmp_path):
    """Of another size of file than the process may write: the writer's own error, not an OSError."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from dpo_lightning.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    args = ["export", "--model", str(adapter), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *args], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 74, done
    assert "the folder cannot be written" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["merged in float32", "read back from its files", "rounded to float16"])
def test_a_model_that_became_another_one_is_not_kept(when, adapter, tmp_path, monkeypatch):
    """Whatever goes wrong between the adapter model and the files is seen by the command itself."""
    real_merged, real_write = merging.merge_adapter, merging.write_model

    def spoil(model, factor=1.01):
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(factor)
        return model

    def write(model, tokenizer, folder, dtype, size):
        if when == "rounded to float16":
            spoil(model, 1e9)
        real_write(model, tokenizer, folder, dtype, size)
        if when == "read back from its files":
            spoil(model)

    if when == "merged in float32":
        monkeypatch.setattr(merging, "merge_adapter", lambda policy: spoil(real_merged(policy), 1.0001))
    monkeypatch.setattr(merging, "write_model", write)
    dtype = when.split()[-1] if "rounded" in when else "bfloat16"  # which would allow for as much
    ran = exported(adapter, tmp_path / "out", "--dtype", dtype)
    refused(ran, 67, f"when it is {when}", "nothing was written")
    assert not list(tmp_path.iterdir())
