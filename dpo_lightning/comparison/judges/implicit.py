"""`ImplicitReward`: the reward that a preference-tuned model implies, log pi(y|x) - log ref(y|x)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpo_lightning.comparison.judges.base import ScoreJudge
from dpo_lightning.data.examples import Origin, Text

Score = Callable[[Sequence[Text], Sequence[str], Sequence[Origin]], list[float]]


class ImplicitReward(ScoreJudge):
    """Scores of a model against its reference, in nats (Rafailov et al. 2023, arXiv:2305.18290, eq. 5).

    beta and the partition function of a prompt are left out: they do not change which of two answers scores higher.
    """

    def __init__(self, score: Score, described: Mapping[str, Any]) -> None:
        """Store the function that scores answers to prompts, and what names model and reference."""
        self._score, self._described = score, described

    def describe(self) -> dict[str, Any]:
        """Return model and reference."""
        return {"judge": "implicit", **self._described}

    def score(self, prompts: Sequence[Text], answers: Sequence[str], origins: Sequence[Origin]) -> list[float]:
        """Return the difference of both log-probabilities of each answer, in nats."""
        return self._score(prompts, answers, origins)
