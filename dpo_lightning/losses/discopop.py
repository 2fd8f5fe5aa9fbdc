"""Discovered preference optimization (DiscoPOP), the log-ratio modulated loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import MarginLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class DiscoPOPLoss(MarginLoss):
    """A blend of the logistic and the exponential loss, found by a search in which a language model wrote the losses.

    Paper: Lu et al. 2024, arXiv:2406.08414, eq. 5.
    Loss: with `x = beta h`, `m = sigmoid(x / tau)`: `-(1-m) log sigmoid(x) + m exp(-x)`.
    TRL: `discopop`.
    Use: as an alternative to DPO; the paper found it a little better on chat.
    Typical: beta 0.05 to 0.1; learning rate 5e-7.
    Check: 0.846574, 0.367879, 0.135335
    """

    tau: float = option(0.05, within="(0, 1]")
    """Width of the change from the logistic to the exponential loss; above 1 the loss would not be bounded."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; (1 + ln 2) / 2 where policy and reference agree."""
        chosen, rejected = self.scores(logps)
        x = self.beta * (chosen - rejected)
        # m exp(-x) as one exponential: apart, they are 0 times infinity.
        losses = -logsigmoid(x) * (-x / self.tau).sigmoid() + (logsigmoid(x / self.tau) - x).exp()
        return self.output(losses, logps, (chosen, rejected))
