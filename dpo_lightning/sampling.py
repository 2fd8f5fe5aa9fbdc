"""`Sampling`: how tokens of an answer are sampled. It is checked before torch is imported."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_lightning.errors import ExitCode, Problem, UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens of an answer are sampled."""

    max_new_tokens: int = 128
    """Length limit of an answer."""

    temperature: float = 0.7
    """0 takes the most likely token each time."""

    top_p: float = 0.95
    """Sample from the smallest set of tokens whose probabilities sum to this."""

    seed: int = 0
    """The same seed gives the same answer to a prompt, whatever the other prompts of the batch are."""

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "of at least 1"),
            ("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "of at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and up to 1"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1"),
        ):
            if not good:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem(f"{name}={getattr(self, name)} is out of range", name),
                    fix=f"--{name} {allowed}",
                )

    def prompt_seed(self, prompt: Sequence[int]) -> int:
        """Return the seed of the answer to a prompt, given as token ids."""
        text = f"{self.seed} {' '.join(map(str, prompt))}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
