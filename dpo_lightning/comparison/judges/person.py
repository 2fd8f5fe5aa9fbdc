"""`PersonJudge`: a person at the terminal, who does not see which model wrote an answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from dpo_lightning.comparison.judges.base import LOSS, TIE, WIN, Duel, DuelJudge
from dpo_lightning.comparison.judges.verdict_file import FIRST, SECOND, SKIPPED, TIED, VerdictFile
from dpo_lightning.comparison.texts import format_prompt
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.terminal import escape_controls

KEYS = {"1": FIRST, "2": SECOND, "t": TIED, "s": SKIPPED}
QUIT = "q"
QUESTION = "better answer: 1 or 2, t for a tie, s to skip, q to quit: "


class PersonJudge(DuelJudge):
    """Verdicts that are typed; each is kept at once, and those that are kept are not asked for again.

    Which answer is shown first is drawn for each two answers, so that their places say nothing about the models.
    """

    counted: ClassVar[Sequence[str]] = ("skipped",)

    def __init__(
        self,
        kept: Path,
        seed: int = 0,
        read: Callable[[str], str] = input,
        write: Callable[[str], None] = print,
    ) -> None:
        """Set the judge up.

        Args:
            kept: the file in which verdicts are kept.
            seed: by which the order of two answers is drawn.
            read: shows a question and returns what is typed.
            write: shows a text.
        """
        self._file, self._seed, self._read, self._write = VerdictFile(kept, "person"), seed, read, write

    def describe(self) -> dict[str, Any]:
        """Return the kind of the judge and the seed of the order."""
        return {"judge": "person", "seed": self._seed}

    def compare(self, duels: Sequence[Duel], count: Callable[[str], None]) -> list[float | None]:
        """Show the duels without a verdict one after the other.

        Raises:
            UserError: 75, the person quits, or the input ends.
        """
        shown = [self._order(duel) for duel in duels]
        outcomes: list[float | None] = []
        for nth, (duel, seen) in enumerate(zip(duels, shown, strict=True)):
            if self._file.find(seen).verdict is None:
                self._ask(seen, nth + 1, len(duels))
            verdict = self._file.find(seen).verdict
            if verdict == SKIPPED:
                count("skipped")
                outcomes.append(None)
            elif verdict == TIED:
                outcomes.append(TIE)
            else:
                outcomes.append(WIN if (verdict == FIRST) == (seen == duel) else LOSS)
        return outcomes

    def _order(self, duel: Duel) -> Duel:
        """Return two answers in the order in which they are shown, which does not depend on how they are given."""
        one, other = sorted((duel, duel.turn()), key=lambda each: each.first)
        key = f"{self._seed} {self._file.key(one)}"
        return random.Random(key).choice((one, other))

    def _ask(self, seen: Duel, number: int, count: int) -> None:
        """Show two answers until there is a verdict, and keep it."""
        for title, text in (
            (f"===== {number} of {count}: prompt", format_prompt(seen.prompt)),
            ("----- answer 1", seen.first),
            ("----- answer 2", seen.second),
        ):
            self._write(f"{title}\n{escape_controls(text)}\n")
        while True:
            try:
                typed = self._read(QUESTION).strip().lower()
            except EOFError:
                typed = QUIT
            if typed == QUIT:
                what = f"stopped before comparison {number} of {count}; the verdicts so far are kept"
                raise UserError(ExitCode.RESUMABLE, what, fix="run the same command again: it continues")
            if typed in KEYS:
                self._file.add(seen, KEYS[typed])
                return
