"""Lengths of prompts and answers, and how often the longer answer is the better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dpo_lightning.data.checks.normalization import read_plain
from dpo_lightning.data.examples import Example
from dpo_lightning.intervals import Interval, wilson

BIASED = 0.65
"""Lower bound of the share of longer chosen answers above which length is likely to be learned."""


@dataclass
class Quantiles:
    """Median, 90th percentile and largest of some lengths."""

    median: int
    p90: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Quantiles:
        """Compute the quantiles of at least one length, each of them a length that occurs."""
        ordered = sorted(lengths)
        return cls(ordered[(len(ordered) - 1) // 2], ordered[(9 * len(ordered) - 1) // 10], ordered[-1])


@dataclass
class Lengths:
    """Lengths of the texts of all rows.

    Attributes:
        unit: `characters` or `tokens`.
        texts: the quantiles by text: `prompt`, the answers, and `row`, the prompt and the longest answer.
        max_length: the limit of a row in tokens; None where characters are counted.
        over_max_length: the number of rows beyond it.
    """

    unit: str
    texts: dict[str, Quantiles]
    max_length: int | None = None
    over_max_length: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the lengths as JSON values."""
        return asdict(self)


@dataclass
class LongerWins:
    """How often the best answer of a row is longer than the worst.

    Attributes:
        interval: the share of rows, without ties, with its 95 % Wilson interval.
        rows: the rows without ties.
        ties: rows with two answers of the same length.
    """

    interval: Interval
    rows: int
    ties: int

    @property
    def biased(self) -> str:
        """`longer` or `shorter` where one of the two wins much more often; empty otherwise."""
        return "longer" if self.interval.low > BIASED else "shorter" if self.interval.high < 1 - BIASED else ""

    def to_json(self) -> dict[str, Any]:
        """Return the share as JSON values."""
        share = {"share": self.interval.estimate, "low": self.interval.low, "high": self.interval.high}
        return {**share, "rows": self.rows, "ties": self.ties, "biased": self.biased}


def name_answers(kind: str, example: Example) -> list[str]:
    """Name the answers of a row: chosen and rejected, or its number in a ranked list."""
    if kind == "pairs":
        return ["chosen", "rejected"]
    if kind == "ranked":
        return [f"answer {number}" for number in range(1, len(example.answers) + 1)]
    return ["completion"]


def measure_characters(kind: str, examples: Sequence[Example]) -> list[dict[str, int]]:
    """Return the lengths of the texts of each row in characters, by name."""
    return [
        {
            "prompt": len(read_plain(example.prompt)),
            **dict(zip(name_answers(kind, example), (len(read_plain(text)) for text in example.answers), strict=True)),
        }
        for example in examples
    ]


def summarize(unit: str, measured: Sequence[Mapping[str, int]], max_length: int | None = None) -> Lengths:
    """Summarize the lengths of rows; those of the lists of a ranked set are summarized as one.

    Args:
        unit: `characters` or `tokens`.
        measured: the lengths of the texts of each row by name.
        max_length: the limit of a row.
    """
    by_name: dict[str, list[int]] = {}
    for row in measured:
        for name, length in row.items():
            by_name.setdefault("answers" if name.startswith("answer ") else name, []).append(length)
    rows = [row["prompt"] + max(length for name, length in row.items() if name != "prompt") for row in measured]
    texts = {name: Quantiles.of(lengths) for name, lengths in {**by_name, "row": rows}.items()}
    over = None if max_length is None else sum(length > max_length for length in rows)
    return Lengths(unit, texts, max_length, over)


def compare_lengths(measured: Sequence[Mapping[str, int]]) -> LongerWins | None:
    """Compare the best answer of each row with the worst; None where rows have a single answer, or all are ties."""
    ends = [[length for name, length in row.items() if name != "prompt"] for row in measured]
    pairs = [(row[0], row[-1]) for row in ends if len(row) > 1]
    unequal = [(best, worst) for best, worst in pairs if best != worst]
    if not unequal:
        return None
    longer = sum(best > worst for best, worst in unequal)
    return LongerWins(wilson(longer, len(unequal)), len(unequal), len(pairs) - len(unequal))
