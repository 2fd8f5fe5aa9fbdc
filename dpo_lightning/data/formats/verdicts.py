"""Verdicts: which of two answers a value such as `b`, `model_a`, `response_2` or `동점` prefers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_lightning.data.formats.base import LeftOut
from dpo_lightning.data.formats.twin_columns import TEXTS, Twins, find_twins, split_words
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import excerpt_name

TIE = "comparisons that end in a tie"
TIES = frozenset(
    (
        *("tie", "tied", "ties", "both", "none", "neither", "equal", "equally good", "same", "draw", "bothbad"),
        *("tie (bothbad)", "both bad", "both_bad", "both good", "both_good", "tie_bothbad", "no preference", "similar"),
        *("tie (both bad)", "both are bad", "both are good", "about the same", "a tie", "no difference"),
        *("동점", "무승부", "동등", "비김", "둘 다", "같음", "平局", "平手", "引き分け", "同じ"),
    )
)
"""Values of a verdict that prefers no answer, in lower case."""

POSITIONS = (("a", "b"), ("left", "right"), ("first", "second"), ("one", "two"))
"""Words for the first and the second of two, whatever their columns are numbered by."""

COMPARED = re.compile(r"\W*(\w+)\s*(>+|<+|=+)\s*(\w+)\W*")
BETTER = re.compile(r"(.+) is better")
"""Verdicts that compare two letters, such as `A>>B`, or name the better one."""

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
COMPLEMENTS = ({"0", "1"}, {"1", "2"}, {"-1", "1"}, {"true", "false"})
"""Pairs of verdicts of which a set may have one only."""

POINTERS = frozenset(("id", "idx", "index"))
GRADES = frozenset(("strength", "overall", "degree", "margin"))
"""Words of columns whose numbers are grades, even where a set has no others than 1 and 2."""

SIGNS = ("negative", "positive")
BOOLEANS = ("true", "false")


def normalize_verdict(value: Any) -> str:
    """A verdict as text in lower case; 1, 1.0 and "1" are equal. "" for null and for other types."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        return ""
    text = str(value).strip().lower()
    return f"{float(text):g}" if NUMBER.fullmatch(text) else text


class VerdictReader:
    """Reads one column of a set as the verdict between two answers.

    Attributes:
        unclear: numbers or booleans of which it is unknown which answer they prefer; None if there are none.
    """

    def __init__(
        self,
        name: str,
        answers: Twins,
        given: Collection[str],
        first_wins: str | int | None,
        shown: str = "",
        own_names: Sequence[str] = (),
    ) -> None:
        """Find out by all verdicts of the set how they are to be read.

        Args:
            name: the column of the verdict.
            answers: the columns of the answers.
            given: the normalized verdicts of all rows.
            first_wins: the verdict with which the first answer wins, `negative` or `positive`; None if not given.
            shown: the file's name of the column; `name` where it is empty.
            own_names: the file's names of the answers, which a verdict may name.
        """
        self.name, self.answers, self.shown = name, answers, shown or name
        self.first_wins = None if first_wins is None else normalize_verdict(first_wins)
        self.own_names = [normalize_verdict(own) for own in own_names]
        self.given = {*given} - TIES - {""}
        self.codes = {code for code in self.given if NUMBER.fullmatch(code) or code in BOOLEANS}
        self.by_number = self._find_numbers()
        clear = self.first_wins is not None or self.codes <= self.by_number.keys()
        self.unclear = None if clear else sorted(self.codes)
        self.graded = len({code.lstrip("+-") for code in self.codes} - {"0"}) > 1

    def read(self, values: Mapping[str, Any]) -> tuple[int, float | None]:
        """Return 0 if the first answer of a row wins and 1 if the second does, and the strength of the preference.

        Raises:
            RowError: the verdict is unknown, or may be read as either answer.
            LeftOut: it is a tie.
        """
        verdict = normalize_verdict(values.get(self.name))
        shown, raw = f"'{excerpt_name(self.shown)}'", values.get(self.name)
        if not verdict:
            raise RowError(f"{shown} has no verdict", "null" if raw is None else raw, "write one, or remove the row")
        if self.first_wins in SIGNS and NUMBER.fullmatch(verdict):
            strength = float(verdict)
            if not strength:
                raise LeftOut(TIE)
            return int((strength < 0) != (self.first_wins == "negative")), abs(strength) if self.graded else None
        found = {self._apply_first_wins(verdict)} if self.first_wins is not None else self._find(verdict, raw, values)
        found -= {None}
        if len(found) != 1:
            names = f"'{self.answers.first}' {'and' if found else 'or'} '{self.answers.second}'"
            what = f"{shown} may mean {names} both" if found else f"{shown} does not name {names}"
            raise RowError(what, raw, self._advise())
        place = found.pop()
        if not isinstance(place, int):
            raise LeftOut(TIE)
        return place, None

    def _advise(self) -> str:
        """What to do about a verdict that cannot be read."""
        if self.first_wins is not None and self.given:
            found = ", ".join(map(excerpt_name, sorted(self.given)[:8]))
            return f"--data.first_wins with one of two verdicts of the file ({found}); remove the rows of others"
        return "write a or b, or give the verdict with which the first answer wins: --data.first_wins VALUE"

    def _apply_first_wins(self, verdict: str) -> int | str | None:
        """Which answer a verdict prefers if the user said with which one the first wins; None if it is unknown."""
        if verdict == self.first_wins:
            return 0
        if verdict in TIES or (verdict == "0" and self.given == {"-1", "0", "1"} and self.first_wins in ("-1", "1")):
            return TIE
        others = self.given - {self.first_wins} - ({"0"} if self.given == {"-1", "0", "1"} else set())
        known = self.first_wins in self.given or {verdict, self.first_wins} in COMPLEMENTS
        return 1 if len(others) == 1 and known else None

    def _find_numbers(self) -> dict[str, int]:
        """Number -> answer, where all numbers of the set have one meaning only."""
        numbers = {code for code in self.codes if code not in BOOLEANS}
        words = split_words(self.shown)
        if GRADES & {*words}:
            return {}
        if self.answers.ends == ("0", "1"):
            # One number in all rows may be a label such as "correct"; an id or an index points to a column.
            clear = numbers == {"0", "1"} or (numbers <= {"0", "1"} and words[-1] in POINTERS)
            return {"0": 0, "1": 1} if clear else {}
        # Without a 2, a 1 may be the number of the first answer, or the index of the second.
        return {"1": 0, "2": 1} if "2" in numbers and numbers <= {"1", "2"} else {}

    def _find(self, verdict: str, raw: Any, values: Mapping[str, Any]) -> set[int | str | None]:
        """All meanings of a verdict: by the names of columns, by position, and by the content of twin columns."""
        found: set[int | str | None] = {self.by_number.get(verdict), TIE if verdict in TIES else None}
        if compared := COMPARED.fullmatch(verdict):
            return self._compare(*compared.groups())
        if {"<", ">"} & {*verdict}:
            return set()
        if better := BETTER.fullmatch(verdict):
            verdict = better[1]
        found |= {place for place, own in enumerate(self.own_names) if own == verdict}
        words = tuple(word for word in split_words(verdict) if word not in TEXTS)
        if len(words) == 1 and verdict not in self.codes:
            found |= {
                place for pair in (self.answers.ends, *POSITIONS) for place, end in enumerate(pair) if end == words[0]
            }
        for twins in find_twins(values):
            if twins.ends != self.answers.ends or not isinstance(raw, str):
                continue
            same = [isinstance(text := values[name], str) and text.strip() == raw.strip() for name in twins[:2]]
            if sum(same) == 1:
                found.add(same.index(True))
        return found

    def _compare(self, first: str, sign: str, second: str) -> set[int | str | None]:
        """The answer that a comparison such as `A>B` prefers."""
        for ends in (self.answers.ends, *POSITIONS):
            if {first, second} == {*ends}:
                return {TIE if sign[0] == "=" else int((sign[0] == ">") != (first == ends[0]))}
        return set()
