"""`DPOModule`: preference optimization of a policy against a reference, with any pairwise loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim import AdamW, Optimizer

from dpo_lightning.callbacks.pairwise import PreferenceAccuracy, RewardMargins
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.console import say
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.logps import score
from dpo_lightning.losses import DPOLoss, PairwiseLoss
from dpo_lightning.losses.running import RunningMean
from dpo_lightning.models import CausalLM, without_dropout
from dpo_lightning.module import OptimizerFactory, PolicyModule
from dpo_lightning.needs import check_columns, check_wanted, tell_columns
from dpo_lightning.precomputed import Precomputed
from dpo_lightning.references import KEY, AdapterDisabled, ReferencePolicy, default_reference
from dpo_lightning.scoring import Scoring
from dpo_lightning.types import PairLogps, PreferenceBatch, PreferenceOutput


class DPOModule(PolicyModule):
    """Train a policy to prefer chosen over rejected answers (Rafailov et al. 2023, arXiv:2305.18290)."""

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
        check_wanted(loss, reference)
        self.loss, self.loss_state = loss, loss.state
        self.given_reference = reference
        self.reference: ReferencePolicy

    def configure_callbacks(self) -> list[Callback]:
        """Measures and the self-check that every run has; one given to the trainer takes the place of its kind."""
        return self.not_given(RewardMargins(), PreferenceAccuracy(), SelfCheck())

    def setup(self, stage: str) -> None:
        """Settle memory, and see that the rows have what the loss needs."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        for name, rows in getattr(data, "encoded", {}).items():
            check_columns(self.loss, rows)
            tell_columns(self.loss, name, rows)

    def configure_model(self) -> None:
        """Load the policy, and bind the reference to it before a checkpoint can move it."""
        if "policy" not in self._modules:
            self._load()
        if isinstance(self.reference, Precomputed):
            self.reference.look_up(self.policy, Scoring.of(self.trainer, self.tokenizer))

    def _load(self) -> None:
        super().configure_model()
        silenced = without_dropout(self.policy)
        if silenced:
            say(
                f"dropout: {silenced} of the policy's dropouts are off, as DPO needs the policy and its "
                "reference to be one function at the start"
            )
        reference, reason = self.given_reference, ""
        self.given_reference = None  # under two names, its state would be saved twice
        if reference is None:
            reference, reason = default_reference(self.policy, self.builder, reference_free=self.loss.reference_free)
        reference.bind(self.policy, self.builder)
        if "kl" in self.loss.statistics and not reference.live:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"{type(self.loss).__name__} needs the reference's whole vocabulary, not its sums", KEY),
                fix=f"leave --{KEY} out",
            )
        self.reference = reference
        say(f"reference: {type(reference).__name__}{reason and f' ({reason})'}")

    def on_train_start(self) -> None:
        """Let every process begin with the same reference, as it does with the same policy."""
        super().on_train_start()
        self.reference.align()

    def takes_trees(self) -> bool:
        """Both models see the same batch."""
        return super().takes_trees() and self.reference.takes_trees()

    def compare(self, batch: PreferenceBatch, rows: str = "train") -> tuple[PreferenceOutput, PairLogps]:
        """Loss and log-probabilities of each pair; `rows` is the part of the data that its indices count in."""
        wanted = self.loss.statistics
        others = self.reference.distributions(self.policy, batch) if "kl" in wanted else None
        policy = score(self.policy, batch, self.head, wanted, others)
        logps = PairLogps.of(policy, self.reference(self.policy, batch, rows, wanted), batch)
        return self.loss(logps), logps

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """The loss, and what callbacks measure: `preference` and `logps`, detached."""
        output, logps = self.compare(batch)
        loss = self.accumulate(output.losses, batch.weights)
        output, logps = output._replace(losses=output.losses.detach()), logps.detach()
        self.loss.observe(output, logps)
        return {"loss": loss, "preference": output, "logps": logps}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn summed gradients into the mean, and let the loss's state count the step."""
        super().on_before_optimizer_step(optimizer)
        for part in self.loss_state.modules() if self.loss_state is not None else ():
            if isinstance(part, RunningMean):
                part.step(lambda value: self.trainer.strategy.reduce(value, reduce_op="sum"))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Let the reference know of the step: once, whatever is accumulated, and before a checkpoint is written."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.reference.after_step(self.policy, self.trainer.global_step + 1)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """What callbacks measure."""
        output, logps = self.compare(batch, "eval")
        return {"preference": output, "logps": logps}

    test_step = validation_step
    predict_step = validation_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what tells the reference that the run began with."""
        super().on_save_checkpoint(checkpoint)
        checkpoint |= self.reference.anchor(self.policy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on against another reference than the run began with."""
        super().on_load_checkpoint(checkpoint)
        self.reference.check_anchor(self.policy, checkpoint)
