"""The gathering of bad rows: all of them, in the order of the file, and not without end."""

from __future__ import annotations

import pytest
from support.row_files import refusal

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.errors import ExitCode, UserError


def test_none_is_no_error() -> None:
    bad = BadRows()
    bad.raise_if_any()
    assert not bad


def test_in_the_order_of_lines_whatever_found_them_first() -> None:
    bad = BadRows()
    for line in (9, 2, 5):
        bad.add(Origin("a", line), RowError("odd", "text", "mend it"))
    message = refusal(bad.raise_if_any, ExitCode.DATA)
    assert message.index("a:2") < message.index("a:5") < message.index("a:9")


def test_each_problem_is_followed_by_its_own_remedy() -> None:
    """Five remedies: none is dropped, and one that several lines share is printed once, after the last of them."""
    bad = BadRows()
    for line, fix in enumerate(["a", "a", "b", "c", "d", "e", ""], start=1):
        bad.add(Origin("f", line), RowError("odd", fix=fix and f"mend {fix}"))
    shown = refusal(bad.raise_if_any, ExitCode.DATA).splitlines()
    of = [(f"error: odd at f:{line}", f"fix: mend {fix}") for line, fix in enumerate("abcde", start=2)]
    assert shown == ["error: odd at f:1", *(text for pair in of for text in pair), "error: odd at f:7"]


def test_ten_are_shown_and_the_rest_counted() -> None:
    bad = BadRows()
    for line in range(1, 41):
        bad.add(Origin("a", line), RowError("odd", "x" * 500, "mend it"))
    refusal(bad.raise_if_any, ExitCode.DATA, "a:10", "and 30 more")


def test_stops_after_a_thousand_rows_and_says_so() -> None:
    bad = BadRows()
    for line in range(1, 1001):
        bad.add(Origin("a", line), RowError("odd", fix="mend it"))
        bad.add(Origin("a", line), RowError("also odd", fix="mend it"))
    refusal(lambda: bad.add(Origin("a", 1001), RowError("odd")), ExitCode.DATA, "stopped after 1,000 bad rows")


def test_notes_count_and_show_the_first_places() -> None:
    notes = Notes(BadRows(), strict=False)
    for line in range(1, 9):
        notes.add(Origin("a", line), "odd rows")
    notes.add(Origin("a", 9), "twins", other=Origin("a", 3))
    assert notes.format_lines() == ["odd rows: 8 (a:1, a:2, a:3, a:4, a:5, and 3 more)", "twins: 1 (a:9 = a:3)"]


def test_strict_notes_are_bad_rows() -> None:
    bad = BadRows()
    notes = Notes(bad, strict=True)
    notes.add(Origin("a", 9), "twins", other=Origin("a", 3), fix="remove one")
    assert notes.format_lines() == []
    with pytest.raises(UserError, match="twins, see a:3 at a:9"):
        bad.raise_if_any()
