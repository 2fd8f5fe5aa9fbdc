"""`KTOModule`: unpaired rows, answers with a label each (good or bad), with any unpaired loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable
from torch import Tensor
from torch.optim import AdamW

from dpo_lightning.batches import Batch
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.callbacks.unpaired_rewards import UnpairedRewards
from dpo_lightning.data.datamodules import UnpairedDataModule
from dpo_lightning.data.kinds.unpaired import EncodedUnpaired
from dpo_lightning.log import logger
from dpo_lightning.logps import score
from dpo_lightning.losses import ClassWeightedLoss, KTOLoss, UnpairedLoss
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.policy_module import OptimizerFactory
from dpo_lightning.preference_module import PreferenceModule
from dpo_lightning.references import ReferencePolicy
from dpo_lightning.types import UnpairedLogps, UnpairedOutput

BALANCE = (1.0, 4 / 3)
"""Weighted good answers to weighted bad ones, as KTO's authors recommend (Ethayarajh et al. 2024)."""


class KTOModule(PreferenceModule):
    """Train a policy towards good answers and away from bad ones (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    loss: UnpairedLoss
    data_module = UnpairedDataModule

    def __init__(
        self,
        policy: CausalLM,
        loss: UnpairedLoss = KTOLoss(),  # noqa: B008 - frozen, and the config shows it as the default
        reference: ReferencePolicy | None = None,
        learning_rate: float = 5e-7,
        optimizer: OptimizerFactory = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe the run.

        Args:
            policy: the model to train.
            loss: the loss of unpaired rows with its hyperparameters.
            reference: what the policy is measured against. Left out, it follows from the policy: the adapter switched
                off for a new LoRA, a frozen copy of the start for everything else.
            learning_rate: of the optimizer, before a scheduler changes it.
            optimizer: class of the optimizer and its other options.
            lr_scheduler: class of a scheduler that is stepped once per optimizer step.
        """
        super().__init__(policy, loss, reference, learning_rate, optimizer, lr_scheduler)

    def configure_callbacks(self) -> list[Callback]:
        """Measures and the self-check that every run has; one given to the trainer takes the place of its kind."""
        return self.exclude_given(UnpairedRewards(), SelfCheck())

    def setup(self, stage: str) -> None:
        """Settle memory, and tell how the kinds of answers weigh."""
        super().setup(stage)
        rows = getattr(getattr(self.trainer, "datamodule", None), "encoded", {}).get("train", ())
        if stage == "fit" and rows and isinstance(self.loss, ClassWeightedLoss):
            report_balance(self.loss, rows)

    def compare(self, batch: Batch, rows: str = "train") -> tuple[UnpairedOutput, UnpairedLogps]:
        """Loss and log-probabilities of each answer; `rows` is the part of the data that its indices count in."""
        policy, reference = score(self.policy, batch, self.head), self.reference(self.policy, batch, rows)
        kl = None
        if self.needs_mismatched:  # these follow the answers that have a label
            others = slice(len(batch.indices), None)
            kl = self.mean(policy.sums[others].detach() - reference.sums[others], batch.weights)
        logps = UnpairedLogps.of(policy, reference, batch, kl)
        return self.loss(logps), logps

    def columns(self, output: UnpairedOutput, logps: UnpairedLogps) -> dict[str, list[Any]]:
        """What `predict` writes of each answer."""
        columns = {
            "loss": output.losses,
            "label": logps.good,
            "reward": output.rewards,
            "logps": logps.policy,
            "reference_logps": logps.reference,
        }
        return {name: values.tolist() for name, values in columns.items()}

    @property
    def needs_mismatched(self) -> bool:
        """Whether the loss measures the divergence from the reference by mismatched answers."""
        return self.loss.needs_kl

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean over the micro-batch of all ranks; 0 where nothing counts."""
        sums = torch.stack([torch.where(weights > 0, values * weights, 0).sum(), weights.sum()])
        total, weight = self.trainer.strategy.reduce(sums, reduce_op="sum").unbind()
        return total / torch.where(weight > 0, weight, 1)


def report_balance(loss: ClassWeightedLoss, rows: Sequence[EncodedUnpaired]) -> None:
    """Say how much the kinds of answers weigh, where that is not what the authors of KTO recommend."""
    least, most = BALANCE
    good, bad = ([row.weight for row in rows if row.good is kind] for kind in (True, False))
    weights = loss.desirable_weight * math.fsum(good), loss.undesirable_weight * math.fsum(bad)
    if not least * weights[1] <= weights[0] <= most * weights[1]:
        logger.info(
            f"note: {len(good)} good answers weigh {weights[0]:g}, {len(bad)} bad ones {weights[1]:g}; "
            "KTO's authors recommend 1 to 4/3 times as much "
            "(--model.loss.desirable_weight, --model.loss.undesirable_weight)"
        )
