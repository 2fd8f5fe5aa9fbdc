"""`ListwiseDPOModule`: DPO on ranked lists of any length in place of pairs."""

from __future__ import annotations

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import AdamW

from dpo_lightning.callbacks.ranked import RankedRewards
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.dpo import DPOModule
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.logps import score
from dpo_lightning.losses import ListwiseLoss, PlackettLuceLoss
from dpo_lightning.models import CausalLM
from dpo_lightning.module import OptimizerFactory
from dpo_lightning.precomputed import Precomputed
from dpo_lightning.rankings import GroupLogps, RankedOutput
from dpo_lightning.references import KEY, ReferencePolicy
from dpo_lightning.types import RankedBatch


class ListwiseDPOModule(DPOModule):
    """Train a policy to rank answers as the rows do; references and checkpoints are those of `DPOModule`."""

    loss: ListwiseLoss  # type: ignore[assignment]  # a step asks nothing of a loss that lists do not have

    def __init__(
        self,
        policy: CausalLM,
        loss: ListwiseLoss = PlackettLuceLoss(),  # noqa: B008 - frozen, and the config shows it as the default
        reference: ReferencePolicy | None = None,
        learning_rate: float = 5e-7,
        optimizer: OptimizerFactory = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe the run; the arguments are those of `DPOModule`, but for a loss of lists."""
        super().__init__(policy, loss, reference, learning_rate, optimizer, lr_scheduler)  # type: ignore[arg-type]
        check_live(reference)

    def configure_callbacks(self) -> list[Callback]:
        """The measure and the self-check that every run has."""
        return self.not_given(RankedRewards(), SelfCheck())

    def configure_model(self) -> None:
        """Load the policy, and bind the reference."""
        check_live(self.given_reference)  # `precompute` puts one there
        super().configure_model()

    def compare(self, batch: RankedBatch, rows: str = "train") -> tuple[RankedOutput, GroupLogps]:  # type: ignore[override]
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
            Problem("Precomputed finds rows by their two answers, and lists have any number of them", KEY),
            fix=f"leave --{KEY} out, or --{KEY} FrozenCopy",
        )
