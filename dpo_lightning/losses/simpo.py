"""Simple preference optimization (SimPO): log-probabilities per token, without a reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import ReferenceFreeLoss, mean_logps, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class SimPOLoss(ReferenceFreeLoss):
    """Simple preference optimization: it compares log-probabilities per token, with a margin to reach.

    Paper: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    Loss: `-log sigmoid(beta (mw - ml) - gamma)`, m the mean log-probability of an answer's tokens.
    TRL: `simpo` of its CPOTrainer with `cpo_alpha=0`, whose `simpo_gamma` is gamma; the option of the authors' code is
        `gamma / beta`.
    Use: where no reference fits into memory, or longer answers must not be favoured.
    Typical: beta 2 to 10, gamma 0.3 to 0.5 of beta; learning rate 3e-7 to 1e-6, more breaks the model.
    Check: 2.039387, 0.313262, 3.73e-6
    """

    beta: float = 2.0
    """Scale of the mean log-probabilities."""

    gamma: float = option(1.0, within="[0, inf)")
    """Margin by which the reward of the chosen answer should be higher."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards `beta m` per pair."""
        chosen, rejected = mean_logps(logps)
        return self.output(-logsigmoid(self.beta * (chosen - rejected) - self.gamma), logps, (chosen, rejected))
