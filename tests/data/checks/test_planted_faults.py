"""Faults that are planted among 5,000 clean pairs are all found by file and line; the clean pairs raise nothing."""

import json

import pytest
from support.command_line import run
from support.planted_rows import FAULTS, make_clean_pairs, plant, write_rows

COUNT = 25
ALSO = {"near_repeated_rows": "respelled_prompts", "near_contradictions": "respelled_prompts"}
"""Findings that a planted fault implies."""


@pytest.fixture(scope="module")
def clean():
    return make_clean_pairs(5000)


def report(*args):
    ran = run("check-data", *args, "--json")
    assert ran.err == ""
    found = json.loads(ran.out)
    assert found["exit_code"] == ran.code
    return found


def findings(found):
    return {finding["name"]: finding["places"] for finding in found["findings"]}


def written_places(path, places):
    return {" = ".join(f"{path}:{line}" for line in lines) for lines in places}


def both_ways(places):
    """Each place and the same one with its two rows exchanged: which of two rows comes first is drawn."""
    return places | {" = ".join(reversed(place.split(" = "))) for place in places}


def test_clean_pairs_raise_nothing(clean, tmp_path):
    found = report(write_rows(tmp_path / "clean.jsonl", clean))
    assert (found["exit_code"], found["errors"], found["notes"], found["findings"]) == (0, [], [], [])
    assert found["longer_wins"]["biased"] == ""
    assert found["rows"] == found["prompts"] == len(clean)
    assert set(found["scripts"]) == {"Latin", "Hangul", "Cyrillic", "Kana", "Han", "Arabic"}


@pytest.mark.parametrize(
    "fault", [name for name in FAULTS if name not in ("equal_answers", "repeated", "contradiction")]
)
def test_every_planted_fault_is_found_and_no_other(clean, tmp_path, fault):
    rows, places = plant(clean, fault, COUNT)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = report(path)
    assert found["exit_code"] == 0, found["errors"][:2]
    by_name = findings(found)
    expected = written_places(path, places)
    assert len(expected) == COUNT
    assert expected <= both_ways(set(by_name[fault]))
    assert len(by_name[fault]) == COUNT
    assert set(by_name) == {fault, ALSO.get(fault, fault)}


def test_repeated_rows_are_a_note_with_all_places(clean, tmp_path):
    rows, places = plant(clean, "repeated", COUNT)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = report(path)
    (note,) = found["notes"]
    assert note["text"].startswith(f"repeated rows: {COUNT} (")
    assert both_ways(set(note["places"])) == both_ways(written_places(path, places))
    assert (found["exit_code"], found["findings"]) == (0, [])


@pytest.mark.parametrize("fault", ["equal_answers", "contradiction"])
def test_what_fit_refuses_is_an_error_and_the_other_rows_are_still_checked(clean, tmp_path, fault):
    rows, places = plant(clean, fault, COUNT)
    near, near_places = plant(rows, "copied_prompts", COUNT, seed=9)
    path = write_rows(tmp_path / "rows.jsonl", near)
    found = report(path)
    assert found["exit_code"] == 65
    lines = {f"{path}:{max(where) if len(where) > 1 else where[0]}" for where in places}
    overwritten = {f"{path}:{line}" for where in near_places for line in where}
    assert lines - overwritten <= {error["where"] for error in found["errors"]} <= lines
    assert len(findings(found)["copied_prompts"]) >= COUNT - 2


def test_near_leaks_of_held_out_rows_are_found(clean, tmp_path):
    held_out, rows = clean[:500], clean[500:]
    spelled, places = plant(held_out, "respelled_prompts", 10)
    moved = [spelled[line - 1] for line, _ in places]
    kept = [row for row in held_out if row not in moved]
    train, eval_ = write_rows(tmp_path / "train.jsonl", kept + rows), write_rows(tmp_path / "eval.jsonl", moved)
    found = report(train, "--eval", eval_)
    (leak,) = found["eval"]["findings"]
    assert (leak["name"], leak["count"]) == ("near_leaks", 10)
    assert {place.split(" = ")[0] for place in leak["places"]} == {f"{eval_}:{i + 1}" for i in range(10)}
    assert found["exit_code"] == 0


def test_an_exact_leak_is_the_error_of_fit(clean, tmp_path):
    train, eval_ = write_rows(tmp_path / "train.jsonl", clean[:50]), write_rows(tmp_path / "eval.jsonl", clean[48:60])
    found = report(train, "--eval", eval_)
    assert found["exit_code"] == 65
    assert found["eval"]["errors"][0]["what"] == "2 of 12 held-out rows have a prompt that is trained on"
    assert found["eval"]["findings"] == []
    allowed = report(train, "--eval", eval_, "--allow", "leak")
    assert allowed["exit_code"] == 0
    assert "2 of 12" in allowed["eval"]["notes"][0]["text"]


def test_a_bias_to_long_answers_is_a_warning(clean, tmp_path):
    ordered = [
        {
            **row,
            "chosen": max(row["chosen"], row["rejected"], key=len),
            "rejected": min(row["chosen"], row["rejected"], key=len),
        }
        if i % 5
        else row
        for i, row in enumerate(clean[:400])
        if len(row["chosen"]) != len(row["rejected"])
    ]
    path = write_rows(tmp_path / "rows.jsonl", ordered)
    wins = report(path)["longer_wins"]
    assert 0.65 < wins["low"] < wins["share"] < wins["high"]
    assert wins["biased"] == "longer"
    assert "its length may be learned" in " ".join(run("check-data", path).out.split())
