"""Variables of a launcher with which a process would wait for others for ever, or take itself for another one."""

import os
import subprocess
import sys

import pytest
from support.command_line import refused

from dpo_lightning.errors import UserError
from dpo_lightning.launcher_variables import check_environment


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "abc"},
        {"WORLD_SIZE": "0"},
        {"RANK": "-1"},
        {"RANK": "abc"},
        {"RANK": "1"},
        {"RANK": "٠"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"LOCAL_RANK": "x"},
        {"LOCAL_RANK": ""},
        {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
        {"NODE_RANK": "1.5"},
        {"NODE_RANK": "1"},
        {"NODE_RANK": "1", "LOCAL_RANK": "0"},
        {"GROUP_RANK": "x"},
        {"SLURM_LOCALID": "x"},
        {"SLURM_NODEID": "-1"},
        {"SLURM_PROCID": "4", "SLURM_NTASKS": "4"},
        {"SLURM_NTASKS": "two"},
    ],
    ids=str,
)
def test_a_launchers_variables_are_numbers_that_fit(bench, monkeypatch, variables):
    """A process that took itself for another than the first would train without a word, or in the first one's place."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(bench.fit(), 64, "the environment", next(iter(variables)), "fix: unset ")


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"},
        {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"},
        {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "NODE_RANK": "1"},
        {"SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"},
        {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "TORCHELASTIC_RUN_ID": "x"},
        {},
    ],
    ids=str,
)
def test_what_launchers_set_passes(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_environment()


@pytest.mark.parametrize(
    ("variables", "remedy"),
    [
        ({"SLURM_NTASKS": "2"}, "srun"),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0"}, "srun"),  # in an sbatch script
        ({"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, "--ntasks-per-node"),
    ],
    ids=str,
)
def test_tasks_of_slurm_that_do_not_exist_are_refused(bench, monkeypatch, variables, remedy):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(bench.fit(), 64, "SLURM_NTASKS=2", remedy)
    assert not (bench.folder / "run").exists()


def test_they_are_checked_before_libraries_read_them():
    """Lightning converts ranks to numbers when it is imported."""
    environment = {**os.environ, "RANK": "abc"}
    command = [sys.executable, "-m", "dpo_lightning", "fit", "--config", "none.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 64
    assert "the environment's RANK" in done.stderr


def test_a_number_of_thousands_of_digits(monkeypatch):
    monkeypatch.setenv("RANK", "9" * 5000)
    with pytest.raises(UserError, match="not a rank"):
        check_environment()


@pytest.mark.parametrize(
    ("backend", "kept"), [("module://kernel_of_another.backend", False), ("module://json.tool", True), ("agg", True)]
)
def test_the_backend_of_a_notebooks_kernel(monkeypatch, backend, kept):
    """`!python -m dpo_lightning fit` in a notebook inherits it, from an environment that may be another one."""
    monkeypatch.setenv("MPLBACKEND", backend)
    check_environment()
    assert os.environ.get("MPLBACKEND") == (backend if kept else None)
