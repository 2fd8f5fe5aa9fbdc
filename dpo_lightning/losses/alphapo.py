"""AlphaPO: SimPO with a reward of another shape."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import ReferenceFreeLoss, mean_logps, option
from dpo_lightning.types import PairLogps, PreferenceOutput

LARGEST_EXPONENT = 60.0
"""exp(60) times a large beta is still finite in float32."""


@dataclass(frozen=True)
class AlphaPOLoss(ReferenceFreeLoss):
    """SimPO with another shape of the reward; alpha 0 is SimPO.

    Paper: Gupta et al. 2025, arXiv:2501.03884.
    Loss: `-log sigmoid(rw - rl - gamma)` with `r = beta (1 - exp(-alpha m)) / alpha`.
    TRL: `alphapo` of its CPOTrainer, whose `alpha` is the same.
    Use: in place of SimPO, where likelihoods fall too far.
    Typical: beta 2.5 to 10, alpha -0.25 to 0.25, gamma 0.1 to 1; learning rate 3e-7 to 1e-6.
    Check: 1.665342, 6.36e-5, 0
    """

    beta: float = 2.5
    """Scale of the rewards."""

    gamma: float = option(0.25, within="[0, inf)")
    """Margin by which the reward of the chosen answer should be higher."""

    alpha: float = 0.25
    """Shape of the reward: above 0, it falls exponentially for unlikely answers."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards `r` per pair."""
        chosen, rejected = (self.shape_reward(mean) for mean in mean_logps(logps))
        return self.output(-logsigmoid(self.beta * (chosen - rejected) - self.gamma), logps, (chosen, rejected))

    def shape_reward(self, mean: Tensor) -> Tensor:
        """`(1 - exp(-alpha m)) / alpha`; m itself at alpha 0, which is the limit."""
        if abs(self.alpha) < 1e-6:  # 0 / 0 otherwise
            return mean
        return -(-self.alpha * mean).clamp(max=LARGEST_EXPONENT).expm1() / self.alpha
