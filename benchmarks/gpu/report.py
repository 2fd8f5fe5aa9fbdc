"""Rows of the table: one measurement each, written as soon as it is there."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MEMORY = "out of memory"

OUT_OF_MEMORY = 3
"""Exit status of a process that ran out of memory."""


@dataclass(frozen=True)
class Row:
    """A measurement."""

    what: str
    value: Any
    goal: str = ""
    passed: bool | None = None
    """Whether the goal was met; None where there is none."""

    @property
    def result(self) -> str:
        """The last column of the table."""
        return {True: "ok", False: "FAILED", None: ""}[self.passed]


class Report:
    """The file to which a part appends its rows, so that one that is ended has left what it had measured."""

    def __init__(self, path: Path, toy: bool) -> None:
        """Name the file; at toy size, speed and memory have no goals."""
        self.path, self.toy = path, toy

    def add(self, what: str, value: Any, goal: str = "", passed: bool | None = None) -> None:
        """Append a row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Row(what, value, goal, passed))) + "\n")

    def at_most(self, what: str, value: float, limit: float) -> None:
        """Append a number that has to be finite and no larger than a limit."""
        self.add(what, value, f"at most {limit:.3g}", math.isfinite(value) and value <= limit)

    def worst(self, what: str, errors: Mapping[str, float], limit: float) -> None:
        """Append the largest of several errors, with the name of its case."""
        if errors:
            name = max(errors, key=lambda case: errors[case] if math.isfinite(errors[case]) else math.inf)
            self.at_most(f"{what}: largest of {len(errors)} errors, {name}", errors[name], limit)

    def at_least(self, what: str, value: float, limit: float) -> None:
        """Append a speed, which is to reach a limit on a GPU."""
        if self.toy:
            self.add(what, value)
        else:
            self.add(what, value, f"at least {limit:.3g}", value >= limit)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn an error in the block into a row, so that the rest of the part is measured."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            lines = str(error).strip().splitlines() or [""]
            reason = MEMORY if is_memory_error(error) else f"{type(error).__name__}: {lines[0][:120]}"
            self.add(what, reason, passed=False)


def is_memory_error(error: BaseException) -> bool:
    """Whether memory ran out, on the GPU or beside it."""
    from dpo_lightning.errors import lacks_memory

    return lacks_memory(error)


@contextmanager
def exit_without_memory() -> Iterator[None]:
    """Turn a lack of memory in the block into an exit status of its own."""
    try:
        yield
    except Exception as error:
        if not is_memory_error(error):
            raise
        print(error, file=sys.stderr)
        raise SystemExit(OUT_OF_MEMORY) from None


def read_rows(path: Path) -> list[Row]:
    """Rows of a file, of which the last may have been cut off."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(Row(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return rows
