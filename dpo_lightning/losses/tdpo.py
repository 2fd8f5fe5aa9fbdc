"""Token-level DPO (TDPO), in both versions of the paper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class TDPO1Loss(PreferenceLoss):
    """Token-level DPO: the margin is corrected by the KL divergence from the reference along both answers.

    Paper: Zeng et al. 2024, arXiv:2404.11999.
    Loss: `-log sigmoid(beta h - beta (Kl - Kw))`, `K = sum_t KL(ref || pi)` along an answer.
    TRL: none.
    Rewards: `beta (a + Kw)` and `beta (r + Kl)`, what the loss compares.
    Use: where DPO reduces the diversity of answers. It reads the reference's distributions over the vocabulary, which a
        precomputed reference does not have.
    Typical: beta 0.1; learning rate 5e-7.
    Check: 0.693147, 0.315961, 0.121097
    """

    statistics = frozenset({"kl"})

    def compute_corrections(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to both log-ratios: here the divergences along both answers as they are."""
        return chosen, rejected

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        assert logps.kl is not None  # named in `statistics`
        # Chosen answers come first in `kl`.
        on_chosen, on_rejected = self.compute_corrections(*logps.kl.chunk(2))
        scores = logps.chosen_logratios + on_chosen, logps.rejected_logratios + on_rejected
        return self.output(-logsigmoid(self.beta * (scores[0] - scores[1])), logps, scores)


@dataclass(frozen=True)
class TDPO2Loss(TDPO1Loss):
    """Token-level DPO whose correction has a strength of its own and no gradient through the chosen answer.

    Paper: Zeng et al. 2024, arXiv:2404.11999.
    Loss: `-log sigmoid(beta h - alpha beta (Kl - Kw))`, with no gradient through `Kw`.
    TRL: none.
    Use: in place of TDPO1, as its authors advise.
    Typical: beta 0.1, alpha 0.5; learning rate 5e-7.
    Check: 0.693147, 0.314609, 0.123981
    """

    alpha: float = option(0.5, within="[0, inf)")
    """Strength of the correction."""

    def compute_corrections(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to both log-ratios; the chosen one gets no gradient from it."""
        return self.alpha * chosen.detach(), self.alpha * rejected
