"""`VerdictFile`: verdicts on two answers, kept as soon as they come, so that a second start continues."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from dpo_lightning.comparison.judges.base import Duel
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.special_files import check_not_special

FIRST, SECOND, TIED, SKIPPED = "1", "2", "tie", "skip"


class Kept(NamedTuple):
    """What is kept of two answers in one order.

    Attributes:
        verdict: `FIRST`, `SECOND`, `TIED` or `SKIPPED`; None if no reply had a verdict.
        tries: replies so far.
    """

    verdict: str | None
    tries: int


class VerdictFile:
    """JSON lines of verdicts; each has a digest of the judge, the prompt and both answers, so it fits no others."""

    def __init__(self, path: Path, judge: str) -> None:
        """Read what is kept; a line that a killed process left unfinished is left out.

        Args:
            path: the file, which need not exist.
            judge: everything that a verdict depends on besides prompt and answers.
        """
        self._path, self._judge = path, judge
        self._found: dict[str, Kept] = {}
        try:
            check_not_special(path)
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise self._error(error) from None
        for line in content.split(b"\n"):
            try:
                entry = json.loads(line)
                self._add(str(entry["key"]), entry["verdict"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue

    def find(self, duel: Duel) -> Kept:
        """Return what is kept of two answers in this order."""
        return self._found.get(self.key(duel), Kept(None, 0))

    def add(self, duel: Duel, verdict: str | None, reply: str = "") -> None:
        """Append a verdict and force it to the disk.

        Args:
            duel: the answers, in the order in which the judge saw them.
            verdict: as in `Kept`.
            reply: what the judge wrote.

        Raises:
            UserError: 73, the file cannot be written.
        """
        key = self.key(duel)
        line = json.dumps({"key": key, "verdict": verdict, "reply": reply})
        try:
            with self._path.open("ab") as file:
                # One write, so that lines of several processes do not mix; a line left unfinished is ended first.
                file.write(f"\n{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._error(error) from None
        self._add(key, verdict)

    def _add(self, key: str, verdict: str | None) -> None:
        if verdict not in (FIRST, SECOND, TIED, SKIPPED, None):
            raise ValueError(verdict)
        self._found[key] = Kept(verdict, self._found.get(key, Kept(None, 0)).tries + 1)

    def key(self, duel: Duel) -> str:
        """Return the digest of the judge, the prompt and both answers in this order."""
        prompt = duel.prompt if isinstance(duel.prompt, str) else [dict(message) for message in duel.prompt]
        text = json.dumps([self._judge, prompt, duel.first, duel.second], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _error(self, error: OSError) -> UserError:
        return UserError(
            ExitCode.OUTPUT,
            Problem(f"the verdicts cannot be kept: {error.strerror}", "--output", str(self._path)),
            fix="choose another --output",
        )
