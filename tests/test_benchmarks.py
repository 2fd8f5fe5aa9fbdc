"""Every benchmark runs and writes figures and a chart: on a tiny random model, whose speed says nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import json_lines, pairs

from benchmarks.rows import fitting_rows, read_rows, write_rows

ROOT = Path(__file__).parents[1]


def run(name, model, rows, out, *more, module=("-m", "benchmarks")):
    """The figures of a benchmark, run as a user runs it."""
    arguments = [name, "--model", model, "--rows", rows, "--out", out, "--steps", 1, "--batch", 2, "--epochs", 1]
    arguments += ["--max-length", 200, *more]
    command = [sys.executable, *module, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((out / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Pairs as a user has them."""
    return json_lines(tmp_path_factory.mktemp("rows") / "pairs.jsonl", pairs(8))


def test_steps_against_trl(tiny_llama, rows, tmp_path):
    found = run("trl", tiny_llama, rows, tmp_path, "--comparisons", "defaults,best")
    assert found["rows"]["drawn"] == 4
    for name in ("defaults", "best"):
        assert found[name]["ratio"] > 0
        assert found[name]["ours"]["losses"] == pytest.approx(found[name]["trl"]["losses"], abs=1e-2)
    assert found["best"]["ours"]["reference_pairs"] == found["best"]["trl"]["reference_pairs"] == 4
    assert found["best"]["ours"]["reference_seconds"] > 0


def test_the_share_of_the_machines_speed(tiny_llama, rows, tmp_path):
    found = run("share", tiny_llama, rows, tmp_path)
    assert found.keys() == {"bf16", "fp32"}
    for value in found.values():  # speeds: which one is higher is the machine's matter
        assert value["best_square_gflops"] > 0
        assert value["shares"].keys() == {"training", "reference", "step"}
        assert all(part > 0 for part in value["shares"].values())


def test_a_profile(tiny_llama, rows, tmp_path):
    found = run("profile", tiny_llama, rows, tmp_path)
    assert found["tokens"] > 0
    shares = list(found["shares"].values())  # of the 14 operators that took most of the time, whichever they are
    assert len(shares) == 14
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1 + 1e-9


def test_growth(tiny_llama, rows, tmp_path):
    found = run("growth", tiny_llama, rows, tmp_path)
    # Twice the pairs are twice the operations in any layout.
    assert found["padded, pairs"]["exponent_of_operations"] == pytest.approx(1, abs=0.05)
    packed, padded = (found[f"{layout}, prompt"]["operations"] for layout in ("packed shared prefix", "padded"))
    assert packed[-1] < 0.75 * padded[-1]


def test_two_processes(tiny_llama, rows, tmp_path):
    once = "from benchmarks import __main__, ddp; ddp.RUNS = 1; __main__.main()"
    found = run("ddp", tiny_llama, rows, tmp_path, module=("-c", once))
    assert found["rows"]["drawn"] == 8
    assert found["efficiency"] > 0
    assert found["pairs"] == {"1": 6, "2": 4}  # of four steps and of two, the first left out
    assert [len(values) for values in found["seconds_per_pair"].values()] == [1, 1]


FEW_STARTS = """
from benchmarks import __main__, data
data.PARTS, data.SHARED, data.RANKS, data.AGAINST_TRL = (10, 1), 1, (1, 2), {1: 1}
__main__.main()
"""

WITHOUT_TRL = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "trl" else find(name, *package)
from benchmarks import __main__
__main__.main()
"""


def test_the_start_of_a_run(folder, rows, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    found = run("data", folder, rows, tmp_path, "--most", 40, "--max-length", 4096, module=("-c", FEW_STARTS))
    assert found["growth"]["sizes"] == [4, 40]
    for name in ("first start", "second start"):
        for figure in ("processor_seconds", "wall_seconds"):
            assert len(found["growth"][name][figure]) == 2
            assert all(value > 0 for value in found["growth"][name][figure])
            assert found["trl"]["40"][name]["ratio"][figure] > 0
    ranks = [found["ranks"][count] for count in ("1", "2")]
    assert [start["first start"]["processes that encoded"] for start in ranks] == [1, 1]
    assert [start["second start"]["processes that encoded"] for start in ranks] == [0, 0]
    tokens = {start[name]["tokens"] for start in ranks for name in ("first start", "second start")}
    assert len(tokens) == 1
    assert tokens.pop() > 40 * (100 + 230 + 250)  # no word has fewer than one token


@pytest.mark.parametrize(
    ("module", "most", "said"),
    [
        (("-c", WITHOUT_TRL), 400, "this benchmark compares with TRL, and trl cannot be imported"),
        (("-m", "benchmarks"), 399, "--most 399 is too few"),
    ],
)
def test_what_the_start_of_a_run_needs(module, most, said, tiny_llama, tmp_path):
    given = ["data", "--model", tiny_llama, "--batch", 2, "--out", tmp_path, "--most", most]
    command = [sys.executable, *module, *map(str, given)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


WRONG = {
    "no rows": (["--rows", "/nowhere/pairs.json"], "/nowhere/pairs.json"),
    "a device": (["--rows", os.devnull], "expected a file, found a device"),
    "a comparison": (["--comparisons", "defaults,nonsense"], "no comparison is called nonsense; there are defaults, "),
    "no pairs": (["--batch", "0"], "--batch: 0 is no number of 1 or more"),
    "no steps": (["--steps", "0"], "--steps: 0 is no number of 1 or more"),
    "a length": (["--max-length", "-5"], "--max-length: -5 is no number of 1 or more"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said_in_a_line(case, tiny_llama, tmp_path):
    arguments, said = WRONG[case]
    command = [sys.executable, "-m", "benchmarks", "trl", "--model", tiny_llama, "--out", tmp_path, *arguments]
    ran = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_rows_of_sharegpts_ranking_form(tiny_llama, tmp_path):
    said = {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "So."}}
    bad = {**said, "rejected": {"from": "gpt", "value": "No\x0c"}}
    same = {**said, "rejected": said["chosen"]}
    long = {**said, "rejected": {"from": "gpt", "value": "No. " * 400}}
    good = [{**said, "rejected": {"from": "gpt", "value": f"No {k}."}} for k in range(3)]
    source, target = tmp_path / "ranking.json", tmp_path / "rows.jsonl"
    source.write_text(json.dumps([bad, *good, same, long]), encoding="utf-8")
    assert write_rows(str(source), target) == 5
    found = fitting_rows(str(tiny_llama), str(source), target, 200, 2, seed=0)
    assert (found["rows"], found["refused"], found["too_long"], found["drawn"]) == (5, 1, 1, 2)
    assert len(read_rows(str(tiny_llama), target, 200)) == 2
    with pytest.raises(SystemExit, match=r"3 rows of .* fit into 200 tokens: 9 are needed"):
        fitting_rows(str(tiny_llama), str(source), target, 200, 9, seed=0)


def test_memory_of_two_processes(tiny_llama, rows, tmp_path):
    """Both have trained, whole and sharded; a tiny model's memory says nothing."""
    found = run("memory", tiny_llama, rows, tmp_path)
    for strategy in ("ddp", "fsdp2"):
        assert [rank["steps"] for rank in found[strategy]] == [1, 1]
        assert all(rank["imports"] < rank["stages"]["loading"] <= rank["peak"] for rank in found[strategy])
        assert found["plain"][strategy] == max(rank["peak"] for rank in found[strategy])
    assert found["plain"]["ratio"] == found["plain"]["fsdp2"] / found["plain"]["ddp"]
