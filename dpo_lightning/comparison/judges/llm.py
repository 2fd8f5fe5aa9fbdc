"""`LanguageModelJudge`: a language model reads both answers, once in each order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpo_lightning.comparison.judges.base import LOSS, TIE, WIN, Duel, DuelJudge, Verdicts
from dpo_lightning.comparison.judges.speakers import Chat, Speaker
from dpo_lightning.comparison.judges.verdict_file import FIRST, SECOND, TIED, Kept, VerdictFile
from dpo_lightning.comparison.texts import format_prompt
from dpo_lightning.data.examples import Origin, Text
from dpo_lightning.data.progress import track
from dpo_lightning.data.readers.text_files import read_text
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.sampling import Sampling

DEFAULT_PROMPT = Path(__file__).with_name("judge_prompt.txt")
"""The prompt of the judge, in which the names of `FIELDS` are replaced."""

FIELDS = ("prompt", "answer_1", "answer_2")
FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")

VERDICT = re.compile(r"\[\[(.*?)\]\]")
"""How a reply marks its verdict: `[[1]]`, `[[2]]` or `[[tie]]`."""

TRIES = 3
"""Replies to two answers in one order until there is a verdict; the first is greedy, the others are sampled."""

NO_VERDICT, NONSENSE, DISAGREED, SAID_FIRST, SAID_SECOND, REFUSED = (
    "without a verdict",
    "replies without a verdict",
    "orders disagree",
    "for the first answer",
    "for the second answer",
    "refused by the judge",
)


class LanguageModelJudge(DuelJudge):
    """Verdicts of a language model, which are kept as they come.

    Both orders of two answers are judged, as a judge may prefer the place of an answer (Zheng et al. 2023,
    arXiv:2306.05685, section 3.4): only an answer that is better in both wins. A reply without a verdict is repeated,
    and after `TRIES` of them it counts as a tie. So does a prompt that the model refuses, such as one that is too long.
    """

    counted = (NO_VERDICT, NONSENSE, DISAGREED, SAID_FIRST, SAID_SECOND, REFUSED)

    def __init__(self, speaker: Speaker, template: str, kept: Path, seed: int = 0, max_new_tokens: int = 512) -> None:
        """Set the judge up.

        Args:
            speaker: the model.
            template: the text of the judge's prompt, in which `{prompt}`, `{answer_1}` and `{answer_2}` are replaced.
            kept: the file in which verdicts are kept.
            seed: of the sampled replies.
            max_new_tokens: length limit of a reply.

        Raises:
            UserError: 64, a field is missing in the template.
        """
        missing = [name for name in FIELDS if f"{{{name}}}" not in template]
        if missing:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"the judge's prompt has no {{{missing[0]}}}", "--judge_prompt"),
                fix="write {prompt}, {answer_1} and {answer_2} where the texts belong",
            )
        self._speaker, self._template, self._seed = speaker, template, seed
        self._max_new_tokens = max_new_tokens
        self._refused: dict[str, UserError] = {}  # not kept: the next start may have a server that takes more
        self._replied = False
        self._file = VerdictFile(kept, repr(sorted(self.describe().items())))

    def describe(self) -> dict[str, Any]:
        """Return the names and texts that the verdicts depend on."""
        return {
            "judge": "llm",
            "model": self._speaker.name,
            "prompt": self._template,
            "seed": self._seed,
            "max_new_tokens": self._max_new_tokens,
        }

    def decide(
        self, prompts: Sequence[Text], answers: Sequence[Sequence[str]], origins: Sequence[Origin] = ()
    ) -> Verdicts:
        """Compare each two models on the prompts on which their answers differ.

        Raises:
            UserError: the model does not answer, or refuses all prompts.
        """
        found = super().decide(prompts, answers, origins)
        if self._refused:
            first = next(iter(self._refused.values()))
            if not self._replied:
                raise first
            reason = " ".join(str(first.problems[0]).split())
            count = len(self._refused)
            logger.info(f"note: refused prompts of the judge, whose answers are ties: {count}; the first: {reason}")
        return found

    def compare(self, duels: Sequence[Duel], count: Callable[[str], None]) -> list[float | None]:
        """Judge all duels in both orders."""
        self._judge_all([each for duel in duels for each in (duel, duel.turn())])
        outcomes: list[float | None] = []
        for duel in duels:
            orders = (duel, duel.turn())
            both = [self._file.find(each) for each in orders]
            refused = any(self._is_refused(each) for each in orders)
            said = Counter(
                {
                    NONSENSE: sum(kept.tries - (kept.verdict is not None) for kept in both),
                    SAID_FIRST: sum(kept.verdict == FIRST for kept in both),
                    SAID_SECOND: sum(kept.verdict == SECOND for kept in both),
                    NO_VERDICT: not refused and any(kept.verdict is None for kept in both),
                    DISAGREED: disagree(*both),
                    REFUSED: refused,
                }
            )
            for name in said.elements():
                count(name)
            outcomes.append(combine(*both))
        return outcomes

    def _judge_all(self, duels: Sequence[Duel]) -> None:
        """Have each of the duels judged until there is a verdict, or no further try."""
        unique = list({self._file.key(duel): duel for duel in duels}.values())
        try:
            for attempt in range(TRIES):
                left = [duel for duel in unique if not self._is_done(duel, attempt) and not self._is_refused(duel)]
                sampling = Sampling(self._max_new_tokens, 0.0 if attempt == 0 else 0.7, 1.0, self._seed + attempt)
                replies = self._speaker.reply([self._make_chat(duel) for duel in left], sampling)
                for number, reply in track(replies, "judging", len(left)):
                    if isinstance(reply, UserError):
                        self._refused[self._file.key(left[number])] = reply
                    else:
                        self._file.add(left[number], parse_verdict(reply), reply)
        except UserError as error:
            if error.code not in (ExitCode.RESUMABLE, ExitCode.DEVICE):
                raise
            done = sum(self._is_done(duel, TRIES - 1) for duel in unique)
            fix = f"{done} of {len(unique)} verdicts are kept; run the same command again when the server is up"
            raise UserError(error.code, error.problems, fix) from None
        self._replied |= any(self._file.find(duel).tries for duel in unique)

    def _is_done(self, duel: Duel, attempt: int) -> bool:
        kept = self._file.find(duel)
        return kept.verdict is not None or kept.tries > attempt

    def _is_refused(self, duel: Duel) -> bool:
        return self._file.key(duel) in self._refused

    def _make_chat(self, duel: Duel) -> Chat:
        """Write the judge's prompt; what is put in is not searched for fields again."""
        texts = dict(zip(FIELDS, (format_prompt(duel.prompt), duel.first, duel.second), strict=True))
        return [{"role": "user", "content": FIELD.sub(lambda found: texts[found[1]], self._template)}]


def parse_verdict(reply: str) -> str | None:
    """Return the only verdict of a reply; None if it has none, different ones, or something else in double brackets."""
    found = {text.strip().lower() for text in VERDICT.findall(reply)}
    return found.pop() if found in ({FIRST}, {SECOND}, {TIED}) else None


def disagree(straight: Kept, turned: Kept) -> bool:
    """Whether the verdicts on two answers differ by the order in which the answers were shown."""
    both = (straight.verdict, turned.verdict)
    return None not in both and both not in ((FIRST, SECOND), (SECOND, FIRST), (TIED, TIED))


def combine(straight: Kept, turned: Kept) -> float:
    """Return the outcome of two answers by the verdicts in both orders: one that wins in both, or a tie."""
    both = (straight.verdict, turned.verdict)
    return WIN if both == (FIRST, SECOND) else LOSS if both == (SECOND, FIRST) else TIE


def read_template(path: str | None) -> str:
    """Read the judge's prompt from a file, or the one of this package.

    Raises:
        UserError: 65 or 66, the file cannot be read.
    """
    return read_text(str(DEFAULT_PROMPT if path is None else path))
