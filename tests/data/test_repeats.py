"""Repeats, contradictions and prompts in both sets, on examples made by hand."""

from __future__ import annotations

import pytest
from row_files import assistant, refusal, user

from dpo_lightning.data.bad_rows import BadRows, Notes
from dpo_lightning.data.repeats import check_demonstrations, check_leak, check_pairs, shared_prompts
from dpo_lightning.errors import ExitCode
from dpo_lightning.examples import Origin, PreferenceExample, SFTExample, Text


def pair(line: int, prompt: Text, chosen: Text = "a", rejected: Text = "b", file: str = "train") -> PreferenceExample:
    return PreferenceExample(Origin(file, line), prompt, chosen, rejected)


def held(line: int, prompt: Text, chosen: Text = "a", rejected: Text = "b") -> PreferenceExample:
    return pair(line, prompt, chosen, rejected, "eval")


def test_repeats_are_noted_with_both_lines() -> None:
    bad = BadRows()
    notes = Notes(bad, strict=False)
    check_pairs([pair(1, "p"), pair(2, "q"), pair(3, "p"), pair(4, "p", "c")], (), bad, notes)
    assert notes.lines() == ["repeated rows: 1 (train:3 = train:1)"]
    bad.raise_if_any()


@pytest.mark.parametrize("chat", [False, True])
def test_contradictions(chat: bool) -> None:
    good, poor = ((assistant("a"),), (assistant("b"),)) if chat else ("a", "b")
    rows = [pair(1, "p", good, poor), pair(2, "q", poor, good), pair(3, "p", poor, good)]
    bad = BadRows()
    check_pairs(rows, (), bad, Notes(bad, strict=False))
    refusal(bad.raise_if_any, ExitCode.DATA, "than in train:1 at train:3", "--data.allow contradictions")
    allowed = BadRows()
    notes = Notes(allowed, strict=False)
    check_pairs(rows, ("contradictions",), allowed, notes)
    assert notes.lines() == ["rows that contradict another: 1 (train:3 = train:1)"]
    assert not allowed


def test_repeated_demonstrations() -> None:
    notes = Notes(BadRows(), strict=False)
    check_demonstrations([SFTExample(Origin("f", line), "p", "c") for line in (1, 2)], notes)
    assert notes.lines() == ["repeated rows: 1 (f:2 = f:1)"]


def test_a_leak_is_told_with_counts_and_both_lines() -> None:
    train, held_out = [pair(1, "p"), pair(2, "q")], [held(1, "x"), held(2, "q", "c"), held(3, "p")]
    parts = ["2 of 3 held-out rows", "train:2 at eval:2", "train:1 at eval:3", "--data.allow leak"]
    refusal(lambda: check_leak(train, held_out), ExitCode.DATA, *parts)
    assert check_leak(train, held_out, allow=["leak"])[0].startswith("2 of 3 held-out rows")


def test_no_leak() -> None:
    assert check_leak([pair(1, "p")], [held(1, "q")]) == []


def test_a_leak_is_seen_across_forms_and_outer_space() -> None:
    assert shared_prompts([pair(1, "p")], [held(1, (user("p "),))])
    assert not shared_prompts([pair(1, "p")], [held(1, ({"role": "system", "content": "p"},))])


def test_rows_without_prompts_leak_only_with_their_answers() -> None:
    assert not shared_prompts([pair(1, "")], [held(1, "", "c")])
    assert shared_prompts([pair(1, "")], [held(1, "", "b", "a")])
    demonstrations = [SFTExample(Origin("f", 1), (), (assistant("a"),))]
    assert shared_prompts(demonstrations, demonstrations)


def test_a_set_that_contradicts_the_other() -> None:
    train, held_out = [pair(1, "p")], [held(1, "p", "b", "a")]
    refusal(
        lambda: check_leak(train, held_out, allow=["leak"]),
        ExitCode.DATA,
        "train:1 at eval:1",
        "contradictions",
    )
    assert len(check_leak(train, held_out, allow={"leak", "contradictions"})) == 2


def test_words_that_allow_nothing() -> None:
    refusal(lambda: check_leak([], [], allow=["leek"]), ExitCode.CONFIG, "leek", "contradictions, leak")
