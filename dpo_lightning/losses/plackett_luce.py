"""List-wise DPO (Plackett-Luce): the loss of a whole ranking."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import ListwiseLoss, option
from dpo_lightning.types import RankedLogps, RankedOutput


@dataclass(frozen=True)
class PlackettLuceLoss(ListwiseLoss):
    """List-wise DPO: the likelihood of the whole order, where each answer is drawn from those that are left.

    Every list counts the same, and a longer one has a larger loss. For lists of two it equals `DPOLoss` bit by bit.

    Paper: Rafailov et al. 2023, arXiv:2305.18290, appendix A.3, eq. 20.
    Loss: `-sum_{j<k} log( exp(s_j) / sum_{i>=j} exp(s_i) )`, `s = beta (log pi - log ref)`, best answer first.
    TRL: none.
    Use: where three or more answers to a prompt are ranked; pairs made of them would count one answer several times.
    Typical: beta 0.01 to 0.5; learning rate 5e-7, an adapter 1e-5 to 1e-4.
    Check: 1.791759, 0.483108, 3.296774
    """

    beta: float = option(0.1, within="(0, inf)")
    """Strength of the pull towards the reference: a larger beta keeps the policy nearer to it."""

    def __call__(self, logps: RankedLogps) -> RankedOutput:
        """Losses and rewards per list; ln k! where policy and reference agree on k answers.

        Computed from the last answer to the first: each step is DPO's loss of an answer against the log-sum-exp of all
        answers behind it. A step is stable for any difference, and yields the log-sum-exp for the next one.
        """
        ratios, mask = logps.logratios, logps.mask
        behind, losses = ratios[:, -1], torch.zeros_like(ratios[:, 0])
        for rank in reversed(range(ratios.shape[1] - 1)):
            followed = mask[:, rank + 1]
            step = torch.where(followed, -logsigmoid(self.beta * (ratios[:, rank] - behind)), 0)
            losses = losses + step
            behind = ratios[:, rank] + step / self.beta
        return RankedOutput(losses, (self.beta * ratios).detach(), mask)
