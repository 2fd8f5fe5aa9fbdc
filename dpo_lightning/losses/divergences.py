"""f-divergences: what takes the place of a log-ratio where the policy is held to its reference by another measure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.errors import ExitCode, Problem, UserError

LARGEST_EXPONENT = 40.0
"""The square of its exp is still a number in float32, which IPO needs."""


@dataclass(frozen=True)
class Divergence(ABC):
    """The derivative `f'` of a divergence's generator (Wang et al. 2023, f-DPO, arXiv:2309.16240, table 1).

    Constants are left out: in the losses that take a divergence they cancel, and so does the unknown normaliser.
    """

    @abstractmethod
    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """`f'(t)` for the ratio `t = policy / reference`, of which the logarithm is given; 0 where the two agree."""


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(policy || reference), that of DPO: `f'(t) = log t`. TRL: `reverse_kl`."""

    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """The log-ratio itself."""
        return logratios


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(reference || policy): `f'(t) = 1 - 1/t`. TRL: `forward_kl`."""

    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """At most 1, and falls exponentially where the policy gives an answer up."""
        return -(-logratios).clamp(max=LARGEST_EXPONENT).expm1()


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Jensen-Shannon: `f'(t) = log(2t / (t + 1))`. TRL: `js_divergence`."""

    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """At most ln 2."""
        return math.log(2) + logsigmoid(logratios)


@dataclass(frozen=True)
class AlphaDivergence(Divergence):
    """A family with both KLs in it: `f'(t) = (t^(alpha-1) - 1) / (alpha - 1)`.

    TRL: `alpha_divergence` since 0.29; before, its coefficient was `1 - alpha`.
    """

    alpha: float = 0.5
    """0 is the forward KL, 1 the reverse KL."""

    def __post_init__(self) -> None:
        """Check that alpha is a number."""
        if not math.isfinite(self.alpha):
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"AlphaDivergence alpha={self.alpha} is no number", "model.loss.divergence.alpha"),
                fix="give --model.loss.divergence.alpha another value",
            )

    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """The log-ratio itself at 1, which is the limit."""
        power = self.alpha - 1
        if abs(power) < 1e-6:
            return logratios
        return (power * logratios).clamp(max=LARGEST_EXPONENT).expm1() / power
