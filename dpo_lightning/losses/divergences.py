"""f-divergences: replacements of the log-ratio, by which another measure than the reverse KL limits the policy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.errors import ExitCode, Problem, UserError

LARGEST_EXPONENT = 40.0
"""The square of exp(40) is still finite in float32; IPO squares it."""


@dataclass(frozen=True)
class Divergence(ABC):
    """The derivative `f'` of a divergence's generator (Wang et al. 2023, f-DPO, arXiv:2309.16240, table 1).

    Constants are left out: they cancel in the losses that take a divergence, and so does the unknown normaliser.
    """

    @abstractmethod
    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """`f'(t)` for `t = policy / reference`, computed from log t; 0 where policy and reference agree."""


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(policy || reference), that of DPO: `f'(t) = log t`. TRL: `reverse_kl`."""

    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """`log t`, which is the argument."""
        return logratios


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(reference || policy): `f'(t) = 1 - 1/t`. TRL: `forward_kl`."""

    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """`1 - 1/t`: at most 1, and falls exponentially where an answer becomes less likely."""
        return -(-logratios).clamp(max=LARGEST_EXPONENT).expm1()


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Jensen-Shannon: `f'(t) = log(2t / (t + 1))`. TRL: `js_divergence`."""

    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """`log(2t / (t + 1))`, which is at most ln 2."""
        return math.log(2) + logsigmoid(logratios)


@dataclass(frozen=True)
class AlphaDivergence(Divergence):
    """A family that contains both KLs: `f'(t) = (t^(alpha-1) - 1) / (alpha - 1)`.

    TRL: `alpha_divergence` since 0.29; before, its coefficient was `1 - alpha`.
    """

    alpha: float = 0.5
    """0 is the forward KL, 1 the reverse KL."""

    def __post_init__(self) -> None:
        """Refuse an alpha that is not finite."""
        if not math.isfinite(self.alpha):
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"AlphaDivergence alpha={self.alpha} must be a finite number", "model.loss.divergence.alpha"),
                fix="give --model.loss.divergence.alpha another value",
            )

    def __call__(self, logratios: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """`f'(t)`; at alpha 1 its limit, the log-ratio."""
        power = self.alpha - 1
        if abs(power) < 1e-6:  # 0 / 0 otherwise
            return logratios
        return (power * logratios).clamp(max=LARGEST_EXPONENT).expm1() / power
