"""`DPOModule`: preference optimization of a policy against a reference, with any pairwise loss."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import AdamW

from dpo_lightning.batches import Batch
from dpo_lightning.callbacks.preference_accuracy import PreferenceAccuracy
from dpo_lightning.callbacks.reward_margins import RewardMargins
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.logps import score
from dpo_lightning.losses import DPOLoss, PairwiseLoss
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.policy_module import OptimizerFactory
from dpo_lightning.preference_module import PreferenceModule
from dpo_lightning.references import ReferencePolicy
from dpo_lightning.types import PairLogps, PreferenceOutput


class DPOModule(PreferenceModule):
    """Train a policy to prefer chosen over rejected answers (Rafailov et al. 2023, arXiv:2305.18290)."""

    loss: PairwiseLoss
    data_module = PreferenceDataModule

    def __init__(
        self,
        policy: CausalLM,
        loss: PairwiseLoss = DPOLoss(),  # noqa: B008 - frozen, and the config shows it as the default
        reference: ReferencePolicy | None = None,
        learning_rate: float = 5e-7,
        optimizer: OptimizerFactory = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe the run.

        Args:
            policy: the model to train.
            loss: the preference loss with its hyperparameters.
            reference: what the policy is measured against. Left out, it follows from the policy and the loss: the
                adapter switched off for a new LoRA, a frozen copy of an adapter that was trained before (or begins by
                moving the base), a frozen copy of a whole model, none for a loss without a reference.
            learning_rate: of the optimizer, before a scheduler changes it.
            optimizer: class of the optimizer and its other options.
            lr_scheduler: class of a scheduler that is stepped once per optimizer step.
        """
        super().__init__(policy, loss, reference, learning_rate, optimizer, lr_scheduler)

    def configure_callbacks(self) -> list[Callback]:
        """Measures and the self-check that every run has; one given to the trainer takes the place of its kind."""
        return self.exclude_given(RewardMargins(), PreferenceAccuracy(), SelfCheck())

    def compare(self, batch: Batch, rows: str = "train") -> tuple[PreferenceOutput, PairLogps]:
        """Loss and log-probabilities of each pair; `rows` is the part of the data that its indices count in."""
        wanted = self.loss.statistics
        others = self.reference.distributions(self.policy, batch) if "kl" in wanted else None
        policy = score(self.policy, batch, self.head, wanted, others)
        logps = PairLogps.of(policy, self.reference(self.policy, batch, rows, wanted), batch)
        return self.loss(logps), logps

    def columns(self, output: PreferenceOutput, logps: PairLogps) -> dict[str, list[Any]]:
        """What `predict` writes of each pair."""
        columns = {
            "loss": output.losses,
            "chosen_reward": output.chosen_rewards,
            "rejected_reward": output.rejected_rewards,
            "margin": output.margins,
            "chosen_logps": logps.policy_chosen,
            "rejected_logps": logps.policy_rejected,
            "reference_chosen_logps": logps.reference_chosen,
            "reference_rejected_logps": logps.reference_rejected,
        }
        return {name: values.tolist() for name, values in columns.items()}
