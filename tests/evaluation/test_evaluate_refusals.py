"""What `evaluate` refuses before it computes anything: files of the user in its way, and options that cannot be met."""

import shutil

import pytest
import torch
from support.command_line import json_lines, pairs, refused, run
from transformers import AutoModelForCausalLM

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.evaluation.result_file import read_result
from dpo_lightning.evaluation.work_file import WorkFolder


@pytest.fixture
def rows(tmp_path):
    return json_lines(tmp_path / "held_out.jsonl", pairs(3, 70))


def evaluate(model, data, output, *more):
    small = ("--precision", "32-true", "--max_new_tokens", 2, "--max_length", 128, "--accelerator", "cpu")
    return run("evaluate", "--model", model, "--data", data, "--output", output, *small, *more)


@pytest.mark.parametrize("name", ["rows.json", "rows.summary.json"])
def test_rows_are_never_replaced(tiny_llama, tmp_path, name):
    """Not even by --fresh."""
    rows = json_lines(tmp_path / name, pairs(3, 70))
    before = rows.read_bytes()
    refused(evaluate(tiny_llama, rows, tmp_path / "rows.json", "--fresh"), 73, "--data", name)
    assert rows.read_bytes() == before


def test_a_page_of_the_user_is_kept(tiny_llama, rows, tmp_path):
    page = tmp_path / "eval.html"
    page.write_text("mine")
    refused(evaluate(tiny_llama, rows, tmp_path / "eval.json"), 73, "eval.html", "--fresh")
    assert page.read_text() == "mine"


def test_the_summary_of_another_output_is_kept(tiny_llama, rows, tmp_path):
    """`eval.json` and `eval.jsonl` would have the same summary and page."""
    assert evaluate(tiny_llama, rows, tmp_path / "eval.json").code == 0
    before = (tmp_path / "eval.summary.json").read_bytes()
    refused(evaluate(tiny_llama, rows, tmp_path / "eval.jsonl"), 73, "eval.summary.json", "--fresh")
    assert (tmp_path / "eval.summary.json").read_bytes() == before
    assert evaluate(tiny_llama, rows, tmp_path / "eval.json").code == 0


def test_a_model_of_few_positions_needs_no_flag(tiny_llama, rows, tmp_path):
    """It reads 256 tokens, fewer than other models are given."""
    small = ("--precision", "32-true", "--accelerator", "cpu", "--no_generate")
    output = tmp_path / "eval.json"
    assert run("evaluate", "--model", tiny_llama, "--data", rows, "--output", output, *small).code == 0
    assert read_result(output).summary["made_by"]["truncation"] == "max_length 256, overlong error"
    longer = run("evaluate", "--model", tiny_llama, "--data", rows, "--output", output, *small, "--max_length", 257)
    refused(longer, 64, "--max_length", "256")


def test_one_pair_is_enough(tiny_llama, tmp_path):
    rows = json_lines(tmp_path / "one.jsonl", pairs(1, 70))
    assert evaluate(tiny_llama, rows, tmp_path / "eval.json").code == 0
    assert len(read_result(tmp_path / "eval.json").items) == 1


def test_prompts_with_a_column_of_their_own(tiny_llama, tmp_path):
    """Rows of an unknown column could be pairs under other names; the error names the flag for prompts."""
    rows = json_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Name colour {n}.", "topic": "x"} for n in range(3)])
    refused(evaluate(tiny_llama, rows, tmp_path / "eval.json"), 65, "--kind prompts")
    assert evaluate(tiny_llama, rows, tmp_path / "eval.json", "--kind", "prompts").code == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--beta", 0), "--beta"),
        (("--beta", "nan"), "--beta"),
        (("--reference", ""), "--reference"),
        (("--generator", "http://127.0.0.1:1", "--no_generate"), "--generator"),
    ],
)
def test_options_that_mean_nothing(tiny_llama, rows, tmp_path, options, named):
    refused(evaluate(tiny_llama, rows, tmp_path / "eval.json", *options), 64, named)


def test_rounded_weights_are_no_reference(tiny_llama, rows, tmp_path):
    """Every reward would be rounding, while the accuracy and its interval look like those of a trained model."""
    rounded = tmp_path / "rounded"
    shutil.copytree(tiny_llama, rounded)
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(rounded)
    ran = evaluate(tiny_llama, rows, tmp_path / "eval.json", "--reference", rounded)
    assert ran.code == 0
    assert "may be rounding" in ran.out
    assert "may be rounding" in (tmp_path / "eval.html").read_text()


@pytest.mark.parametrize("count", [0, -3])
def test_a_number_of_rows(tiny_llama, rows, tmp_path, count):
    refused(evaluate(tiny_llama, rows, tmp_path / "eval.json", "--limit_rows", count), 64, "--limit_rows")


@pytest.mark.parametrize(("name", "code"), [("warp", 64), ("cuda", 69)])
def test_a_device_that_is_not_there(tiny_llama, rows, tmp_path, name, code, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    refused(evaluate(tiny_llama, rows, tmp_path / "eval.json", "--accelerator", name), code, "accelerator")


def test_a_batch_that_cannot_be_kept(tmp_path):
    """Such as one whose folder another evaluation with the same output has removed when it was done."""
    with pytest.raises(UserError, match="cannot be kept") as raised:
        WorkFolder(tmp_path / "eval.json").append("scores", {0: {"loss": 1.0}})
    assert raised.value.code == ExitCode.IO


def test_a_prompt_that_ends_with_an_answer_is_noted(tiny_llama, tmp_path):
    chats = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}],
    ]
    rows = json_lines(tmp_path / "rows.jsonl", [{"prompt": chat} for chat in chats])
    ran = evaluate(tiny_llama, rows, tmp_path / "eval.json")
    assert ran.code == 0, ran
    assert f"note: prompts that end with an answer, after which the model speaks: 1 (first: {rows}:2)" in ran.out
