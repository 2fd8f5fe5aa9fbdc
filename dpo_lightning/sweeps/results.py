"""`collect`: what each point of a sweep came to, read from its evaluation, and points that differ by seed together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError, excerpt
from dpo_lightning.intervals import Interval
from dpo_lightning.json_files import read_json
from dpo_lightning.sweeps.grid import Point
from dpo_lightning.sweeps.manifest import Manifest
from dpo_lightning.sweeps.marks import PointFiles

ACCURACY = "accuracy/reward"
WIN_RATE = "win_rate"
KL = {"held_out": "kl/held_out/token", "generated": "kl/generated/token"}
"""Name on the command line -> measure: nats per token of the full-vocabulary KL divergence from the reference."""


@dataclass(frozen=True)
class Record:
    """A point with the measures of its evaluation.

    Attributes:
        point: name and overrides.
        state: as of its mark.
        error: why it failed.
        measures: name -> estimate with bounds, which are NaN where there are none.
        outcomes: 1 for each held-out row that is ranked right by reward, 0.5 for a tie, 0 otherwise; empty if unknown.
        judge: by whom answers were compared with the reference's, where the measures have a win rate.
    """

    point: Point
    state: str
    error: str = ""
    measures: Mapping[str, Interval] = field(default_factory=dict)
    outcomes: Sequence[float] = ()
    judge: str = ""


@dataclass(frozen=True)
class Setting:
    """The evaluated points that differ in nothing but the seed."""

    label: str
    overrides: Mapping[str, str]
    records: Sequence[Record]

    @cached_property
    def outcomes(self) -> list[float]:
        """Mean over the seeds of each held-out row's outcome; empty where seeds have no or other rows."""
        columns = [record.outcomes for record in self.records]
        if not columns or len({len(column) for column in columns}) != 1:
            return []
        return [sum(row) / len(row) for row in zip(*columns, strict=True)]

    def measure(self, name: str) -> Interval | None:
        """Return the mean over seeds of a measure and of its bounds; None if a seed lacks it.

        The bounds are about the held-out rows, which are the same for all seeds, so that seeds do not narrow them.
        """
        found = [record.measures[name] for record in self.records if name in record.measures]
        if not found or len(found) != len(self.records):
            return None
        return Interval(*(sum(values) / len(found) for values in zip(*found, strict=True)))


def collect(folder: Path, manifest: Manifest) -> list[Record]:
    """Return a record of each point, in the order of the manifest."""
    return [read_record(point, PointFiles(folder, point.name)) for point in manifest.points]


def read_record(point: Point, files: PointFiles) -> Record:
    """Read what a point came to; measures only if it is done."""
    mark = files.read_mark()
    if mark.state != "done":
        return Record(point, mark.state, mark.error)
    with damage_reported(files.summary):
        content = read_json(files.summary)["measures"]
        measures = {name: to_interval(value) for name, value in content.items() if has_estimate(value)}
    judge = ""
    if files.win_rate.is_file():
        with damage_reported(files.win_rate):
            rate = read_json(files.win_rate)
            measures[WIN_RATE], judge = to_interval(rate), str(rate["judge"])
    items = files.run / "eval.json"
    with damage_reported(items):
        return Record(point, "done", "", measures, read_outcomes(items), judge)


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Report that a file of a point is not what was written.

    Raises:
        UserError: 65, in place of the errors that reading it leads to.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(
            ExitCode.DATA,
            Problem("the file of a point is damaged", str(path), str(reason)),
            fix=f"move {path.parent} away and run the sweep again, which makes the point anew",
        ) from None


def has_estimate(value: Any) -> bool:
    """Whether a measure has a value."""
    return isinstance(value, Mapping) and value.get("estimate") is not None


def to_interval(value: Mapping[str, Any]) -> Interval:
    """Return a measure of a summary as an interval; bounds that are missing become NaN."""
    low, high = (float("nan") if value.get(name) is None else to_number(value[name]) for name in ("low", "high"))
    return Interval(to_number(value["estimate"]), low, high)


def to_number(value: Any) -> float:
    """Return a number of a JSON file.

    Raises:
        ValueError: it is none, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"expected a number, found {excerpt(value)}")
    return float(value)


def read_outcomes(path: Path) -> list[float]:
    """Return the outcome of each row that has a margin of log-ratios, which is the same quantity for each loss."""
    margins = [item.get("logratio_margin") for item in read_json(path)] if path.is_file() else []
    given = [to_number(margin) for margin in margins if margin is not None]
    return [float(margin > 0) if margin else 0.5 for margin in given]


def group(records: Sequence[Record]) -> list[Setting]:
    """Return the evaluated points, those that differ by seed alone together, in the order of the manifest."""
    found: dict[str, list[Record]] = {}
    for record in (record for record in records if record.state == "done"):
        found.setdefault(label(record.point.setting), []).append(record)
    return [Setting(name, several[0].point.setting, several) for name, several in found.items()]


def label(overrides: Mapping[str, str]) -> str:
    """Return overrides as one short text, such as `beta 0.1, learning_rate 1e-5`."""
    return ", ".join(f"{key.rpartition('.')[2]} {text}" for key, text in overrides.items()) or "the config"
