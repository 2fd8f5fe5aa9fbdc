"""`ListwiseDPOModule`: DPO on ranked lists of any length in place of pairs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import AdamW

from dpo_lightning.batches import Batch
from dpo_lightning.callbacks.ranked_rewards import RankedRewards
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.data.datamodules import RankedDataModule
from dpo_lightning.logps import score
from dpo_lightning.losses import ListwiseLoss, PlackettLuceLoss
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.policy_module import OptimizerFactory
from dpo_lightning.preference_module import PreferenceModule
from dpo_lightning.references import ReferencePolicy
from dpo_lightning.types import RankedLogps, RankedOutput


class ListwiseDPOModule(PreferenceModule):
    """Train a policy to rank answers as the rows do (Rafailov et al. 2023, arXiv:2305.18290, appendix A.3)."""

    loss: ListwiseLoss
    data_module = RankedDataModule

    def __init__(
        self,
        policy: CausalLM,
        loss: ListwiseLoss = PlackettLuceLoss(),  # noqa: B008 - frozen, and the config shows it as the default
        reference: ReferencePolicy | None = None,
        learning_rate: float = 5e-7,
        optimizer: OptimizerFactory = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe the run.

        Args:
            policy: the model to train.
            loss: the loss of ranked lists with its hyperparameters.
            reference: what the policy is measured against. Left out, it follows from the policy: the adapter switched
                off for a new LoRA, a frozen copy of the start for everything else.
            learning_rate: of the optimizer, before a scheduler changes it.
            optimizer: class of the optimizer and its other options.
            lr_scheduler: class of a scheduler that is stepped once per optimizer step.
        """
        super().__init__(policy, loss, reference, learning_rate, optimizer, lr_scheduler)

    def configure_callbacks(self) -> list[Callback]:
        """Measures and the self-check that every run has; one given to the trainer takes the place of its kind."""
        return self.exclude_given(RankedRewards(), SelfCheck())

    def compare(self, batch: Batch, rows: str = "train") -> tuple[RankedOutput, RankedLogps]:
        """Loss per list and log-probabilities of its answers; `rows` is the part of the data that indices count in."""
        wanted = self.loss.statistics
        policy = score(self.policy, batch, self.head, wanted)
        logps = RankedLogps.of(policy, self.reference(self.policy, batch, rows, wanted), batch)
        return self.loss(logps), logps

    def columns(self, output: RankedOutput, logps: RankedLogps) -> dict[str, list[Any]]:
        """What `predict` writes of each list; all but the loss have a number per answer, best first."""
        tables = {"rewards": output.rewards, "logps": logps.policy, "reference_logps": logps.reference}
        cut = {
            name: [row[own].tolist() for row, own in zip(table, output.mask, strict=True)]
            for name, table in tables.items()
        }
        return {"loss": output.losses.tolist(), **cut}
