"""What all judges have in common: verdicts on the answers of several models, two at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, NamedTuple

from dpo_lightning.data.examples import Origin, Text
from dpo_lightning.errors import ExitCode, Problem, UserError

WIN, TIE, LOSS = 1.0, 0.5, 0.0
"""Outcomes of a prompt for the first of two models."""


class Duel(NamedTuple):
    """Two answers to a prompt."""

    prompt: Text
    first: str
    second: str

    def turn(self) -> Duel:
        """Return the same answers in the other order."""
        return Duel(self.prompt, self.second, self.first)


class Verdicts(NamedTuple):
    """What a judge decided.

    Attributes:
        outcomes: the indices of two models -> for each prompt `WIN`, `TIE` or `LOSS` of the first of them, or None
            where a person skipped the prompt.
        scores: for each model the score of each of its answers; None for a judge without scores.
        counts: for each two models what else the judge counted, such as replies without a verdict.
    """

    outcomes: Mapping[tuple[int, int], Sequence[float | None]]
    scores: Sequence[Sequence[float]] | None
    counts: Mapping[tuple[int, int], Mapping[str, int]]


class Judge(ABC):
    """Decides which of two answers is the better one; equal answers are a tie."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the verdicts depend on, as JSON."""

    @abstractmethod
    def decide(
        self, prompts: Sequence[Text], answers: Sequence[Sequence[str]], origins: Sequence[Origin] = ()
    ) -> Verdicts:
        """Compare each two models.

        Args:
            prompts: any number of them.
            answers: for each model its answers in the order of the prompts.
            origins: where each prompt is from, for errors; left out, they are numbered.
        """


class ScoreJudge(Judge):
    """A judge that scores each answer by itself: the higher score wins."""

    @abstractmethod
    def score(self, prompts: Sequence[Text], answers: Sequence[str], origins: Sequence[Origin]) -> list[float]:
        """Return a score for each answer, the higher the better."""

    def decide(
        self, prompts: Sequence[Text], answers: Sequence[Sequence[str]], origins: Sequence[Origin] = ()
    ) -> Verdicts:
        """Score the answers of all models, each different answer to a prompt once.

        Raises:
            UserError: 67, a score is not finite.
        """
        keys = [[(nth, answer) for nth, answer in enumerate(own)] for own in answers]
        unique = list(dict.fromkeys(key for own in keys for key in own))
        origins = origins or [Origin("prompt", number) for number in range(1, len(prompts) + 1)]
        texts, places = [prompts[nth] for nth, _ in unique], [origins[nth] for nth, _ in unique]
        found = self.score(texts, [answer for _, answer in unique], places)
        if not all(map(math.isfinite, found)):
            what = f"a score of the judge is {next(score for score in found if not math.isfinite(score))}"
            raise UserError(ExitCode.MODEL, Problem(what, "--judge_model"), fix="a judge whose weights are finite")
        known = dict(zip(unique, found, strict=True))
        scores = [[known[key] for key in own] for own in keys]
        outcomes = {
            (i, j): [compare_scores(*both) for both in zip(scores[i], scores[j], strict=True)]
            for i, j in combinations(range(len(answers)), 2)
        }
        return Verdicts(outcomes, scores, {pair: {} for pair in outcomes})


class DuelJudge(Judge):
    """A judge that sees two answers side by side."""

    counted: ClassVar[Sequence[str]] = ()
    """Names of what it counts."""

    @abstractmethod
    def compare(self, duels: Sequence[Duel], count: Callable[[str], None]) -> list[float | None]:
        """Return the outcome of each duel; all have different answers. `count` counts one more of a name."""

    def decide(
        self, prompts: Sequence[Text], answers: Sequence[Sequence[str]], origins: Sequence[Origin] = ()
    ) -> Verdicts:
        """Compare each two models on the prompts on which their answers differ."""
        outcomes, counts = {}, {}
        for i, j in combinations(range(len(answers)), 2):
            duels = [Duel(*each) for each in zip(prompts, answers[i], answers[j], strict=True)]
            own = dict.fromkeys(self.counted, 0)

            def count(name: str, own: dict[str, int] = own) -> None:
                own[name] += 1

            found = iter(self.compare([duel for duel in duels if duel.first != duel.second], count))
            outcomes[i, j] = [next(found) if duel.first != duel.second else TIE for duel in duels]
            counts[i, j] = own
        return Verdicts(outcomes, None, counts)


def compare_scores(one: float, other: float) -> float:
    """Return the outcome for the first of two scores."""
    return TIE if one == other else WIN if one > other else LOSS
