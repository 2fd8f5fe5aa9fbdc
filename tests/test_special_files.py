"""Pipes, sockets and devices in place of files: an error at once, never a wait."""

import os
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command_line import Bench, refused, run

from dpo_lightning.config.values import check_arguments, check_values
from dpo_lightning.special_files import special_kind

pytestmark = pytest.mark.usefixtures("given_up")


@pytest.fixture
def bench(tiny_llama, tmp_path):
    """A recipe on a few rows."""
    return Bench(tmp_path, tiny_llama)


def pipe(path):
    """A named pipe that no one writes to."""
    os.mkfifo(path)
    return path


def test_kinds_of_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    (tmp_path / "link").symlink_to(pipe(tmp_path / "pipe"))
    (tmp_path / "file").touch()
    kinds = {"pipe": "a pipe", "link": "a pipe", "socket": "a socket", "/dev/zero": "a device", "file": "", ".": ""}
    assert {name: special_kind(name) for name in kinds} == kinds
    with monkeypatch.context() as patched:  # to make one takes a capability
        patched.setattr(Path, "stat", lambda _: SimpleNamespace(st_mode=stat.S_IFBLK | 0o600))
        assert special_kind("disk") == "a device"
    assert special_kind("nothing") == special_kind("file/x") == special_kind("a\0b") == ""


@pytest.mark.parametrize("command", [("fit",), ("doctor",), ("precompute",), ("predict",)])
def test_a_config(bench, command):
    path = pipe(bench.folder / "config.yaml")
    refused(run(*command, "--config", path, "--output_dir", bench.folder / "run"), 66, "a pipe", str(path))
    refused(run(*command, f"--config={path}", "--output_dir", bench.folder / "run"), 66, "a pipe", str(path))
    refused(run(*command, "--config", "/dev/zero", "--output_dir", bench.folder / "run"), 66, "a device")


@pytest.mark.parametrize("key", ["model", "data", "trainer", "model.policy", "model.loss", "trainer.callbacks"])
def test_a_part_of_a_config(bench, key):
    path = pipe(bench.folder / "part.yaml")
    for flags in ([f"--{key}={path}"], [f"--{key}", str(path)]):
        refused(bench.fit(*flags), 66, "a pipe", key)
    nested = f"{{{key.replace('.', ': {')}: {path}{'}' * (key.count('.') + 1)}"
    refused(bench.fit(*bench.overlay(nested)), 66, "a pipe", key)
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize(
    ("key", "code"),
    [("data.train", 66), ("data.eval", 66), ("data.chat_template", 66), ("ckpt_path", 66), ("model.policy.path", 66)],
)
def test_a_file_of_a_run(bench, key, code):
    path = pipe(bench.folder / "special.ckpt")
    ran = bench.fit(f"--{key}", path)
    refused(ran, code, *([] if key == "model.policy.path" else ["a pipe"]), str(path))
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize("text", ["n" * 300, "FOLDER/loop", "FOLDER/file/x"])
def test_a_value_that_is_no_path(bench, text):
    """A value too long for a name, or a path that cannot be looked at, is no special file."""
    (bench.folder / "loop").symlink_to("loop")
    text = text.replace("FOLDER", str(bench.folder))
    check_arguments(["fit", "--model.policy.lora.target_modules", text])
    check_values({"model": {"init_args": {"policy": {"lora": {"target_modules": [text]}}}}}, "config.yaml")
    refused(bench.fit("--model.policy.lora.target_modules", text), 64, "the adapter does not fit the model")


def test_a_file_of_reference_log_probabilities(bench):
    path = pipe(bench.folder / "reference.safetensors")
    ran = bench.fit("--model.reference", "Precomputed", "--model.reference.path", path)
    refused(ran, 66, "a pipe", "model.reference.path")
    assert not (bench.folder / "run").exists()
    refused(bench.run("precompute", "--out", path), 66, "a pipe")


def test_the_record_of_a_run_that_goes_on(bench):
    assert bench.fit("--trainer.max_steps", 2).code == 0
    record = bench.folder / "run" / "config.yaml"
    record.unlink()
    pipe(record)
    refused(bench.fit("--ckpt_path", bench.folder / "run/checkpoints/last.ckpt"), 66, "a pipe", str(record))


@pytest.mark.parametrize("command", ["export", "fetch-model"])
def test_an_output_folder(bench, command):
    path = pipe(bench.folder / "out")
    model = ("--model", bench.model) if command == "export" else ()
    refused(run(command, *model, "--out", path), 73, str(path))
    refused(bench.fit(out="out"), 73, str(path))
