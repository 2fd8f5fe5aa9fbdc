"""What a user is told when a run cannot go on: what, where, the text, the remedy, an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from dpo_lightning.terminal import one_line, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SHOWN = 10
"""Problems of one pass that are printed whole; the rest is counted."""

TEXT_LIMIT = 80
"""Characters of an offending text that are shown."""


class ExitCode(IntEnum):
    """Exit statuses that scripts may rely on (64-78 follow BSD's sysexits.h where it has a word for it)."""

    CONFIG = 64
    DATA = 65
    INPUT_MISSING = 66
    MODEL = 67
    DEVICE = 69
    BUG = 70
    OUTPUT = 73
    IO = 74
    RESUMABLE = 75
    DIVERGED = 76


def excerpt(text: object) -> str:
    """Return at most 80 characters of `text` on one line, with what is not printed escaped."""
    plain = str(text)
    shown = plain if len(plain) <= TEXT_LIMIT else plain[: TEXT_LIMIT - 1] + "…"
    return quoted(shown)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        what: the complaint, in lower case and without a full stop.
        where: `file:line`, a config key, or empty.
        text: the offending text; shortened and escaped when printed.
    """

    what: str
    where: str = ""
    text: str = ""

    def __str__(self) -> str:
        """`what at where`, and the offending text on a line of its own."""
        what = one_line(" ".join(self.what.splitlines()))
        line = f"{what} at {one_line(self.where)}" if self.where else what
        return f"{line}\n  | {excerpt(self.text)}" if self.text else line


class UserError(Exception):
    """A mistake that the user can mend: printed in a few lines, never as a traceback.

    All problems of one pass travel together, so that a file is mended once and not line by line.
    """

    def __init__(self, code: ExitCode, problems: Problem | str | Iterable[Problem], fix: str = "") -> None:
        """Keep the exit code, one or more problems, and the one action that mends them."""
        self.code = code
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        """The message as it is printed."""
        lines = [f"error: {problem}" for problem in self.problems[:MAX_SHOWN]]
        if len(self.problems) > MAX_SHOWN:
            lines.append(f"... and {len(self.problems) - MAX_SHOWN} more of this kind")
        if self.fix:
            lines.append(f"fix: {one_line(self.fix)}")
        return "\n".join(lines)
