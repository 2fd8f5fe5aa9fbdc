"""`check-data`: the report on a terminal and as JSON, its exit codes, and what a model adds."""

import json
import os
import subprocess
import sys

import pytest
from support.command_line import ROOT, json_lines, pairs, refused, run, watch_loading

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
CHAT = [
    {"role": "user", "content": "안녕?"},
    {"role": "assistant", "content": "반가워요."},
    {"role": "user", "content": "더 말해 줘."},
    {"role": "assistant", "content": "그래요.", "train": False},
    {"role": "user", "content": "좋아."},
    {"role": "assistant", "content": "네."},
]
ROWS = {
    "pairs": pairs(6),
    "ranked": [{"prompt": f"Name {w}.", "responses": [f"{w} is one", f"{w}", "no"]} for w in ("rivers", "cities")],
    "unpaired": [{"prompt": f"Say {w}.", "completion": w, "label": w < "c"} for w in ("apple", "bread", "cider")],
    "sft": [{"prompt": f"Say {w}.", "completion": w} for w in ("apple", "bread", "cider")],
}


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def report(*args, code=0):
    ran = run("check-data", *args, "--json")
    assert (ran.code, ran.err) == (code, ""), ran
    return json.loads(ran.out)


@pytest.mark.parametrize("kind", ROWS)
def test_the_kind_is_recognized_by_the_columns(place, wide, kind):
    rows = json_lines(place / "rows.jsonl", ROWS[kind])
    found = report(rows)
    assert (found["kind"], found["recognized"], found["rows"]) == (kind, True, len(ROWS[kind]))
    named = report(rows, "--kind", kind)
    assert named == {**found, "recognized": False}
    out = run("check-data", rows).out
    assert "(recognized by the columns)" in out
    assert f"{rows}:3" in out or kind == "ranked"
    assert out.endswith("result: `fit` would take these rows\n")


def test_a_label_that_names_a_category_is_no_verdict(place):
    rows = [{"prompt": f"Say {w}.", "completion": w, "label": "food"} for w in ("apple", "bread")]
    assert report(json_lines(place / "rows.jsonl", rows))["kind"] == "sft"


def test_pairs_can_be_read_as_unpaired_rows(place):
    found = report(json_lines(place / "rows.jsonl", pairs(4)), "--kind", "unpaired")
    assert (found["rows"], [row["label"] for row in found["first_rows"]]) == (8, [True, False, True])


def test_columns_are_renamed_with_and_without_the_prefix_of_fit(place):
    rows = json_lines(place / "rows.jsonl", [{"q": f"Say {w}.", "a": w, "b": "no"} for w in ("apple", "bread")])
    for prefix in ("--columns", "--data.columns"):
        found = report(rows, f"{prefix}.prompt", "q", f"{prefix}.chosen=a", f"{prefix}.rejected", "b")
        assert (found["kind"], found["first_rows"][0]["texts"][1]["pieces"][0]["text"]) == ("pairs", "apple")
    refused(run("check-data", rows, "--columns.prompt"), 64, "--columns.prompt names no column")


def test_rows_that_fit_refuses_are_reported_and_the_others_analysed(place, wide):
    rows = pairs(6)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[4]["chosen"] = ""
    file = json_lines(place / "rows.jsonl", rows)
    ran = run("check-data", file)
    assert ran.code == 65
    assert ran.out.rstrip().endswith("result: `fit` would refuse these rows: 2 problems, below")
    assert f"equal, so there is no preference at {file}:2" in ran.err
    assert f"'chosen' is empty at {file}:5" in ran.err
    found = report(file, code=65)
    assert [error["where"] for error in found["errors"]] == [f"{file}:2", f"{file}:5"]
    assert all(error["fix"] for error in found["errors"])
    assert (found["exit_code"], found["rows"]) == (65, 4)


def test_strict_turns_notes_into_errors(place):
    rows = json_lines(place / "rows.jsonl", [*pairs(3), pairs(1)[0]])
    assert report(rows)["notes"] == [
        {"text": f"repeated rows: 1 ({rows}:4 = {rows}:1)", "places": [f"{rows}:4 = {rows}:1"]}
    ]
    assert report(rows, "--strict", code=65)["errors"][0]["where"] == f"{rows}:4"


def test_many_bad_rows_end_the_reading_as_in_fit(place):
    rows = json_lines(place / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 1005)
    found = report(rows, code=65)
    assert found["errors"][0]["what"] == "stopped after 1,000 bad rows"
    assert (found["rows"], found["lengths"], found["findings"]) == (0, None, [])


def test_a_single_row_is_noted(place):
    rows = json_lines(place / "rows.jsonl", pairs(1))
    assert {"text": "there is only 1 row", "places": []} in report(rows)["notes"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["nowhere.jsonl"], 66, "no such file"),
        (["rows.jsonl", "--eval", "nowhere.jsonl"], 66, "no such file"),
        (["rows.jsonl", "--model", "nowhere/at/all"], 66, "the model folder does not exist"),
        (["rows.jsonl", "--max_length", "1"], 64, "max_length=1 is less than 2"),
        (["rows.jsonl", "--kind", "triples"], 64, "--kind"),
        ([], 64, "FILE"),
    ],
)
def test_it_refuses_in_a_few_lines(place, args, code, said):
    json_lines(place / "rows.jsonl", pairs(3))
    refused(run("check-data", *args), code, said)


def test_a_conversation_shows_which_turns_are_scored(place, wide):
    rows = json_lines(place / "rows.jsonl", [{"messages": CHAT}, {"messages": [*CHAT[:1], CHAT[-1]]}])
    pieces = report(rows)["first_rows"][0]["texts"][-1]["pieces"]
    assert [piece["scored"] for piece in pieces] == [True, False, False, False, True]
    assert "«[assistant] 반가워요.» [user] 더 말해 줘. [assistant] 그래요." in run("check-data", rows).out


def test_tools_and_control_characters_are_shown_escaped(place, wide):
    rows = [{"prompt": f"Say {i}\u202e.", "chosen": "a\tb", "rejected": "\u200bno", "tools": [TOOL]} for i in range(2)]
    file = json_lines(place / "rows.jsonl", rows)
    out = run("check-data", file).out
    assert "\u202e" not in run("check-data", file, "--json").out
    assert report(file)["first_rows"][0]["texts"][1]["pieces"][0]["text"] == rows[0]["prompt"]
    assert "look_up" in out
    assert r"Say 0\u202e." in out
    assert r"a\tb" in out
    assert "\u202e" not in out
    assert "\x1b" not in out


def test_colours_mark_what_is_scored_unless_no_color_is_set(place, wide, monkeypatch, capsys):
    from dpo_lightning.__main__ import main

    rows = json_lines(place / "rows.jsonl", pairs(3))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["check-data", str(rows)]) == 0
    out = capsys.readouterr().out
    assert f"\x1b[1m{pairs(1)[0]['chosen']}\x1b[0m" in out
    assert f"\x1b[2m{pairs(1)[0]['prompt']}\x1b[0m" in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["check-data", str(rows)]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(place, monkeypatch, width):
    from dpo_lightning.data.checks.display_width import measure_width

    monkeypatch.setenv("COLUMNS", str(width))
    rows = [
        {"prompt": f"{i} 가나다 라마바 " * 40, "chosen": "漢字かな😀 " * 60, "rejected": f"e\u0301 word{i} " * 50}
        for i in range(4)
    ]
    json_lines(place / "rows.jsonl", rows)
    out = run("check-data", "rows.jsonl").out
    assert max(map(measure_width, out.splitlines())) <= width
    assert 20 <= len(out.splitlines()) <= 50


def test_a_model_counts_and_shows_the_tokens_that_are_trained(place, tiny_llama):
    rows = json_lines(place / "rows.jsonl", pairs(6))
    found = report(rows, "--model", tiny_llama)
    assert found["lengths"]["unit"] == "tokens"
    assert (found["lengths"]["max_length"], found["lengths"]["over_max_length"]) == (1024, 0)
    prompt, chosen, rejected = found["first_rows"][0]["texts"]
    assert [piece["scored"] for piece in prompt["pieces"]] == [False]
    assert prompt["pieces"][0]["text"].endswith("<|im_start|>assistant\n")
    assert chosen["pieces"][0] == {"text": pairs(1)[0]["chosen"] + "<|im_end|>", "scored": True}
    assert rejected["name"] == "rejected"
    limit = found["lengths"]["texts"]["row"]["max"] - 1
    long = report(rows, "--model", tiny_llama, "--max_length", limit, code=65)
    assert long["lengths"]["over_max_length"] == len(long["errors"]) >= 1
    assert f"but max_length is {limit}" in long["errors"][0]["what"]
    for overlong, note in (("drop", "dropped"), ("truncate", "max_length")):
        taken = report(rows, "--model", tiny_llama, "--max_length", limit, "--overlong", overlong)
        assert note in " ".join(line["text"] for line in taken["notes"])
        assert taken["lengths"]["over_max_length"] == long["lengths"]["over_max_length"]


def test_a_row_that_cannot_be_encoded_is_an_error_and_the_others_are_counted(place, tiny_llama):
    rows = pairs(5)
    rows[2]["chosen"] += "<|im_end|> more"
    file = json_lines(place / "rows.jsonl", rows)
    found = report(file, "--model", tiny_llama, code=65)
    assert [error["where"] for error in found["errors"]] == [f"{file}:3"]
    assert found["lengths"]["over_max_length"] == 0
    assert report(file, "--model", tiny_llama, "--special_tokens", "neutralize")["errors"] == []


def test_without_a_model_none_is_loaded(place, monkeypatch):
    loaded = watch_loading(monkeypatch)
    report(json_lines(place / "rows.jsonl", pairs(3)))
    assert loaded == []


PROBE = """
import sys
from dpo_lightning.__main__ import main
assert main(["check-data", *sys.argv[1:]]) == 0
heavy = {"torch", "lightning", "transformers", "peft", "numpy"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(("args", "loaded"), [(["--help"], "[]"), (["rows.jsonl"], "['numpy']")])
def test_nothing_heavy_is_imported(place, args, loaded):
    json_lines(place / "rows.jsonl", pairs(3))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROBE, *args], capture_output=True, text=True, cwd=place, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == loaded


def test_a_closed_pipe_ends_it_quietly(place):
    rows = json_lines(place / "rows.jsonl", pairs(6))
    command = f"'{sys.executable}' -m dpo_lightning check-data {rows} --json | head -c 1"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=env)
    assert (done.stdout, done.stderr) == ("{", "")


def test_two_places_stay_on_a_line_and_many_problems_are_referred_to_json(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = json_lines(place / "rows.jsonl", [*pairs(6), *pairs(6), *([{**pairs(1)[0], "chosen": ""}] * 12)])
    ran = run("check-data", "rows.jsonl")
    assert ran.code == 65
    assert f"({rows.name}:7 = {rows.name}:1, " in ran.out
    assert not any(line.endswith((" =", "=")) or line.lstrip().startswith("=") for line in ran.out.splitlines())
    assert ran.out.endswith("would refuse these rows: 12 problems, the first 10 below, all with --json\n")
