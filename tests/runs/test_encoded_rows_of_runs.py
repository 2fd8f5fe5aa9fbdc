"""Runs by the command line take the rows that an earlier one encoded, and so do the ranks of one."""

import os
import subprocess
import sys

import pytest
from support.command_line import Bench

from dpo_lightning.data.cache import cache_folder


@pytest.fixture
def bench(tiny_llama, tmp_path):
    return Bench(tmp_path, tiny_llama)


def curve(out):
    """The lines of training, without their times."""
    return [line.partition("accuracy")[0] for line in out.splitlines() if line.startswith("training: ")]


def test_the_next_run_and_the_next_beta_take_the_rows_of_the_first(bench):
    first = bench.fit()
    folder = bench.folder / "encoded"
    assert f"rows: encoded into {folder} for further runs (1 entry there, " in first.out
    second = bench.fit(out="again")
    assert f"rows: 8 train, 5 eval, encoded before, from {folder}" in second.out
    assert curve(second.out) == curve(first.out) != []
    other = bench.fit("--model.loss.beta=0.2", out="other")
    assert "encoded before" in other.out
    assert cache_folder.measure_folder(folder)[0] == 1
    longer = bench.fit("--data.max_length=127", out="longer")
    assert "(2 entries there, " in longer.out
    held_out = bench.run("validate", "--data.train=null", out="validate")
    assert "(3 entries there, " in held_out.out


def test_none_keeps_nothing(bench):
    ran = bench.fit("--data.cache=none")
    assert "rows: " not in ran.out
    assert not (bench.folder / "encoded").exists()


def test_a_folder_of_the_users_own(bench):
    bench.fit(f"--data.cache={bench.folder / 'mine'}")
    assert cache_folder.measure_folder(bench.folder / "mine")[0] == 1
    assert not (bench.folder / "encoded").exists()


def test_two_ranks_encode_once(bench):
    options = [*bench.options(), "--trainer.devices=2", "--trainer.strategy=ddp"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "dpo_lightning", "fit", *options], env=env, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("rows: encoded into") == 1
    assert "cannot be written" not in ran.stdout
    assert cache_folder.measure_folder(bench.folder / "encoded")[0] == 1
    assert not list((bench.folder / "encoded").glob("*.lock"))
