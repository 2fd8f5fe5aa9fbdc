"""`evaluate` that is interrupted anywhere goes on, and an output that is there is kept."""

import os
import signal
import subprocess
import sys

import pytest
from support.chat_templates import SCHEMA, TOOLS
from support.command_line import json_lines, pairs, refused, run
from support.evaluations import SMALL, check_same, evaluate
from support.signalled import run_signalled

from dpo_lightning.evaluation.result_file import read_result
from dpo_lightning.evaluation.work_file import WorkFolder


@pytest.mark.parametrize("after", [1, 3, 5])
def test_killed_and_started_again(bench, result, after, monkeypatch, tmp_path):
    """At most the batch in flight is computed again, and the result is the same."""
    output = tmp_path / "eval.json"
    append, batches = WorkFolder.append, []

    def dying(self, name, rows):
        append(self, name, rows)
        batches.append(sorted(rows))
        if len(batches) == after:
            with self._file.open("ab") as file:
                file.write(b'{"pass": "scores", "row": 1, "val')  # a line that was being written
            raise KeyboardInterrupt

    monkeypatch.setattr(WorkFolder, "append", dying)
    assert evaluate(bench, output, "--batch_size", 2).code == 130
    assert not output.exists()
    first, batches[:] = [*batches], []
    monkeypatch.setattr(WorkFolder, "append", lambda self, name, rows: (append(self, name, rows), batches.append(rows)))
    assert evaluate(bench, output, "--batch_size", 2).code == 0
    assert len(first) + len(batches) == 5 + 2
    check_same(result, read_result(output))


def test_killed_between_the_items_and_their_summary(bench, result, monkeypatch, tmp_path):
    """Everything was computed, and is written again."""
    output = tmp_path / "eval.json"
    monkeypatch.setattr("dpo_lightning.evaluation.run.write_page", raise_interrupt)
    assert evaluate(bench, output).code == 130
    (tmp_path / "eval.summary.json").unlink()
    monkeypatch.undo()
    monkeypatch.setattr(WorkFolder, "append", None)
    assert evaluate(bench, output).code == 0
    check_same(result, read_result(output))


def raise_interrupt(*_):
    raise KeyboardInterrupt


def test_done_is_not_done_again(bench, result, monkeypatch):
    """The same inputs print the same; other inputs are refused, and replaced by --fresh."""
    monkeypatch.setattr(WorkFolder, "append", None)
    ran = evaluate(bench, bench.folder / "eval.json")
    assert ran.code == 0, ran
    assert "evaluated before" in ran.out
    refused(evaluate(bench, bench.folder / "eval.json", "--seed", 1), 73, "sampling", "--fresh")
    refused(evaluate(bench, bench.folder / "eval.json", "--beta", 0.3), 73, "loss")


def test_other_columns_are_other_inputs(bench, tmp_path):
    """The same prompts and answers, with other slices."""
    rows = [{**row, "topic": "ab"[n % 2], "language": ("en", "ko")[n % 2]} for n, row in enumerate(pairs(4, 70))]
    data, output = json_lines(tmp_path / "rows.jsonl", rows), tmp_path / "eval.json"
    options = ("--no_generate", "--ignore_columns")
    assert evaluate(bench, output, *options, "topic", data=data).code == 0
    refused(evaluate(bench, output, *options, "topic", "language", data=data), 73, "rows")
    refused(evaluate(bench, output, "--no_generate", "--columns.group=topic", data=data), 73, "rows")


def test_other_tools_are_other_inputs(bench, tmp_path):
    """They are part of what the model reads."""
    data, template = json_lines(tmp_path / "rows.jsonl", [{"prompt": "Hi", "known": [SCHEMA]}]), tmp_path / "t.jinja"
    template.write_text(TOOLS)
    options = ("--kind", "prompts", "--chat_template", template)
    output = tmp_path / "eval.json"
    assert evaluate(bench, output, *options, "--ignore_columns", "known", data=data).code == 0
    refused(evaluate(bench, output, *options, "--columns.tools=known", data=data), 73, "rows")


def test_an_output_that_is_something_else_is_kept(bench, tmp_path):
    output = tmp_path / "notes.json"
    output.write_text("mine")
    refused(evaluate(bench, output), 73, "--output")
    assert output.read_text() == "mine"
    refused(evaluate(bench, tmp_path / "eval.txt"), 64, "--output")


def test_a_real_kill(bench, tmp_path):
    """SIGKILL leaves nothing that another start does not take or replace."""
    output = tmp_path / "eval.json"
    args = [
        "evaluate",
        "--model",
        bench.folder / "run" / "final_model",
        "--data",
        bench.eval,
        "--output",
        output,
        *SMALL,
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-m", "dpo_lightning", *map(str, args), "--batch_size", "1"], env=env)
    work = tmp_path / ".eval.json.work"
    while process.poll() is None and not any(path.stat().st_size for path in work.glob("*.jsonl")):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(*args).code == 0
    assert len(read_result(output).items) == 9
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "place", "kept"),
    [
        ("SIGTERM", "evaluation.run:score_pairs:2", {"scores": 4, "answers": 0}),
        ("SIGHUP", "models.generation:SampleByPrompt.__call__:3", {"scores": 9, "answers": 0}),
    ],
)
def test_a_signal(bench, result, tmp_path, name, place, kept):
    """It stops after a batch or within an answer, and the same command goes on to the same items."""
    output = tmp_path / "eval.json"
    model = bench.folder / "run" / "final_model"
    args = ["evaluate", "--model", model, "--data", bench.eval, "--output", output, *SMALL, "--batch_size", "2"]
    code, said = run_signalled(name, f"dpo_lightning.{place}", *args)
    assert code == 75, said
    assert f"error: stopped by {name}: the rows that were computed are kept\nfix: run the same" in said
    assert not output.exists()
    assert {each: len(WorkFolder(output).load(each)) for each in kept} == kept
    assert run(*args).code == 0
    check_same(result, read_result(output))


def test_two_at_once_into_one_output(bench, tmp_path):
    """The second one ends, and the first one is not disturbed."""
    other = WorkFolder(tmp_path / "eval.json")
    other.begin({"of": "another process"})
    other.append("scores", {0: {"loss": 0.5}})
    refused(evaluate(bench, tmp_path / "eval.json"), 73, "another process evaluates", "--output")
    assert other.load("scores") == {0: {"loss": 0.5}}


def test_a_kept_row_that_was_changed_is_computed_again(tmp_path):
    """Also one that is no row, and a pipe among the files."""
    work = WorkFolder(tmp_path / "eval.json")
    work.begin({"a": 1})
    work.append("scores", {0: {"loss": 0.5}, 1: {"loss": 0.25}})
    file = work.path / "0.jsonl"
    file.write_bytes(file.read_bytes().replace(b"0.25", b"0.75") + b"[" * 100_000 + b"\n")
    os.mkfifo(work.path / "1.jsonl")
    assert work.load("scores") == {0: {"loss": 0.5}}
    work.release()
