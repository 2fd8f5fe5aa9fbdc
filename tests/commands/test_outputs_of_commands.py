"""Paths for output that a shell was meant to expand: every command refuses them before it reads anything."""

import pytest
from support.command_line import CONFIGS, refused, run

COMMANDS = {
    "compare": ("a.json", "b.json", "--judge=person", "--output={}.json"),
    "convert": ("--input=rows.jsonl", "--output={}.jsonl"),
    "evaluate": ("--model=model", "--data=rows.jsonl", "--output={}.json"),
    "export": ("--model=model", "--out={}"),
    "fetch-model": ("--out={}",),
    "fit": (f"--config={CONFIGS / 'dpo.yaml'}", "--output_dir={}"),
    "precompute": (f"--config={CONFIGS / 'dpo.yaml'}", "--out={}.safetensors"),
    "sweep": (f"--config={CONFIGS / 'dpo.yaml'}", "--over", "model.loss.beta", "0.1", "0.2", "--output_dir={}"),
}


@pytest.mark.parametrize("path", ["$HOME/out", "~/out", "${OUT}/x"])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_expanded(command, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run(command, *(word.format(path) for word in COMMANDS[command]))
    refused(ran, 64, "may not contain `~`, `$NAME`", path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["a" * 300, "a/" * 2000 + "a"], ids=["name", "path"])
@pytest.mark.parametrize("command", COMMANDS)
def test_names_that_no_file_system_takes(command, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(run(command, *(word.format(path) for word in COMMANDS[command])), 64, "bytes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [".", "/", "..", ""])
@pytest.mark.parametrize("command", ["compare", "convert", "evaluate", "precompute"])
def test_a_file_has_a_name(command, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.format("x") for word in COMMANDS[command][:-1]]
    option = COMMANDS[command][-1].partition("=")[0]
    refused(run(command, *words, f"{option}={path}"), 64, option)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["null", "None"])
@pytest.mark.parametrize("command", COMMANDS)
def test_null_names_nothing(command, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.format("x") for word in COMMANDS[command][:-1]]
    option = COMMANDS[command][-1].partition("=")[0]
    refused(run(command, *words, f"{option}={path}"), 64, option.lstrip("-"), path, f"./{path}")
    assert list(tmp_path.iterdir()) == []
