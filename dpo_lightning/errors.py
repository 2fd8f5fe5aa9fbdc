"""Errors for the user: what is wrong, where, the offending text, the remedy, and an exit code."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import TYPE_CHECKING

from dpo_lightning.terminal import one_line, quote

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SHOWN = 10
"""Problems that one error prints; further ones are counted."""

MAX_LINES = 22
"""Lines that problems with their remedies take, apart from a common remedy; what does not fit is counted as well."""

TEXT_LIMIT = 80
"""Characters of an offending text that are printed."""


NO_MEMORY = re.compile(
    "out of memory|(can't|cannot|could not|unable to) allocate|(not enough|insufficient) memory"
    "|failed to map segment|can't start new thread|failed to launch worker thread|error return without exception set",
    re.IGNORECASE,
)
"""How torch, CUDA and the operating system report that an allocation failed, or a thread, whose stack is memory too,
and Python, where an extension did not look whether it had succeeded.
"""


class ExitCode(IntEnum):
    """Exit statuses for scripts; 64 to 78 follow BSD's sysexits.h where it defines a meaning."""

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
    """Return at most `TEXT_LIMIT` characters of `text` on one line, with unprintable ones escaped."""
    plain = str(text)
    shown = plain if len(plain) <= TEXT_LIMIT else plain[: TEXT_LIMIT - 1] + "…"
    return quote(shown)


WRITE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE,
}  # fmt: skip
"""Errors of the operating system for a disk that is full or broken, or a folder that cannot be written any more."""


def lacks_memory(error: BaseException) -> bool:
    """Whether a library failed because the machine or its device has no memory left, and not for a faulty input."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported here
        or NO_MEMORY.search(str(error)) is not None
    )


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        what: the complaint, in lower case and without a full stop.
        where: `file:line`, a config key, or empty.
        text: the offending text; shortened and escaped when it is printed.
        fix: the action that corrects this problem, where an error has problems of several kinds.
    """

    what: str
    where: str = ""
    text: str = ""
    fix: str = ""

    def __str__(self) -> str:
        """Format `what at where`, with the offending text on its own line."""
        what = one_line(" ".join(self.what.splitlines()))
        line = f"{what} at {one_line(self.where)}" if self.where else what
        return f"{line}\n  | {excerpt(self.text)}" if self.text else line


class UserError(Exception):
    """A mistake that the user can correct: printed in a few lines, without a traceback.

    All problems of one pass are raised together, so that a file can be corrected in one go.
    """

    def __init__(self, code: ExitCode, problems: Problem | str | Iterable[Problem], fix: str = "") -> None:
        """Store the error.

        Args:
            code: the exit code of the process.
            problems: one or more problems.
            fix: the action that corrects all of them.
        """
        self.code = code
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        """Format the message as it is printed: consecutive problems with the same remedy are followed by it once."""
        count = min(len(self.problems), MAX_SHOWN)
        while count > 1 and len(self._format(count)) > MAX_LINES:
            count -= 1
        lines = self._format(count)
        if (rest := len(self.problems) - count) > 0:
            lines.append(f"... and {rest} more problem{'s' * (rest > 1)}")
        if self.fix:
            lines.append(f"fix: {one_line(self.fix)}")
        return "\n".join(lines)

    def _format(self, count: int) -> list[str]:
        """Return the first problems as lines."""
        blocks = []
        for fix, alike in groupby(self.problems[:count], key=lambda problem: problem.fix):
            blocks += [f"error: {problem}" for problem in alike]
            blocks += [f"fix: {one_line(fix)}"] if fix else []
        return "\n".join(blocks).split("\n")


def no_memory_error() -> UserError:
    """Make the error for a machine or a device without memory, with what takes less of it."""
    return UserError(
        ExitCode.IO,
        "the device is out of memory, or this process may take no more of it",
        fix="--data.batch_size 1 --trainer.accumulate_grad_batches 16, a smaller --data.max_tokens or "
        "--data.max_length, --model.policy.gradient_checkpointing true, --model.policy.lora.r 16, or a higher "
        "`ulimit -v` and `ulimit -u`",
    )
