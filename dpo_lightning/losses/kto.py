"""Kahneman-Tversky optimization (KTO): single answers, labelled good or bad."""

from __future__ import annotations

from dataclasses import dataclass

from dpo_lightning.losses.base import ClassWeightedLoss
from dpo_lightning.types import UnpairedLogps, UnpairedOutput


@dataclass(frozen=True)
class KTOLoss(ClassWeightedLoss):
    """Kahneman-Tversky optimization: good answers above, bad ones below the divergence from the reference.

    `z` is the mean log-ratio of mismatched answers, at least 0 and without a gradient: one number for the micro-batch
    of all ranks. A step therefore depends on how its rows are cut into micro-batches, but not on how these are shared
    out to ranks. The mismatched answers come from the whole data set, so that a micro-batch may be of a single row;
    larger ones make `z` steadier.

    Paper: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7.
    Loss: `w_D (1 - sigmoid(beta (a - z)))` if good, `w_U (1 - sigmoid(beta (z - a)))` if bad, a the log-ratio.
    TRL: `kto` of its `KTOTrainer`, which mismatches answers within a micro-batch of fixed order.
    Use: thumbs up and down, also where one of the two is much rarer.
    Typical: beta 0.1; learning rate 5e-7 to 5e-6; weights such that w_D n_D / (w_U n_U) lies in [1, 4/3].
    Check: 0.512497, 0.509999, 0.534943, 0.487503, 0.26115, 0.105269
    """

    needs_kl = True

    def __call__(self, logps: UnpairedLogps) -> UnpairedOutput:
        """Losses and rewards per answer; half its weight where policy and reference agree."""
        assert logps.kl is not None, "KTO needs the log-ratios of mismatched answers"
        return self.apply_class_weights(self.beta * (logps.logratios - logps.kl.clamp(min=0)), logps)
