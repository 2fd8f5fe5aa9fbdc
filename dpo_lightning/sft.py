"""`SFTModule`: supervised fine-tuning on completions, weighted by tokens."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import AdamW

from dpo_lightning.batches import Batch
from dpo_lightning.callbacks.token_loss import TokenLoss
from dpo_lightning.data.datamodules import SFTDataModule
from dpo_lightning.logps import score
from dpo_lightning.loss_requirements import check_weights, report_weights
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.policy_module import OptimizerFactory, PolicyModule
from dpo_lightning.types import SequenceLogps


class SFTModule(PolicyModule):
    """Maximise the likelihood of completions; every token of an optimizer step counts by the `weight` of its row."""

    data_module = SFTDataModule

    def __init__(
        self,
        policy: CausalLM,
        learning_rate: float = 2e-5,
        optimizer: OptimizerFactory = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe the run; the arguments are those of `PolicyModule`."""
        super().__init__(policy, learning_rate, optimizer, lr_scheduler)
        self._reported = False

    def setup(self, stage: str) -> None:
        """Settle memory, and look at the rows' weights; what is said of them is said once a run."""
        super().setup(stage)
        rows = getattr(getattr(self.trainer, "datamodule", None), "encoded", {}).get("train", ())
        check_weights(rows)
        if not self._reported:
            report_weights(rows)
            self._reported = True

    def configure_callbacks(self) -> list[Callback]:
        """The measure that every run has."""
        return self.exclude_given(TokenLoss())

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The loss, and the log-probabilities that callbacks measure."""
        logps = score(self.policy, batch, self.head)
        counted = logps.lengths * batch.weights
        loss = self.accumulate(-logps.sums / logps.lengths.clamp(min=1), counted)
        return {"loss": loss, "logps": SequenceLogps(logps.sums.detach(), logps.lengths)}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Compute the log-probabilities that callbacks turn into metrics; there is no loss here."""
        return {"logps": score(self.policy, batch, self.head)}

    def columns(self, output: None, logps: SequenceLogps) -> dict[str, list[Any]]:
        """What `predict` writes of each row."""
        return {"logps": logps.sums.tolist(), "tokens": logps.lengths.tolist()}

    test_step = validation_step
    predict_step = validation_step
