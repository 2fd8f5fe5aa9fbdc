"""The rows of the losses' check numbers: as the losses are given them, and as a table of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dpo_lightning.losses import ListwiseLoss, UnpairedLoss
from dpo_lightning.types import PairLogps, RankedLogps, UnpairedLogps

POLICY = ((-0.5, -10.0, -1.0), (-0.1, -30.0, -21.0))
REFERENCE = ((-0.5, -10.1, -0.1), (-0.1, -20.1, -0.1))
TOKENS = ((1, 2, 4), (2, 5, 3))
KL = ((0.0, 0.4, 0.8), (0.0, 0.5, 0.3))
RATINGS = (1.0, 2.0, 0.5)
COLLISION, MISMATCHED = -0.25, 0.5
LISTS = ((0.0, 0.0, 0.0), (20.0, 0.0, -10.0), (-10.0, 20.0, 0.0))
"""Chosen answers first; log-probabilities and numbers of tokens are those of torchtune's tests."""


def make_check_rows(kind: type) -> Any:
    """What a loss is given to compute its check numbers, in float64."""
    policy, reference, tokens, kl = (
        torch.tensor(rows, dtype=torch.float64) for rows in (POLICY, REFERENCE, TOKENS, KL)
    )
    if issubclass(kind, UnpairedLoss):
        good = torch.tensor([True] * 3 + [False] * 3)
        mean = torch.tensor(MISMATCHED, dtype=torch.float64)
        return UnpairedLogps(policy.flatten(), reference.flatten(), tokens.flatten(), good, kl=mean)
    if issubclass(kind, ListwiseLoss):
        ratios = torch.tensor(LISTS, dtype=torch.float64)
        return RankedLogps(ratios, 0 * ratios, torch.ones_like(ratios), torch.ones_like(ratios, dtype=torch.bool))
    within = torch.arange(int(tokens.max())) < tokens.flatten()[:, None]
    policy_tokens, reference_tokens = (
        torch.where(within, (sums / tokens).flatten()[:, None], 0) for sums in (policy, reference)
    )
    return PairLogps(
        *policy, *reference, *tokens, given_margins=torch.tensor(RATINGS, dtype=torch.float64),
        policy_tokens=policy_tokens, reference_tokens=reference_tokens,
        collisions=COLLISION * tokens.flatten(), kl=kl.flatten(),
    )  # fmt: skip


def render_check_rows() -> Iterator[str]:
    """A table of the check rows, and the sentences below it."""
    names = ("policy log-probability", "reference log-probability", "scored tokens", "KL divergence along the answer")
    yield "| | row 1 | row 2 | row 3 |\n|---|---|---|---|"
    for name, both in zip(names, (POLICY, REFERENCE, TOKENS, KL), strict=True):
        for side, values in zip(("chosen", "rejected"), both, strict=True):
            yield f"| {name}, {side} | " + " | ".join(f"{value:g}" for value in values) + " |"
    yield "| column `margin` | " + " | ".join(f"{value:g}" for value in RATINGS) + " |"
    lists = "; ".join(", ".join(f"{value:g}" for value in row) for row in LISTS)
    yield (
        f"\nLog-probabilities are spread evenly over tokens, and `collisions` are {COLLISION:g} a token.\n"
        "Losses of single answers take the three chosen answers as good ones, then the three rejected as bad ones, "
        f"with\n`kl` {MISMATCHED:g}. Losses of ranked lists take lists of the log-ratios {lists}."
    )
