"""`RewardModelJudge`: a classifier with one output, trained to score answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpo_lightning.comparison.judges.base import ScoreJudge
from dpo_lightning.comparison.texts import as_messages, format_prompt
from dpo_lightning.data.examples import Origin, Text
from dpo_lightning.models.reward_model import RewardModel
from dpo_lightning.runs.lineage import folder_digest


class RewardModelJudge(ScoreJudge):
    """Scores of a reward model."""

    def __init__(self, model: RewardModel, batch_size: int = 8) -> None:
        """Store the model, and how many answers are scored at a time."""
        self._model, self._batch_size = model, batch_size

    def describe(self) -> dict[str, Any]:
        """Return the folder of the model and the digest of its weights."""
        return {"judge": "reward_model", "model": self._model.path, "digest": folder_digest(self._model.path)}

    def score(self, prompts: Sequence[Text], answers: Sequence[str], origins: Sequence[Origin]) -> list[float]:
        """Return the model's output for each answer.

        Raises:
            UserError: 65, the model's chat template rejects a prompt, or a row is longer than its positions.
        """
        rows = [
            self._model.encode(as_messages(prompt), format_prompt(prompt), answer, origin)
            for prompt, answer, origin in zip(prompts, answers, origins, strict=True)
        ]
        return self._model.score(rows, self._batch_size)
