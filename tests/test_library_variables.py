"""Settings in the environment that end a library's import, or a command later on."""

import os
import subprocess
import sys

import pytest

from dpo_lightning.library_variables import translate_variable_error


def run(*options, **variables):
    """Exit code and errors of a command that imports everything and does nothing."""
    args = ["fit", "--config=configs/dpo.yaml", "--output_dir=run", "--print_config"]
    command = [sys.executable, *options, "-m", "dpo_lightning", *args]
    ran = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("TORCH_LOGS", "xx"), ("HF_HUB_DOWNLOAD_TIMEOUT", "abc"), ("MPLBACKEND", "zz"), ("TORCH_COMPILE_DEBUG", "zz")],
)
def test_a_value_with_which_a_library_cannot_be_imported_is_named(name, value):
    code, told = run(**{name: value})
    assert code == 64, told
    assert f"the environment's {name}" in told
    assert told.endswith(f"fix: unset {name}\n")


@pytest.mark.parametrize("options", [{"PYTHONOPTIMIZE": "2"}, "-OO"], ids=str)
def test_python_without_docstrings_is_refused(options):
    code, told = run(**options) if isinstance(options, dict) else run(options)
    assert code == 64, told
    assert "fix: unset PYTHONOPTIMIZE" in told


def test_other_errors_are_not_taken_for_those_of_a_variable(monkeypatch):
    """Of another type, of no variable of a library, or with the value as a part of a word."""
    monkeypatch.setenv("TORCH_LOGS", "all")
    monkeypatch.setenv("EDITOR", "vi")
    assert translate_variable_error(KeyError("all")) is None
    assert translate_variable_error(ValueError("vi")) is None
    assert translate_variable_error(ValueError("allow")) is None


@pytest.mark.parametrize("value", ["1", "-1", "0.5", "1e9", "on", "true", "None"])
def test_a_common_value_means_a_variable_only_where_it_is_named(monkeypatch, value):
    """`HF_HUB_OFFLINE=1` was blamed for each message with a 1 in it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert translate_variable_error(ValueError(f"max_depth can be -1, 0, or > 0, got {value}.")) is None
    named = translate_variable_error(ValueError(f"HF_HUB_OFFLINE cannot be {value}"))
    assert named is not None
    assert named.fix == "unset HF_HUB_OFFLINE"
