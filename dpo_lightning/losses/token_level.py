"""Losses that look at tokens: at where they stand, at how surely they were drawn, at the distributions behind them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PairwiseLoss, PreferenceLoss
from dpo_lightning.losses.logistic import DPOLoss
from dpo_lightning.types import PairLogps, PreferenceOutput, Statistic

LARGEST_EXPONENT = 60.0
"""Beyond what log-probabilities can add up to here; exp of it is still a number in float32."""


@dataclass(frozen=True)
class LDDPOLoss(PreferenceLoss):
    """Length-desensitised DPO: tokens beyond the shorter answer's length count for less.

    Positions are those of scored tokens, and policy and reference are treated alike, so that the loss begins at ln 2.

    Paper: Liu et al. 2024, arXiv:2409.06411.
    Loss: `-log sigmoid(beta h)` of log-probabilities `sum of the first min(nw, nl) tokens + alpha * sum of the rest`.
    TRL: `ld_alpha` with `sigmoid`, so since 0.29; before, it changed the policy's side alone.
    Use: where answers grow longer and no better.
    Typical: beta 0.1, alpha 0.3 to 0.6; learning rate 5e-7.
    """

    alpha: float = 0.5
    """Weight of the tokens beyond; 1 is DPO, 0 leaves them out."""

    def __post_init__(self) -> None:
        """Check the range."""
        super().__post_init__()
        self.require("alpha", 0 <= self.alpha <= 1, "must lie in [0, 1]")

    @property
    def statistics(self) -> frozenset[Statistic]:
        """Log-probabilities of tokens."""
        return frozenset({"tokens"})

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        assert logps.policy_tokens is not None  # named in `statistics`
        assert logps.reference_tokens is not None
        shorter = torch.minimum(logps.chosen_lengths, logps.rejected_lengths).repeat(2)
        logratios = logps.policy_tokens - logps.reference_tokens
        within = torch.arange(logratios.shape[1], device=shorter.device) < shorter[:, None]
        chosen, rejected = torch.where(within, logratios, self.alpha * logratios).sum(1).chunk(2)
        return self.output(-logsigmoid(self.beta * (chosen - rejected)), logps, (chosen, rejected))


@dataclass(frozen=True)
class WPOLoss(PairwiseLoss):
    """Weighted preference optimization: pairs count by how likely the policy is to write them itself.

    Paper: Zhou et al. 2024, arXiv:2406.11827, eq. 2 with aligned weights.
    Loss: `w(yw) w(yl)` times the inner loss, `w = exp(mean_t [log pi(y_t) - log sum_v pi(v)^2])`, without gradient.
    TRL: `use_weighting`.
    Use: on pairs that another model wrote.
    Typical: as the inner loss.
    """

    loss: PairwiseLoss = DPOLoss()  # noqa: RUF009 - frozen
    """What is weighted; none that compares pairs with one another, or weights them itself."""

    def __post_init__(self) -> None:
        """Check the inner loss."""
        super().__post_init__()
        self.require("loss", self.loss.weighted, "compares pairs with one another and takes no weights")
        self.require("loss", "collisions" not in self.loss.statistics, "weights pairs itself: they would count squared")

    @property
    def statistics(self) -> frozenset[Statistic]:
        """How sure the policy was of each token."""
        return self.loss.statistics | {"collisions"}

    @property
    def reference_free(self) -> bool:
        """As the inner loss."""
        return self.loss.reference_free

    @property
    def margin_above_0(self) -> bool:
        """As the inner loss."""
        return self.loss.margin_above_0

    @property
    def state(self) -> torch.nn.Module | None:
        """That of the inner loss."""
        return self.loss.state

    def observe(self, output: PreferenceOutput, logps: PairLogps) -> None:
        """Hand on."""
        self.loss.observe(output, logps)

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses per pair, times the weights of both answers; the inner loss's, weighted, where both models agree."""
        output = self.loss(logps)
        return output._replace(losses=output.losses * self.weights(logps))

    @staticmethod
    def weights(logps: PairLogps) -> Tensor:
        """`w(yw) w(yl)` `[pair]`; an answer whose every token is the likeliest may count more than 1."""
        assert logps.collisions is not None  # named in `statistics`
        sums = torch.cat([logps.policy_chosen, logps.policy_rejected]).detach() - logps.collisions
        lengths = torch.cat([logps.chosen_lengths, logps.rejected_lengths]).clamp(min=1)
        chosen, rejected = (sums / lengths).chunk(2)
        return (chosen + rejected).clamp(max=LARGEST_EXPONENT).exp()


@dataclass(frozen=True)
class TDPO1Loss(PreferenceLoss):
    """Token-level DPO: the margin is corrected by how far the policy's distributions went from the reference's.

    Paper: Zeng et al. 2024, arXiv:2404.11999.
    Loss: `-log sigmoid(beta h - beta (Kl - Kw))`, `K = sum_t KL(ref || pi)` along an answer.
    TRL: none.
    Rewards: `beta (a + Kw)` and `beta (r + Kl)`, what the loss compares.
    Use: where DPO makes answers uniform; it needs the reference's whole vocabulary, so a live reference.
    Typical: beta 0.1; learning rate 5e-7.
    """

    @property
    def statistics(self) -> frozenset[Statistic]:
        """The divergence along both answers."""
        return frozenset({"kl"})

    def corrections(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to both log-ratios, from the divergence along both answers."""
        return chosen, rejected

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        assert logps.kl is not None  # named in `statistics`
        on_chosen, on_rejected = self.corrections(*logps.kl.chunk(2))
        scores = logps.chosen_logratios + on_chosen, logps.rejected_logratios + on_rejected
        return self.output(-logsigmoid(self.beta * (scores[0] - scores[1])), logps, scores)


@dataclass(frozen=True)
class TDPO2Loss(TDPO1Loss):
    """Token-level DPO whose correction pulls at the rejected answer alone, and by a strength of its own.

    Paper: Zeng et al. 2024, arXiv:2404.11999.
    Loss: `-log sigmoid(beta h - alpha beta (Kl - Kw))`, with no gradient through `Kw`.
    TRL: none.
    Use: in place of TDPO1, as its authors advise.
    Typical: beta 0.1, alpha 0.5; learning rate 5e-7.
    """

    alpha: float = 0.5
    """Strength of the correction."""

    def __post_init__(self) -> None:
        """Check the sign."""
        super().__post_init__()
        self.require("alpha", self.alpha >= 0, "must be 0 or more")

    def corrections(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to both log-ratios; the chosen one gets no gradient from it."""
        return self.alpha * chosen.detach(), self.alpha * rejected
