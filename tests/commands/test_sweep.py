"""`sweep` as a user types it, with a program that trains and evaluates by arithmetic."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import CONFIGS, ROOT, json_lines, pairs, refused, run

from dpo_lightning.commands import sweep

PROGRAM = [sys.executable, str(ROOT / "tests/support/fake_program.py")]
OVER = ("--over", "model.loss.beta")
BETAS = (*OVER, "0.01", "0.1", "0.5")


@pytest.fixture
def go(place, monkeypatch):
    """Run `sweep` on a few pairs."""
    monkeypatch.setattr(sweep, "PROGRAM", PROGRAM)
    monkeypatch.setattr("dpo_lightning.sweeps.runner.POLL", 0.02)
    for name in ("train", "eval"):
        json_lines(place / f"{name}.jsonl", pairs(4))

    def start(*more, config=CONFIGS / "dpo.yaml"):
        data = ("--data.train", "train.jsonl", "--data.eval", "eval.jsonl")
        return run("sweep", "--config", config, "--output_dir", "out", *data, *more)

    return start


def calls(command):
    """The words of each call of a command so far."""
    path = Path("calls.txt")
    lines = path.read_text().splitlines() if path.exists() else []
    return [words for words in map(json.loads, lines) if words[0] == command]


def manifest():
    return json.loads(Path("out/manifest.json").read_text())


def test_points_a_table_and_the_same_again(go):
    ran = go(*BETAS, "--seeds", 1, 2, "--judge", "none")
    assert ran.code == 0, ran
    assert [point["name"] for point in manifest()["points"]][:2] == ["beta-0.01_seed-1", "beta-0.01_seed-2"]
    assert "Recommended: beta 0.01." in ran.out
    assert "Rank correlation of model.loss.beta and KL over 6 points: -0.96" in ran.out
    words = calls("fit")[0]
    assert "--model.reference=Precomputed" in words
    assert "--model.reference.path=out/reference.safetensors" in words
    assert "--data.cache=encoded" in words
    assert len(calls("precompute")) == 1
    assert calls("evaluate")[0][5:9] == ["--data", "eval.jsonl", "--reference", "models/smollm2-135m-instruct"]
    configs = [content["common"] | point["own"] for content in [manifest()] for point in content["points"]]
    assert [config["seed_everything"] for config in configs] == [1, 2] * 3
    assert [config["model.loss.beta"] for config in configs] == [0.01, 0.01, 0.1, 0.1, 0.5, 0.5]
    table = Path("out/sweep.md").read_bytes()
    again = go(*BETAS, "--seeds", 1, 2, "--judge", "none")
    assert again.code == 0
    assert (len(calls("fit")), Path("out/sweep.md").read_bytes()) == (6, table)


def test_answers_are_judged_unless_told_otherwise(go):
    assert "win rate" not in go(*BETAS, "--judge", "none").out
    assert not calls("compare")
    ran = go(*BETAS)
    assert "win rate" in ran.out
    assert len(calls("compare")) == 2
    refused(go(*BETAS, "--judge", "llm"), 64, "--judge_model")


def test_a_failed_point_is_reported_with_its_code_and_tried_again(go):
    Path("fail-beta-0.1").touch()
    refused(go(*BETAS), 76, "the loss became NaN at out/points/beta-0.1.log")
    assert "| 0.1 | failed |" in Path("out/sweep.md").read_text()
    Path("fail-beta-0.1").unlink()
    assert go(*BETAS).code == 0
    assert len(calls("fit")) == 4


def test_a_point_whose_config_changed_is_not_taken_for_done(go):
    assert go(*BETAS).code == 0
    rate = ("--model.learning_rate", "1e-6")
    refused(go(*BETAS, *rate), 73, "differs in beta-0.01: model.learning_rate: 2e-05 there, 1e-06 now")
    json_lines(Path("train.jsonl"), pairs(5))
    refused(go(*BETAS), 73, "content of train.jsonl")
    assert len(calls("fit")) == 3
    assert go(*BETAS, *rate, "--fresh").code == 0
    assert len(calls("fit")) == 6
    aside = [path.name for path in Path("out/points").glob("beta-0.01.2*")]
    assert len(aside) == 1
    refused(go(*OVER, "0.01", *rate), 73, "beta-0.1: it is not among the points of this command")
    assert go(*BETAS, "1.0", *rate).code == 0
    assert len(calls("fit")) == 7


def test_one_point_of_a_slurm_array(go, monkeypatch):
    refused(go(*BETAS, "--point", "auto"), 64, "expected a number from 1 to 3")
    refused(go(*BETAS, "--point", "4"), 64, "--array=1-3")
    for task in (3, 1, 2):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        assert not Path("out/sweep.md").exists()
        assert go(*BETAS, "--point", "auto").code == 0
    assert [words[-3].rpartition("/")[2] for words in calls("fit")] == ["beta-0.5", "beta-0.01", "beta-0.1"]
    assert Path("out/sweep.md").exists()  # by the last one
    refused(go(*BETAS, "1.0", "--point", "4"), 73, "beta-1.0: it is not among the points of the manifest")


def test_a_report_of_what_is_there(go, place):
    refused(run("sweep", "--output_dir", "out", "--report"), 66, "no manifest of a sweep")
    assert go(*BETAS).code == 0
    Path("out/points/beta-0.1.status.json").unlink()
    ran = run("sweep", "--output_dir", "out", "--report", "--kl", "generated")
    assert ran.code == 0
    assert "1 of 3 points are not done" in ran.out
    assert json.loads(Path("out/sweep.json").read_text())["kl"] == "kl/generated/token"
    assert len(calls("fit")) == 3


def test_a_dry_run_prints_what_would_be_run_and_writes_nothing(go):
    ran = go(*OVER, "0.1", "--dry_run", "--evaluate", "--max_new_tokens 4")
    assert ran.code == 0, ran
    assert not Path("out").exists()
    lines = [shlex.split(line) for line in ran.out.splitlines()]
    assert [words[len(PROGRAM)] for words in lines] == ["precompute", "fit", "evaluate"]
    assert lines[2][-2:] == ["--max_new_tokens", "4"]
    # What is printed works as it stands.
    for words in lines:
        Path("out").mkdir(exist_ok=True)
        assert subprocess.run(words, env=os.environ).returncode == 0
    assert Path("out/points/beta-0.1/eval.summary.json").exists()


@pytest.mark.parametrize(
    ("more", "looked_up"),
    [
        ((*OVER, "0.1"), [True]),
        ((*OVER, "0.1", "--no_precompute"), [False]),
        ((*OVER, "0.1", "--model.reference", "FrozenCopy"), [False]),
        (("--over", "model.policy.path", "a", "b"), [False, False]),
        (("--over", "data.max_length", "64", "128"), [False, False]),
        (("--over", "trainer.precision", "32-true", "bf16-mixed"), [False, False]),
        (("--over", "model.learning_rate", "1e-5"), [True]),
        (("--over", "model.loss", "DPOLoss", "SimPOLoss", "TDPO2Loss", "IPOLoss"), [True, False, False, True]),
    ],
)
def test_the_reference_is_computed_once_where_no_point_changes_it(go, more, looked_up):
    ran = go(*more)
    assert ran.code == 0, ran
    assert ["--model.reference=Precomputed" in words for words in calls("fit")] == looked_up
    assert len(calls("precompute")) == any(looked_up)


def test_the_reference_that_a_config_names_is_the_one_of_the_evaluation(go):
    reference = ("--model.reference", "FrozenCopy", "--model.reference.path", "sft/final_model")
    assert go(*OVER, "0.1", *reference).code == 0
    assert "sft/final_model" in calls("evaluate")[0]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ((), 64, "nothing is swept"),
        ((*OVER,), 64, "a key without values"),
        ((*OVER, "0.1", *OVER, "0.2"), 64, "the key is given twice"),
        ((*OVER, "0.1", "--jobs", "0"), 64, "expected 1 or more"),
        ((*OVER, "0.01..0.5", "--engine", "optuna", "--trials", "0"), 64, "--trials"),
        ((*OVER, "0.1", "--evaluate", "--max_tokens 3"), 64, "--max_tokens"),
        ((*OVER, "0.1", "--evaluate", "--max_new_tokens 0"), 64, "max_new_tokens"),
        ((*OVER, "0.1", "--evaluate", "--chat_template 'a"), 64, "--evaluate"),
        ((*OVER, "0.1", "--seeds", "x"), 64, "invalid int value"),
        (("--over", "model.loss.bet", "0.1"), 64, "model.loss.bet"),
        ((*OVER, "-3"), 64, "beta"),
        ((*OVER, "0.1", "--modle", "x"), 64, "the option modle does not exist"),
        ((*OVER, "0.1", "--data.eval", "null"), 64, "no held-out rows"),
    ],
)
def test_what_is_refused_before_anything_is_written(go, more, code, said):
    refused(go(*more), code, said)
    assert not Path("out").exists()


def test_held_out_rows_of_its_own(go):
    json_lines(Path("other.jsonl"), pairs(3))
    own = ("--data.eval", "null", "--eval_data", "other.jsonl", "--evaluate", "--no_generate")
    assert go(*OVER, "0.1", *own).code == 0
    assert {"other.jsonl", "--no_generate"} <= set(calls("evaluate")[0][:-2])


def test_a_search_by_optuna_and_more_trials(go):
    space = (*OVER, "0.01..0.5", "--engine", "optuna", "--jobs", 2)
    assert go(*space, "--trials", 2).code == 0
    ran = go(*space, "--trials", 3)
    assert ran.code == 0, ran
    assert (len(calls("fit")), len(manifest()["points"]), len(calls("precompute"))) == (3, 3, 1)
    assert "3 of 3 trials" in ran.out
    assert len(json.loads(Path("out/sweep.json").read_text())["points"]) == 3
    refused(go(*space, "--seeds", 1), 64, "Optuna chooses points")


def test_held_out_rows_are_encoded_as_in_training(go):
    rows = ("--data.max_length", 77, "--data.overlong", "drop", "--data.ignore_columns", "[a, b]")
    rows += ("--data.bad_rows", "drop")
    machine = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--data.columns.prompt", "question")
    assert go(*OVER, "0.1", *rows, *machine, "--evaluate", "--limit_rows 3").code == 0
    (words,) = calls("evaluate")
    for flag in (
        "max_length=77",
        "overlong=drop",
        "bad_rows=drop",
        "columns.prompt=question",
        "precision=32-true",
        "accelerator=cpu",
    ):
        assert f"--{flag}" in words
    assert words[words.index("--ignore_columns") + 1 :][:4] == ["a", "b", "--limit_rows", "3"]
    date = next(word for word in words if word.startswith("--template_date="))
    assert date.replace("--", "--data.") in calls("fit")[0]


def test_one_column_that_is_left_aside_is_a_word(go):
    """As messages propose it: `--data.ignore_columns context`, without brackets."""
    assert go(*OVER, "0.1", "--data.ignore_columns", "context").code == 0
    (words,) = calls("evaluate")
    assert words[words.index("--ignore_columns") + 1] == "context"
