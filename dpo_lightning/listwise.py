"""`ListwiseDPOModule`: DPO on ranked lists of any length in place of pairs."""

from __future__ import annotations

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import AdamW

from dpo_lightning.batches import RankedBatch
from dpo_lightning.callbacks.ranked_rewards import RankedRewards
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.logps import score
from dpo_lightning.losses import ListwiseLoss, PlackettLuceLoss
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.policy_module import OptimizerFactory
from dpo_lightning.preference_module import PreferenceModule
from dpo_lightning.references import REFERENCE_KEY, ReferencePolicy
from dpo_lightning.references.precomputed import Precomputed
from dpo_lightning.types import GroupLogps, RankedOutput


class ListwiseDPOModule(PreferenceModule):
    """Train a policy to rank answers as the rows do (Rafailov et al. 2023, arXiv:2305.18290, appendix A.3)."""

    loss: ListwiseLoss
    measured = "ranked"

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
                off for a new LoRA, a frozen copy of the start for everything else. A file holds none of lists.
            learning_rate: handed to the optimizer.
            optimizer: class of the optimizer and its other options.
            lr_scheduler: class of a scheduler that is stepped once per optimizer step.
        """
        super().__init__(policy, loss, reference, learning_rate, optimizer, lr_scheduler)
        check_live(reference)

    def configure_callbacks(self) -> list[Callback]:
        """Measures and the self-check that every run has; one given to the trainer takes the place of its kind."""
        return self.exclude_given(RankedRewards(), SelfCheck())

    def configure_model(self) -> None:
        """Load the policy, and bind the reference."""
        check_live(self.given_reference)  # `precompute` puts one there
        super().configure_model()

    def compare(self, batch: RankedBatch, rows: str = "train") -> tuple[RankedOutput, GroupLogps]:
        """Loss per list and log-probabilities of its answers; `rows` is the part of the data that indices count in."""
        wanted = self.loss.statistics
        policy = score(self.policy, batch, self.head, wanted)
        logps = GroupLogps.of(policy, self.reference(self.policy, batch, rows, wanted), batch)
        return self.loss(logps), logps


def check_live(reference: ReferencePolicy | None) -> None:
    """Refuse a file of log-probabilities.

    Raises:
        UserError: the reference is one.
    """
    if isinstance(reference, Precomputed):
        raise UserError(
            ExitCode.CONFIG,
            Problem("Precomputed finds the same number of answers for every row, and lists have any", REFERENCE_KEY),
            fix=f"leave --{REFERENCE_KEY} out, or --{REFERENCE_KEY} FrozenCopy",
        )
