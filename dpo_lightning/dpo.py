"""`DPOModule`: preference optimization of a policy against a reference, with any pairwise loss."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import AdamW

from dpo_lightning.callbacks.pairwise import PreferenceAccuracy, RewardMargins
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.console import say
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.logps import score
from dpo_lightning.losses import DPOLoss, PreferenceLoss
from dpo_lightning.models import CausalLM, without_dropout
from dpo_lightning.module import OptimizerFactory, PolicyModule
from dpo_lightning.precomputed import Precomputed
from dpo_lightning.references import AdapterDisabled, ReferencePolicy, default_reference
from dpo_lightning.scoring import Scoring
from dpo_lightning.types import PairLogps, PreferenceBatch, PreferenceOutput


class DPOModule(PolicyModule):
    """Train a policy to prefer chosen over rejected answers (Rafailov et al. 2023, arXiv:2305.18290)."""

    def __init__(
        self,
        policy: CausalLM,
        loss: PreferenceLoss = DPOLoss(),  # noqa: B008 - frozen, and the config shows it as the default
        reference: ReferencePolicy | None = None,
        learning_rate: float = 5e-7,
        optimizer: OptimizerFactory = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe the run.

        Args:
            policy: the model to train.
            loss: the preference loss with its hyperparameters.
            reference: what the policy is measured against. Left out, it follows from the policy: the adapter switched
                off for a new LoRA, a frozen copy of the start for everything else.
            learning_rate: handed to the optimizer.
            optimizer: class of the optimizer and its other options.
            lr_scheduler: class of a scheduler that is stepped once per optimizer step.
        """
        super().__init__(policy, learning_rate, optimizer, lr_scheduler)
        if isinstance(reference, AdapterDisabled) and policy.lora is None:
            raise UserError(
                ExitCode.CONFIG,
                Problem("AdapterDisabled needs a new adapter to switch off", "model.reference"),
                fix="leave --model.reference out (a whole model may get a new adapter by --model.policy.lora.r 16)",
            )
        self.loss = loss
        self.given_reference = reference
        self.reference: ReferencePolicy

    def configure_callbacks(self) -> list[Callback]:
        """Measures and the self-check that every run has; one given to the trainer takes the place of its kind."""
        return self.not_given(RewardMargins(), PreferenceAccuracy(), SelfCheck())

    def configure_model(self) -> None:
        """Load the policy, and bind the reference to it before a checkpoint can move it."""
        if "policy" not in self._modules:
            self._load()
        if isinstance(self.reference, Precomputed):
            self.reference.look_up(self.policy, Scoring.of(self.trainer, self.tokenizer))

    def _load(self) -> None:
        reference = self.given_reference or default_reference(self.builder)
        super().configure_model()
        silenced = without_dropout(self.policy)
        if silenced:
            say(
                f"dropout: {silenced} of the policy's dropouts are off, as DPO needs the policy and its "
                "reference to be one function at the start"
            )
        reference.bind(self.policy, self.builder)
        self.reference = reference
        chosen = "" if self.given_reference else " (follows from the policy)"
        say(f"reference: {type(reference).__name__}{chosen}")

    def takes_trees(self) -> bool:
        """Both models see the same batch."""
        return super().takes_trees() and self.reference.takes_trees()

    def compare(self, batch: PreferenceBatch, rows: str = "train") -> tuple[PreferenceOutput, PairLogps]:
        """Loss and log-probabilities of each pair; `rows` is the part of the data that its indices count in."""
        logps = PairLogps.of(score(self.policy, batch, self.head), self.reference(self.policy, batch, rows))
        return self.loss(logps), logps

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """The loss, and what callbacks measure: `preference` and `logps`, detached."""
        output, logps = self.compare(batch)
        loss = self.accumulate(output.losses, (batch.indices >= 0).to(output.losses))
        detached = output._replace(losses=output.losses.detach())
        return {"loss": loss, "preference": detached, "logps": logps.detach()}

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """What callbacks measure."""
        output, logps = self.compare(batch, "eval")
        return {"preference": output, "logps": logps}

    test_step = validation_step
    predict_step = validation_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the reference's digest."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference_digest"] = self.reference.digest(self.policy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on against another reference than the run began with."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint.get("reference_digest") != self.reference.digest(self.policy):
            raise UserError(
                ExitCode.CONFIG,
                Problem("the checkpoint was trained against another reference", "ckpt_path"),
                fix="give --model.policy.path (and --model.reference) of the run that wrote it",
            )
        if isinstance(self.reference, Precomputed):
            self.reference.moved = True
