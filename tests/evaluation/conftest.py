"""A run and its evaluation, which tests of this folder share."""

import pytest
from support.command_line import Bench, json_lines, pairs
from support.evaluations import evaluate

from dpo_lightning.evaluation.result_file import read_result


@pytest.fixture(scope="session")
def bench(tiny_llama, tmp_path_factory):
    """A DPO run of a few steps, and 9 held-out pairs of three groups and two languages."""
    bench = Bench(tmp_path_factory.mktemp("evaluate"), tiny_llama)
    assert bench.fit("--trainer.max_epochs=2").code == 0
    rows = [{**row, "group": "abc"[k % 3], "language": ("en", "ko")[k % 2]} for k, row in enumerate(pairs(9, 70))]
    bench.eval = json_lines(bench.folder / "held_out.jsonl", rows)
    return bench


@pytest.fixture(scope="session")
def result(bench):
    """The items and the summary of the run's model, evaluated with the defaults."""
    ran = evaluate(bench, bench.folder / "eval.json")
    assert ran.code == 0, ran
    return read_result(bench.folder / "eval.json", answered=True)
