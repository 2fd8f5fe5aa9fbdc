"""What strings of a row may hold, and their composed form."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import MAX_DEPTH, MAX_FIELD_BYTES, clean, excerpt_name

COMPOSED = "서울은 é"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def test_strings_are_composed_everywhere_and_the_columns_are_told() -> None:
    row = {"a": DECOMPOSED, "b": [{DECOMPOSED: DECOMPOSED}], "c": COMPOSED, "d": [1, None, True, 2.5]}
    cleaned, recomposed, faults = clean(row)
    assert cleaned == {"a": COMPOSED, "b": [{COMPOSED: COMPOSED}], "c": COMPOSED, "d": [1, None, True, 2.5]}
    assert recomposed == {"a", "b"}
    assert not faults


@pytest.mark.parametrize("text", ["", " \t\r\n ", "a\u2028b", "👩‍👩‍👧", "ﬁ", "x" * MAX_FIELD_BYTES, "\ue000\ufffd"])
def test_nothing_else_is_changed(text: str) -> None:
    assert clean({"a": text}) == ({"a": text}, frozenset(), {})


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("a\0b", "control character U+0000"),
        ("a\x1bb", "control character U+001B"),
        ("a\x7f", "control character U+007F"),
        ("a\x85", "control character U+0085"),
        ("a\ud800b", "lone surrogate U+D800"),
        ([{"content": "\udfff"}], "lone surrogate U+DFFF"),
        ([{"\x01": 1}], "control character U+0001"),
        ("x" * (MAX_FIELD_BYTES + 1), "longer than 1,000,000 bytes"),
        ("가" * (MAX_FIELD_BYTES // 3 + 1), "longer than"),
        (["x" * (MAX_FIELD_BYTES // 2)] * 3, "longer than"),
        ({"x" * (MAX_FIELD_BYTES + 1): 1}, "longer than"),
        (nested(MAX_DEPTH + 1), "nested more than"),
        ({"é": 1, "e\u0301": 2}, "differ only in Unicode form"),
    ],
)
def test_refused_values(value: Any, what: str) -> None:
    cleaned, recomposed, faults = clean({"before": DECOMPOSED, "column": value, "after": "x"})
    assert cleaned == {"before": COMPOSED, "column": None, "after": "x"}
    assert recomposed == {"before"}
    (error,) = faults.values()
    assert list(faults) == ["column"]
    assert what in error.what
    assert "'column'" in error.what
    assert error.fix


def test_a_name_with_a_control_character() -> None:
    with pytest.raises(RowError, match=r"U\+0007"):
        clean({"a\a": 1})


def test_columns_that_become_one() -> None:
    with pytest.raises(RowError, match="Unicode form"):
        clean({"é": 1, "e\u0301": 2})


def test_names_are_shown_short_and_escaped() -> None:
    assert excerpt_name("a\n" + "b" * 100) == "a\\n" + "b" * 37 + "…"
