"""`evaluate --generator`: the answers of a server, what is sent, and what becomes of one that changes or fails."""

import json

import pytest
from support.chat_servers import completion, serve
from support.chat_templates import SCHEMA, TOOLS
from support.command_line import json_lines, refused
from support.evaluations import evaluate

from dpo_lightning.errors import ExitCode
from dpo_lightning.evaluation.result_file import read_result


def test_a_server_answers(bench, tmp_path):
    """Pairs are scored here; the server gets each prompt with its seed, and its answers have no divergence."""
    with serve(lambda request: completion(f"{len(request['messages'][-1]['content'])} letters")) as server:
        ran = evaluate(bench, tmp_path / "eval.json", "--generator", server.url)
        assert ran.code == 0, ran
    result = read_result(tmp_path / "eval.json", answered=True)
    assert [item["generated"] for item in result.items] == [f"{len(item['prompt'])} letters" for item in result.items]
    sent = {request["seed"] for path, _, request in server.asked if path.endswith("completions")}
    assert sent == {item["seed"] for item in result.items}
    assert all(item["kl"] is None and item["tokens"] > 0 and item["loss"] is not None for item in result.items)
    assert not {"kl/generated/token", "ended"} & result.summary["measures"].keys()
    assert result.summary["made_by"]["generator"]["model"] == "served"  # its first, as no name was given


def test_a_server_with_another_model(bench, tmp_path):
    """Whose answers are not mixed with those of the first one, and are not taken for them when all is done."""
    output, left = tmp_path / "eval.json", [3]

    def reply(request):
        left[0] -= 1
        return completion(f"by {request['model']}") if left[0] >= 0 else (403, {})

    with serve(reply) as server:
        options = ("--generator", server.url, "--batch_size", 1)
        server.model = "one"
        refused(evaluate(bench, output, *options), 64, "403")
        server.model, left[0] = "two", 9
        assert evaluate(bench, output, *options).code == 0
        result = read_result(output)
        assert {item["generated"] for item in result.items} == {"by two"}
        assert result.summary["made_by"]["generator"]["model"] == "two"
        assert "evaluated before" in evaluate(bench, output, *options).out
        server.model = "three"
        refused(evaluate(bench, output, *options), 73, "generator")


def test_a_complete_output_is_printed_without_its_server(bench, tmp_path, monkeypatch):
    """Which is tried once; the name of its model is the one that the output has."""
    output = tmp_path / "eval.json"
    with serve(lambda request: completion("x")) as server:
        options = ("--generator", server.url)
        assert evaluate(bench, output, *options).code == 0
    monkeypatch.setattr("time.sleep", None)
    ran = evaluate(bench, output, *options)
    assert ran.code == 0, ran
    assert "evaluated before" in ran.out
    assert "note: the server lists no models: its model is taken to be served, as in the output" in " ".join(
        ran.out.split()
    )
    refused(evaluate(bench, output, *options, "--seed", 1), 73, "of other inputs: sampling at")
    refused(evaluate(bench, output, *options, "--served_model", "two"), 73, "of other inputs: generator at")


@pytest.mark.parametrize("made_by", [None, "x", [], {"generator": None}, {"generator": {"url": 1}}])
def test_an_output_that_says_something_else_is_refused(bench, tmp_path, made_by):
    output = tmp_path / "eval.json"
    with serve(lambda request: completion("x")) as server:
        options = ("--generator", server.url)
        assert evaluate(bench, output, *options).code == 0
        summary = tmp_path / "eval.summary.json"
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"made_by": made_by}))
        ran = evaluate(bench, output, *options)
    assert ran.code in (ExitCode.INPUT_MISSING, ExitCode.OUTPUT), ran
    assert "fix: " in ran.err


def test_answers_without_text_are_noted(bench, tmp_path):
    """Such as of a model that reasons until it may write no more; one that ends by itself is measured as such."""
    replies = [completion(None, finish_reason="length"), *[completion("yes", finish_reason="stop")] * 8]
    with serve(lambda request: replies.pop()) as server:
        ran = evaluate(bench, tmp_path / "eval.json", "--generator", server.url)
    assert ran.code == 0, ran
    said = "1 answer of the server has no text"
    assert f"note: {said}" in " ".join(ran.out.split())
    assert said in (tmp_path / "eval.html").read_text()
    assert read_result(tmp_path / "eval.json").summary["measures"]["ended"]["estimate"] == 8 / 9


def test_tools_of_a_row_are_sent(bench, tmp_path):
    rows = [{"prompt": "Hi", "tools": [SCHEMA]}, {"prompt": "Ho"}]
    data, template = json_lines(tmp_path / "rows.jsonl", rows), tmp_path / "template.jinja"
    template.write_text(TOOLS)
    with serve(lambda request: completion("x")) as server:
        options = ("--generator", server.url, "--chat_template", template)
        ran = evaluate(bench, tmp_path / "eval.json", *options, data=data)
        sent = {each["messages"][0]["content"]: each.get("tools") for path, _, each in server.asked if each}
    assert ran.code == 0, ran
    assert sent == {"Hi": [SCHEMA], "Ho": None}


def test_a_prompt_that_the_server_refuses(bench, tmp_path):
    """The row is named: one that is too long would be looked for among all."""
    data = json_lines(tmp_path / "rows.jsonl", [{"prompt": text} for text in ("Hi", "long " * 9, "Ho")])

    def reply(request):
        return (400, {"error": "too long"}) if "long" in request["messages"][0]["content"] else completion("x")

    with serve(reply) as server:
        ran = evaluate(bench, tmp_path / "eval.json", "--generator", server.url, data=data)
    refused(ran, 64, "rows.jsonl:2", "400", "too long")


def test_what_is_no_url(bench, tmp_path):
    refused(evaluate(bench, tmp_path / "eval.json", "--generator", "http://127.0.0.1:1/모델"), 64, "URL")


def test_a_server_that_is_down(bench, tmp_path, monkeypatch):
    """It is tried as often as one request is, not once for each prompt."""
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    ran = evaluate(bench, tmp_path / "eval.json", "--generator", "http://127.0.0.1:9")
    refused(ran, 69, "does not answer")
    assert pauses == [1, 2, 4, 8, 16]
