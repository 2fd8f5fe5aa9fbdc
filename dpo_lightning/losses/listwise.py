"""Losses of a whole ranking instead of a pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PolicyLoss
from dpo_lightning.types import GroupLogps, RankedOutput


@dataclass(frozen=True)
class ListwiseLoss(PolicyLoss, ABC):
    """Root of the losses of ranked lists: `__call__` is the formula."""

    @abstractmethod
    def __call__(self, logps: GroupLogps) -> RankedOutput:
        """Map the log-probabilities of lists of answers, best first, to losses `[list]` and implicit rewards."""


@dataclass(frozen=True)
class PlackettLuceLoss(ListwiseLoss):
    """List-wise DPO: the likelihood of the whole order, drawn best first, each from what is left.

    Every list counts the same; a longer one has a larger loss. Lists of two are DPO's pairs, to the bit.

    Paper: Rafailov et al. 2023, arXiv:2305.18290, appendix A.3, eq. 20.
    Loss: `-sum_{j<k} log( exp(s_j) / sum_{i>=j} exp(s_i) )`, `s = beta (log pi - log ref)`, best answer first.
    TRL: none.
    Use: where three or more answers to a prompt are ranked; pairs made of them would count one answer several times.
    Typical: beta 0.01 to 0.5; learning rate 5e-7, an adapter 1e-5 to 1e-4.
    """

    beta: float = 0.1
    """Strength of the pull towards the reference: a larger beta keeps the policy nearer to it."""

    def __post_init__(self) -> None:
        """Check beta."""
        super().__post_init__()
        self.require("beta", self.beta > 0, "must be greater than 0")

    def __call__(self, logps: GroupLogps) -> RankedOutput:
        """Losses and rewards per list; ln k! where policy and reference agree on k answers.

        From the last answer to the first: a step is DPO's loss of an answer against the log-sum of all behind it, which
        is safe for any difference, and gives the log-sum for the next one.
        """
        ratios, mask = logps.logratios, logps.mask
        behind, losses = ratios[:, -1], torch.zeros_like(ratios[:, 0])
        for rank in reversed(range(ratios.shape[1] - 1)):
            followed = mask[:, rank + 1]
            step = torch.where(followed, -logsigmoid(self.beta * (ratios[:, rank] - behind)), 0)
            losses = losses + step
            behind = ratios[:, rank] + step / self.beta
        return RankedOutput(losses, (self.beta * ratios).detach(), mask)
