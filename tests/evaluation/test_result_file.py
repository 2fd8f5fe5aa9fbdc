"""Result files: what is written is read again, and what is damaged or hostile is refused with its line."""

import json
import math

import pytest
from support.row_files import refusal, written

from dpo_lightning.errors import ExitCode
from dpo_lightning.evaluation.result_file import read_result, summary_path, write_result

ITEMS = [
    {"prompt": "Name a colour.", "generated": "Blue\n\n```\n  x\n```", "margin": 0.5},
    {"prompt": [{"role": "user", "content": "안녕?"}], "generated": "한글", "margin": None},
    {"prompt": "Nothing", "generated": ""},
]
SUMMARY = {"made_by": {"model": {"path": "m"}}, "measures": {"loss": {"estimate": 0.5}}}


def stored(folder, name="eval.json", items=ITEMS):
    path = folder / name
    write_result(path, items, SUMMARY)
    return path


def refuse(path, code, *parts, **options):
    return refusal(lambda: read_result(path, **options), code, *parts)


@pytest.mark.parametrize("name", ["eval.json", "eval.jsonl"])
def test_what_is_written_is_read(tmp_path, name):
    path = tmp_path / name
    result = write_result(path, ITEMS, SUMMARY)
    assert result == read_result(str(path))
    assert result.items == ITEMS
    assert result.summary["made_by"] == SUMMARY["made_by"]
    assert (result.summary["format"], result.summary["items"]["count"]) == (1, 3)
    assert {entry.name for entry in tmp_path.iterdir()} == {name, "eval.summary.json"}


def test_the_list_is_json_and_the_lines_are(tmp_path):
    assert json.loads(stored(tmp_path).read_text("utf-8")) == ITEMS
    assert [json.loads(line) for line in stored(tmp_path, "e.jsonl").read_text("utf-8").splitlines()] == ITEMS


def test_numbers_that_json_lacks_are_null(tmp_path):
    path = stored(tmp_path, items=[ITEMS[0] | {"margin": math.nan, "loss": -math.inf}])
    assert read_result(path).items == [ITEMS[0] | {"margin": None, "loss": None}]


def test_line_separators_within_a_text_do_not_end_a_line(tmp_path):
    items = [{"prompt": "a\u2028b\x85c\rd", "generated": "e\u0301 한\u1112\u1161\u11ab"}]
    assert read_result(stored(tmp_path, "e.jsonl", items)).items == items


def test_a_file_of_another_program_has_no_summary(tmp_path):
    path = written(tmp_path, '[{"prompt": "a", "generated": "b"}]', "other.json")
    assert read_result(path) == ([{"prompt": "a", "generated": "b"}], None, tmp_path / "other.json")


def chat(content):
    return [{"prompt": [{"role": "user", "content": content}], "generated": "b"}]


@pytest.mark.parametrize("content", [[{"type": "text", "text": "a"}, {"type": "text", "text": " b"}], ["a", " b"]])
def test_content_parts_are_joined(tmp_path, content):
    """As in rows, so that judges and matching see one text."""
    path = written(tmp_path, json.dumps(chat(content)), "other.json")
    assert read_result(path).items == chat("a b")


@pytest.mark.parametrize(
    ("content", "said"), [([{"type": "image_url", "image_url": {"url": "x"}}], "needs pictures"), (5, "a number")]
)
def test_content_that_is_not_text(tmp_path, content, said):
    path = written(tmp_path, json.dumps(chat(content)), "other.json")
    refuse(path, ExitCode.DATA, "other.json:1", "message 1 of `prompt`", said)


def test_a_stop_between_the_files_leaves_no_summary_of_other_items(tmp_path, monkeypatch):
    path = stored(tmp_path)

    def stop(value):
        raise KeyboardInterrupt

    monkeypatch.setattr("dpo_lightning.atomic_files.sync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_result(path, ITEMS[:2], SUMMARY)
    assert read_result(path) == (ITEMS[:2], None, path)


def test_a_missing_file(tmp_path):
    refuse(tmp_path / "none.json", ExitCode.INPUT_MISSING, "none.json")


@pytest.mark.parametrize("text", ["", "[]", "\n\n"])
def test_an_empty_file(tmp_path, text):
    refuse(written(tmp_path, text, "eval.json"), ExitCode.DATA, "no items", "eval.json")


def test_a_list_that_is_cut(tmp_path):
    path = stored(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    refuse(path, ExitCode.DATA, "eval.json:4", "cut off")


def test_lines_that_are_cut(tmp_path):
    """In a line by its JSON, and between lines by the summary."""
    path = stored(tmp_path, "eval.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refuse(path, ExitCode.DATA, "eval.jsonl:3")
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    refuse(path, ExitCode.DATA, "3 items were written", "it has 2")


def test_an_item_that_is_changed(tmp_path):
    path = stored(tmp_path)
    path.write_text(path.read_text("utf-8").replace("Blue", "Red!"), "utf-8")
    refuse(path, ExitCode.DATA, "has changed", "eval.summary.json")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[1, {"prompt": "a"}]', "the item is not an object"),
        ('{"format": 1, "measures": {}}', "no `prompt`"),
        ('[\n{"prompt": "a"},\n{"generated": "b"}]', "eval.json:3"),
        ('[{"prompt": [1]}]', "`prompt`"),
        ('[{"prompt": []}]', "`prompt`"),
        ('[{"prompt": {"a": 1}}]', "`prompt`"),
        ('[{"prompt": "a", "generated": 1}]', "`generated` is not a text"),
        ('[{"prompt": "a", "margin": NaN}]', "NaN is not JSON"),
        ('[{"prompt": "a", "margin": 1e999}]', "too large"),
        (f'[{{"prompt": "a", "line": {"9" * 5000}}}]', "too many digits"),
        (f'[{{"prompt": "a", "x": {"[" * 100_000}{"]" * 100_000}}}]', "nested too deep"),
        ('[{"prompt": "a", "prompt": "b"}]', "duplicate key"),
        (r'[{"prompt": "a", "generated": "\ud83d"}]', "surrogate"),
        ("<html>", "eval.json"),
        ("PK\x03\x04broken", "eval.json"),
    ],
)
def test_what_is_no_result_file(tmp_path, text, complaint):
    refuse(written(tmp_path, text, "eval.json"), ExitCode.DATA, complaint)


def test_every_item_has_an_answer_where_answers_are_compared(tmp_path):
    path = written(tmp_path, '[{"prompt": "a", "generated": ""},\n{"prompt": "b"}]', "eval.json")
    assert len(read_result(path).items) == 2
    refuse(path, ExitCode.DATA, "no answer", "eval.json:2", answered=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "ends early"),
        ("{", "ends early"),
        ("[1]", "not a summary"),
        ('{"format": 1}', "not a summary"),
        ('{"items": {}, "format": 2}', "format 2"),
        ('{"items": {}, "measures": {}}', "format None"),
        ('{"items": {}, "format": 1, "made_by": [], "measures": {}}', "no `made_by`"),
        (f'{{"items": {"[" * 100_000}', "nested too deep"),
    ],
)
def test_what_is_no_summary(tmp_path, text, complaint):
    path = stored(tmp_path)
    summary_path(path).write_text(text)
    refuse(path, ExitCode.DATA, complaint, "eval.summary.json")
