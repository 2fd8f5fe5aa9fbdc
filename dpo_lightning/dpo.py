"""`DPOModule`: preference optimization of a policy against a reference, with any pairwise loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import AdamW, Optimizer

from dpo_lightning.callbacks.pairwise import PreferenceAccuracy, RewardMargins
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.console import say
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.examples import EncodedPair
from dpo_lightning.logps import score
from dpo_lightning.losses import DPOLoss, PairwiseLoss
from dpo_lightning.losses.base import PolicyLoss
from dpo_lightning.losses.running import RunningMean
from dpo_lightning.models import CausalLM, without_dropout
from dpo_lightning.module import OptimizerFactory, PolicyModule
from dpo_lightning.precomputed import Precomputed
from dpo_lightning.references import KEY, AdapterDisabled, ReferenceFree, ReferencePolicy, default_reference
from dpo_lightning.scoring import Scoring
from dpo_lightning.types import PairLogps, PreferenceBatch, PreferenceOutput


class ReferencedModule(PolicyModule):
    """What DPO and KTO share: a loss that measures the policy against a reference, and its state."""

    loss: PolicyLoss

    def __init__(
        self,
        policy: CausalLM,
        loss: PolicyLoss,
        reference: ReferencePolicy | None,
        learning_rate: float,
        optimizer: OptimizerFactory,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        """Describe the run; see `DPOModule`."""
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

    def configure_model(self) -> None:
        """Load the policy, and bind the reference to it before a checkpoint can move it."""
        if "policy" not in self._modules:
            self._load()
        if isinstance(self.reference, Precomputed):
            self.reference.look_up(self.policy, Scoring.of(self.trainer, self.tokenizer))

    def _load(self) -> None:
        reference = self.given_reference or default_reference(self.builder, reference_free=self.loss.reference_free)
        super().configure_model()
        silenced = without_dropout(self.policy)
        if silenced:
            say(
                f"dropout: {silenced} of the policy's dropouts are off, as the policy and its reference "
                "have to be one function at the start"
            )
        reference.bind(self.policy, self.builder)
        if "kl" in self.loss.statistics and not reference.live:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"{type(self.loss).__name__} needs the reference's whole vocabulary, not its sums", KEY),
                fix=f"leave --{KEY} out",
            )
        self.reference = reference
        follows = f"{type(self.loss).__name__} asks none" if self.loss.reference_free else "follows from the policy"
        chosen = "" if self.given_reference else f" ({follows})"
        say(f"reference: {type(reference).__name__}{chosen}")

    def takes_trees(self) -> bool:
        """Both models see the same batch."""
        return super().takes_trees() and self.reference.takes_trees()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn summed gradients into the mean, and let the loss's state count the step."""
        super().on_before_optimizer_step(optimizer)
        for part in self.loss_state.modules() if self.loss_state is not None else ():
            if isinstance(part, RunningMean):
                part.step(lambda value: self.trainer.strategy.reduce(value, reduce_op="sum"))

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


class DPOModule(ReferencedModule):
    """Train a policy to prefer chosen over rejected answers (Rafailov et al. 2023, arXiv:2305.18290)."""

    loss: PairwiseLoss

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
                adapter switched off for a new LoRA, a frozen copy of the start for everything else, none for a loss
                without a reference.
            learning_rate: handed to the optimizer.
            optimizer: class of the optimizer and its other options.
            lr_scheduler: class of a scheduler that is stepped once per optimizer step.
        """
        super().__init__(policy, loss, reference, learning_rate, optimizer, lr_scheduler)

    def configure_callbacks(self) -> list[Callback]:
        """Measures and the self-check that every run has; one given to the trainer takes the place of its kind."""
        return self.not_given(RewardMargins(), PreferenceAccuracy(), SelfCheck())

    def setup(self, stage: str) -> None:
        """Settle memory, and see that the rows have what the loss needs."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        for rows in getattr(data, "encoded", {}).values():
            check_columns(self.loss, rows)

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

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """What callbacks measure."""
        output, logps = self.compare(batch, "eval")
        return {"preference": output, "logps": logps}

    test_step = validation_step
    predict_step = validation_step


def check_wanted(loss: PolicyLoss, reference: ReferencePolicy | None) -> None:
    """Refuse a reference that the loss would not ask, and a loss whose reference is none.

    Raises:
        UserError: that is so.
    """
    if reference is None or loss.reference_free == isinstance(reference, ReferenceFree):
        return
    name, given = type(loss).__name__, type(reference).__name__
    what = (
        f"{name} asks no reference, and {given} would be held in vain"
        if loss.reference_free
        else (f"{name} measures the policy against a reference, and {given} is none")
    )
    raise UserError(ExitCode.CONFIG, Problem(what, KEY), fix=f"leave --{KEY} out")


def check_columns(loss: PairwiseLoss, rows: Sequence[EncodedPair]) -> None:
    """Refuse rows without a margin for a loss that needs one, and weights for one that cannot count pairs unequally.

    Raises:
        UserError: that is so, naming the rows.
    """
    name = type(loss).__name__
    if "margin" in loss.statistics:
        bad = [row for row in rows if row.margin is None or row.margin < 0]
        problems = [Problem(f"{name} needs a margin of 0 or more, here {row.margin}", str(row.origin)) for row in bad]
        fix = "a column `margin` (--data.columns.margin NAME): by how much the chosen answer was found better"
    else:
        problems = [
            Problem(f"{name} compares pairs with one another: a weight of {row.weight} has no meaning", str(row.origin))
            for row in ([] if loss.weighted else rows)
            if row.weight != 1
        ]
        fix = "another loss, or rows without `weight`"
    if problems:
        raise UserError(ExitCode.DATA, problems, fix)
