"""The format of docs/extending.md, as the page has it, reads rows."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.toy_setup import ROOT

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, Notes
from dpo_lightning.data.readers.sources import Row

ROW = {"question": "q", "replies": [{"text": "a"}, {"text": "b"}], "best": 1}


def convert(*rows: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The converted rows, and what is wrong with the others."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    bad = BadRows(most=None)
    notes = Notes(bad, strict=True)
    given = [Row(Origin("f", number), row) for number, row in enumerate(rows, 1)]
    converted = [row.values for row in names["MyFormat"](given).convert_rows(given, bad, notes)]
    return converted, [problem.what for _, problem in bad.found]


def test_rows_are_converted() -> None:
    rows, problems = convert(ROW, {**ROW, "best": 0.0, "note": 1})
    assert rows == [
        {"prompt": "q", "chosen": "b", "rejected": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "note": 1},
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"best": 2}, "'best' is not a number from 0 to 1"),
        ({"best": True}, "'best' is not a number from 0 to 1"),
        ({"best": []}, "'best' is not a number from 0 to 1"),
        ({"replies": [{"text": "a"}]}, "'replies' has 1 items, not 2"),
        ({"replies": "a"}, "'replies' is not a list"),
        ({"replies": [1, 2]}, "'replies' is not an object"),
        ({"question": None}, "'question' is null"),
        ({"best": "tie"}, "comparisons that end in a tie"),
    ],
)
def test_bad_rows(changes: dict[str, Any], what: str) -> None:
    assert convert({**ROW, **changes}) == ([], [what])
