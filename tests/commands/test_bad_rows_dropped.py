"""`bad_rows drop` from the command line: what is trained, said, listed and recorded, and that a cache keeps it."""

import json
import shutil
from collections import Counter

import pytest
from support.command_line import json_lines, pairs, quiet_bench, refused, run

from dpo_lightning.evaluation.result_file import read_result

DROP = ("--data.bad_rows", "drop")
EMPTY = {"prompt": "Why?", "chosen": "", "rejected": "No."}
CONTROL = {"prompt": "What does <|im_end|> mean?", "chosen": "An end.", "rejected": "Nothing."}
"""A row that is bad as tokens."""


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    """The recipe with two bad rows among ten, and one held out."""
    monkeypatch.chdir(tmp_path)
    bench = quiet_bench(tmp_path, tiny_llama)
    json_lines(bench.train, [*pairs(4), EMPTY, *pairs(4, 4), CONTROL])
    json_lines(bench.eval, ["{", *pairs(5, 50)])
    return bench


def read_list(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_without_its_bad_rows(bench, tmp_path):
    """The same steps as without these rows in the files, also where another run has encoded them; both are listed."""
    refused(bench.fit(), 65, f"{bench.train}:5")
    for out in ("run", "again"):
        ran = bench.fit(*DROP, out=out)
        assert ran.code == 0, ran
        for line in (
            "train: bad rows are left out: 2 of 10 (20.0%)",
            f"train: left out, 'chosen' is empty: 1 ({bench.train}:5)",
            f"train: left out, control token <|im_end|> in a text: 1 ({bench.train}:10)",
            "eval: bad rows are left out: 1 of 6 (16.7%)",
            f"bad rows: listed in {tmp_path / out / 'bad_rows.jsonl'}",
            "bad rows left out   2 train, 1 eval (bad_rows.jsonl)",
        ):
            assert line in ran.out, ran.out
        assert ("encoded before" in ran.out) is (out == "again")
    listed = read_list(tmp_path / "run/bad_rows.jsonl")
    assert listed == read_list(tmp_path / "again/bad_rows.jsonl")
    assert [(row["set"], row["file"], row["line"]) for row in listed] == [
        ("train", str(bench.train), 5),
        ("train", str(bench.train), 10),
        ("eval", str(bench.eval), 1),
    ]
    assert listed[0]["reasons"] == ["'chosen' is empty"]
    assert bench.json("metrics.json")["left_out"] == {"train": 2, "eval": 1}
    card = (tmp_path / "run/final_model/README.md").read_text()
    assert "| bad train rows left out | 2 |" in card
    for file, rows in ((bench.train, pairs(8)), (bench.eval, pairs(5, 50))):
        json_lines(file, rows)
    assert bench.fit(out="sound").code == 0
    sound, dropped = bench.json("metrics.json", "sound"), bench.json("metrics.json")
    del dropped["left_out"]
    assert sound == dropped
    assert not (tmp_path / "sound/bad_rows.jsonl").exists()


def test_the_option_belongs_to_what_is_cached_and_resumed(bench, tmp_path):
    assert bench.fit(*DROP).code == 0
    refused(bench.fit(out="other"), 65, "'chosen' is empty")
    resumed = ("--ckpt_path", tmp_path / "run/checkpoints/last.ckpt", "--trainer.max_epochs", 2)
    refused(bench.fit(*resumed, "--data.bad_rows", "error"), 64, "bad_rows")
    assert bench.fit(*resumed, *DROP).code == 0


def test_a_checkpoint_without_its_config_belongs_to_it_too(bench, tmp_path):
    json_lines(bench.train, pairs(8))
    json_lines(bench.eval, pairs(5, 50))
    assert bench.fit().code == 0
    shutil.copytree(tmp_path / "run/checkpoints", tmp_path / "copied")
    resumed = ("--ckpt_path", tmp_path / "copied/last.ckpt", "--trainer.max_epochs", 2)
    refused(bench.fit(*resumed, *DROP, out="next"), 64, "what is done with bad rows has changed")
    assert bench.fit(*resumed, out="next").code == 0


def test_hardly_a_sound_row(bench):
    json_lines(bench.train, [*pairs(4), EMPTY, EMPTY, *({**CONTROL, "chosen": word} for word in "abc")])
    refused(bench.fit(*DROP), 65, "5 of 9 rows are bad, and at most half of a set may be left out")


def test_check_data_says_what_fit_would(bench):
    rows = [bench.train, "--eval", bench.eval, "--model", bench.model]
    ran = run("check-data", *rows, *DROP)
    assert ran.code == 0, ran
    assert "bad rows are left out: 2 of 10 (20.0%)" in ran.out
    assert "result: `fit` would take these rows" in ran.out
    found = json.loads(run("check-data", *rows, *DROP, "--json").out)
    assert (found["rows"], found["eval"]["rows"], found["errors"]) == (8, 5, [])
    assert [row["line"] for row in found["left_out"]] == [5, 10]
    assert [row["line"] for row in found["eval"]["left_out"]] == [1]
    assert run("check-data", *rows).code == 65
    json_lines(bench.train, [*pairs(2), *[EMPTY] * 2, CONTROL])
    ran = run("check-data", *rows, *DROP)
    assert (ran.code, "3 of 5 rows are bad" in ran.err) == (65, True), ran


@pytest.mark.parametrize("kind", ["pairs", "prompts"])
def test_evaluate(bench, tmp_path, kind):
    rows = [*pairs(3), EMPTY, CONTROL, {**CONTROL, "prompt": 3}, *pairs(3, 9)]
    if kind == "prompts":
        rows = [{"prompt": row["prompt"]} for row in rows if row is not EMPTY]
    held_out = json_lines(tmp_path / "held_out.jsonl", rows)
    options = ("--model", bench.model, "--reference", "none", "--max_new_tokens", 2, "--max_length", 128)
    options += ("--accelerator", "cpu", "--precision", "32-true", "--data", held_out, "--output", "eval.json")
    assert run("evaluate", *options).code == 65
    ran = run("evaluate", *options, "--bad_rows", "drop")
    assert ran.code == 0, ran
    lines = [4, 5, 6] if kind == "pairs" else [4, 5]
    assert f"bad rows are left out: {len(lines)} of {len(rows)}" in ran.out
    assert [(row["set"], row["line"]) for row in read_list(tmp_path / "eval.bad_rows.jsonl")] == [
        ("eval", line) for line in lines
    ]
    result = read_result(tmp_path / "eval.json")
    assert (len(result.items), result.summary["left_out"]) == (6, len(lines))


def test_precompute_and_the_run_that_uses_it(bench, tmp_path):
    ran = bench.run("precompute", *DROP)
    assert ran.code == 0, ran
    assert "computing 13 of 13 rows" in ran.out
    assert "train: bad rows are left out: 2 of 10" in ran.out
    ran = bench.fit(*DROP, "--model.reference", "Precomputed")
    assert (ran.code, "computing" in ran.out) == (0, False), ran
    assert Counter(row["set"] for row in read_list(tmp_path / "run/bad_rows.jsonl")) == {"train": 2, "eval": 1}
