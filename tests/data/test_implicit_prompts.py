"""Where the prompt ends in pairs that have none of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.row_files import assistant, user

from dpo_lightning.data.kinds.implicit_prompts import split_messages, split_strings
from dpo_lightning.data.readers.bad_rows import RowError


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Q: a\nA: Yes", "Q: a\nA: No", ("Q: a\nA:", " Yes", " No")),
        ("Q: a\nA: Yellow", "Q: a\nA: Yes", ("Q: a\nA:", " Yellow", " Yes")),
        ("Q\nYes", "Q\nNo", ("Q\n", "Yes", "No")),
        ("yes ", "no", ("", "yes ", "no")),
        ("  yes", "  no", ("", "  yes", "  no")),
        ("수도는 서울은", "수도는 서울이", ("수도는", " 서울은", " 서울이")),
        ("서울은", "서울이", ("", "서울은", "서울이")),
        ("say 👩‍👩‍👧 x", "say 👩‍👩‍👦 x", ("say", " 👩‍👩‍👧 x", " 👩‍👩‍👦 x")),
        ("The answer", "The answer is 4", ("The", " answer", " answer is 4")),
        ("a b  ", "a b c", ("a", " b  ", " b c")),
        ("f(1)", "f(2)", ("", "f(1)", "f(2)")),
    ],
)
def test_strings(chosen: str, rejected: str, expected: tuple[str, str, str]) -> None:
    assert split_strings(chosen, rejected) == expected
    prompt, first, second = expected
    assert split_strings(rejected, chosen) == (prompt, second, first)


@pytest.mark.parametrize(("chosen", "rejected"), [("abc", "abc def"), ("abc ", "abc def"), ("abc", "abcdef")])
def test_an_answer_that_is_the_beginning_of_the_other(chosen: str, rejected: str) -> None:
    for one, other in ((chosen, rejected), (rejected, chosen)):
        with pytest.raises(RowError, match="beginning of the other"):
            split_strings(one, other)


WORDS = st.text(st.sampled_from("ab \n가"), min_size=1, max_size=12).filter(str.strip)


@given(WORDS, WORDS)
def test_nothing_is_lost_no_answer_is_blank_and_no_word_is_split(chosen: str, rejected: str) -> None:
    try:
        prompt, first, second = split_strings(chosen, rejected)
    except RowError:
        return
    assert (prompt + first, prompt + second) == (chosen, rejected)
    assert first.strip()
    assert second.strip()
    assert not prompt or all(prompt[-1].isspace() or answer[0].isspace() for answer in (first, second))


A, B, C = assistant("a"), assistant("b"), assistant("c")
U, V = user("u"), user("v")


@pytest.mark.parametrize(
    ("chosen", "rejected", "turns"),
    [
        ((U, A), (U, B), 1),
        ((U, A, V, B), (U, A, V, C), 3),
        ((U, A), (U, A, V, B), 1),
        ((A,), (B,), 0),
        ((U, A, B), (U, A, C), 2),
    ],
)
def test_messages(chosen: tuple[dict[str, str], ...], rejected: tuple[dict[str, str], ...], turns: int) -> None:
    assert split_messages(chosen, rejected) == (chosen[:turns], chosen[turns:], rejected[turns:])
