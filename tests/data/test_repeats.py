"""Repeats, contradictions and prompts in both sets, on examples made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from support.row_files import assistant, refusal, user

from dpo_lightning.data.examples import Origin, Text
from dpo_lightning.data.kinds.duplicates import (
    check_leak,
    check_order,
    check_repeats,
    find_shared_prompts,
)
from dpo_lightning.data.kinds.pairs import PairExample
from dpo_lightning.data.kinds.ranked import RankedExample
from dpo_lightning.data.kinds.sft import SFTExample
from dpo_lightning.data.readers.bad_rows import BadRows, Notes
from dpo_lightning.errors import ExitCode


def pair(line: int, prompt: Text, chosen: Text = "a", rejected: Text = "b", file: str = "train") -> PairExample:
    return PairExample(Origin(file, line), prompt, (chosen, rejected))


def held(line: int, prompt: Text, chosen: Text = "a", rejected: Text = "b") -> PairExample:
    return pair(line, prompt, chosen, rejected, "eval")


def test_repeats_are_noted_with_both_lines() -> None:
    bad = BadRows()
    notes = Notes(bad, strict=False)
    check_order([pair(1, "p"), pair(2, "q"), pair(3, "p"), pair(4, "p", "c")], (), bad, notes)
    assert notes.format_lines() == ["repeated rows: 1 (train:3 = train:1)"]
    bad.raise_if_any()


@pytest.mark.parametrize("chat", [False, True])
def test_contradictions(chat: bool) -> None:
    good, poor = ((assistant("a"),), (assistant("b"),)) if chat else ("a", "b")
    rows = [pair(1, "p", good, poor), pair(2, "q", poor, good), pair(3, "p", poor, good)]
    bad = BadRows()
    check_order(rows, (), bad, Notes(bad, strict=False))
    refusal(bad.raise_if_any, ExitCode.DATA, "than in train:1 at train:3", "--data.allow contradictions")
    allowed = BadRows()
    notes = Notes(allowed, strict=False)
    check_order(rows, ("contradictions",), allowed, notes)
    assert notes.format_lines() == ["rows that contradict another: 1 (train:3 = train:1)"]
    assert not allowed


def test_repeated_completions() -> None:
    notes = Notes(BadRows(), strict=False)
    check_repeats([SFTExample(Origin("f", line), "p", ("c",)) for line in (1, 2)], notes)
    assert notes.format_lines() == ["repeated rows: 1 (f:2 = f:1)"]


def test_a_leak_is_told_with_counts_and_both_lines() -> None:
    train, held_out = [pair(1, "p"), pair(2, "q")], [held(1, "x"), held(2, "q", "c"), held(3, "p")]
    parts = ["2 of 3 held-out rows", "train:2 at eval:2", "train:1 at eval:3", "--data.allow leak"]
    refusal(lambda: check_leak(train, held_out, check_order), ExitCode.DATA, *parts)
    assert check_leak(train, held_out, check_order, allow=["leak"])[0].startswith("2 of 3 held-out rows")


def test_no_leak() -> None:
    assert check_leak([pair(1, "p")], [held(1, "q")], check_order) == []


def test_a_leak_is_seen_across_forms_and_outer_space() -> None:
    assert find_shared_prompts([pair(1, "p")], [held(1, (user("p "),))])
    assert not find_shared_prompts([pair(1, "p")], [held(1, ({"role": "system", "content": "p"},))])


def test_rows_without_prompts_leak_only_with_their_answers() -> None:
    assert not find_shared_prompts([pair(1, "")], [held(1, "", "c")])
    assert find_shared_prompts([pair(1, "")], [held(1, "", "b", "a")])
    completions = [SFTExample(Origin("f", 1), (), ((assistant("a"),),))]
    assert find_shared_prompts(completions, completions)


def test_a_set_that_contradicts_the_other() -> None:
    train, held_out = [pair(1, "p")], [held(1, "p", "b", "a")]
    refusal(
        lambda: check_leak(train, held_out, check_order, allow=["leak"]),
        ExitCode.DATA,
        "train:1 at eval:1",
        "contradictions",
    )
    assert len(check_leak(train, held_out, check_order, allow={"leak", "contradictions"})) == 2


def test_words_that_allow_nothing() -> None:
    refusal(lambda: check_leak([], [], check_order, allow=["leek"]), ExitCode.CONFIG, "leek", "contradictions, leak")


def cycle(length: int, prompt: Text = "p", first: int = 1) -> list[PairExample]:
    """Pairs each of which prefers an answer to the next, the last one to the first."""
    answers = [f"answer {k}" for k in range(length)]
    return [pair(first + k, prompt, answers[k], answers[(k + 1) % length]) for k in range(length)]


@pytest.mark.parametrize("length", [3, 4, 5, 50])
@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_cycles_of_preferences(length: int, lists: bool, turned: bool) -> None:
    """Among pairs that agree with them, in any order of rows."""
    good = [pair(100, "p", "best", "answer 0"), pair(101, "p", "answer 1", "worst"), pair(102, "p", "best", "worst")]
    rows: list[Any] = [*good, *cycle(length)]
    rows = rows[::-1] if turned else rows
    if lists:
        rows = [RankedExample(row.origin, row.prompt, row.answers) for row in rows]
    bad = BadRows()
    check_order(rows, (), bad, Notes(bad, strict=False))
    message = refusal(bad.raise_if_any, ExitCode.DATA, "preferences form a cycle", "--data.allow contradictions")
    assert message.count("error: ") == 1
    named = {int(word.strip(",").rpartition(":")[2]) for word in message.split() if word.startswith("train:")}
    assert named <= set(range(1, length + 1))
    assert len(named) == min(length, 4)
    assert (", ..." in message) == (length > 4)
    allowed = BadRows()
    notes = Notes(allowed, strict=False)
    check_order(rows, ("contradictions",), allowed, notes)
    assert not allowed
    assert [line.partition(" (")[0] for line in notes.format_lines()] == ["rows that close a cycle of preferences: 1"]


def test_orders_without_a_cycle() -> None:
    """Diamonds, repeats, and the same answers to other prompts are none."""
    rows = [
        *(pair(1, "p", "a", "b"), pair(2, "p", "b", "c"), pair(3, "p", "a", "c"), pair(4, "p", "a", "d")),
        *(pair(5, "p", "d", "c"), pair(6, "p", "a", "b"), pair(7, "q", "c", "a"), pair(8, (user("p"),), "c", "a")),
    ]
    bad = BadRows()
    check_order(rows, (), bad, Notes(bad, strict=False))
    bad.raise_if_any()
    longer = [RankedExample(Origin("f", k), "p", tuple(answers)) for k, answers in enumerate(("abc", "bcd", "ad"), 1)]
    check_order(longer, (), bad, Notes(bad, strict=False))
    bad.raise_if_any()


def test_every_cycle_is_told_and_one_of_two_rows_once() -> None:
    rows = [*cycle(3), *cycle(3, "q", 4), pair(7, "r", "a", "b"), pair(8, "r", "b", "a")]
    bad = BadRows()
    check_order(rows, (), bad, Notes(bad, strict=False))
    message = refusal(bad.raise_if_any, ExitCode.DATA, "train:1, train:2 at train:3", "train:4, train:5 at train:6")
    assert message.count("error: ") == 3
    assert "ranked the other way round than in train:7 at train:8" in message


def test_a_cycle_over_both_sets() -> None:
    rows = cycle(3)
    train, held_out = rows[:2], [held(1, "p", rows[2].chosen, rows[2].rejected)]
    refusal(
        lambda: check_leak(train, held_out, check_order, allow=["leak"]),
        ExitCode.DATA,
        "form a cycle",
        "eval:1",
        "train:1",
    )
    assert len(check_leak(train, held_out, check_order, allow={"leak", "contradictions"})) == 2


def test_long_chains_and_many_cycles_take_no_recursion_and_no_square() -> None:
    """Thousands of pairs on one prompt: a chain, and answers that all lead back to the first."""
    count = 20_000
    chain = [pair(k, "p", str(k), str(k + 1)) for k in range(count)]
    bad = BadRows()
    check_order(chain, (), bad, Notes(bad, strict=False))
    bad.raise_if_any()
    back = [pair(count + k, "p", str(k), "0") for k in range(2, count)]
    notes = Notes(bad, strict=False)
    check_order([*chain, *back], ("contradictions",), bad, notes)
    assert notes.format_lines()[0].startswith(f"rows that close a cycle of preferences: {count - 2:,} (")
