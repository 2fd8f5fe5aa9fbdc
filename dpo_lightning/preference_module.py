"""`PreferenceModule`: base of DPO, list-wise DPO and KTO, whose loss compares a policy with a reference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from dpo_lightning.data.collate import Collator
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.loss_requirements import check_columns, check_reference, report_columns
from dpo_lightning.losses.base import PolicyLoss
from dpo_lightning.losses.running_mean import RunningMean
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.dropout import without_dropout
from dpo_lightning.models.forward_checks import check_left_padding, check_training_mode
from dpo_lightning.models.lm_head import sharding_units
from dpo_lightning.policy_module import OptimizerFactory, PolicyModule
from dpo_lightning.references import REFERENCE_KEY, AdapterDisabled, ReferencePolicy, default_reference
from dpo_lightning.references.precomputed import Precomputed
from dpo_lightning.references.reference_pass import ScoringContext
from dpo_lightning.sharding import FSDP2, shard_model


class PreferenceModule(PolicyModule):
    """Base of the modules with a preference loss: reference, training step and the loss's state.

    A subclass implements `compare`, which computes loss and log-probabilities of a batch.
    """

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
        """Check that policy, loss and reference fit; the arguments are those of `DPOModule`."""
        super().__init__(policy, learning_rate, optimizer, lr_scheduler)
        if not isinstance(loss, PolicyLoss):  # YAML's null
            raise UserError(ExitCode.CONFIG, Problem("no loss is given", "model.loss", str(loss)), fix="name a loss")
        if isinstance(reference, AdapterDisabled) and policy.lora is None:
            raise UserError(
                ExitCode.CONFIG,
                Problem("AdapterDisabled needs a new adapter to switch off", "model.reference"),
                fix="leave --model.reference out (a whole model may get a new adapter by --model.policy.lora.r 16)",
            )
        check_reference(loss, reference)
        self.loss, self.loss_state = loss, loss.state
        self.given_reference = reference
        self.reference: ReferencePolicy
        self._reported: set[str] = set()

    def setup(self, stage: str) -> None:
        """Configure memory and check that the rows have the columns the loss needs; report them once a run."""
        super().setup(stage)
        if self.mesh is not None and "kl" in self.loss.statistics:
            what = f"{type(self.loss).__name__} needs whole distributions of policy and reference at once"
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"{what}, which sharded models do not give", "trainer.strategy", FSDP2),
                fix="--trainer.strategy ddp, or another loss",
            )
        data = getattr(self.trainer, "datamodule", None)
        for name, rows in getattr(data, "encoded", {}).items():
            check_columns(self.loss, rows, name)
            if name not in self._reported:
                report_columns(self.loss, name, rows)
                self._reported.add(name)

    def configure_model(self) -> None:
        """Load the policy and bind the reference to it, before a checkpoint changes the weights."""
        super().configure_model()
        self._look_up()

    def _load(self) -> None:
        super()._load()
        silenced = without_dropout(self.policy)
        if silenced:
            logger.info(
                f"dropout: {silenced} of the policy's dropouts (and router noises) are off, so that policy and "
                "reference start as the same function"
            )
        check_training_mode(self.policy)
        reference, reason = self.given_reference, ""
        self.given_reference = None  # registered under two names, its state would be saved twice
        if reference is None:
            reference, reason = default_reference(self.policy, self.spec, reference_free=self.loss.reference_free)
        reference.sharded = self.mesh is not None
        reference.bind(self.policy, self.spec)
        if "kl" in self.loss.statistics and not reference.has_model:
            what = (
                f"{type(self.loss).__name__} needs log-probabilities of the whole vocabulary; this reference has sums"
            )
            raise UserError(ExitCode.CONFIG, Problem(what, REFERENCE_KEY), fix=f"leave --{REFERENCE_KEY} out")
        self.reference = reference
        logger.info(f"reference: {type(reference).__name__}{reason and f' ({reason})'}")
        if self.mesh is not None:
            self._look_up()  # before the policy is sharded: ranks compute different numbers of batches

    def _look_up(self) -> None:
        if isinstance(self.reference, Precomputed):
            if self._trainer is None:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem("Precomputed needs the rows of a data module, and this module has no trainer", "reference"),
                    fix="python -m dpo_lightning export --model PATH.ckpt --out FOLDER for the policy of a checkpoint",
                )
            self.reference.look_up(self.policy, ScoringContext.of(self.trainer, self.tokenizer))

    def _shard(self, mesh: DeviceMesh) -> None:
        super()._shard(mesh)
        self.reference.shard(self.policy, lambda model: shard_model(model, sharding_units(model), mesh))

    @abstractmethod
    def compare(self, batch: Any, rows: str = "train") -> tuple[Any, Any]:
        """Return the loss's output and the log-probabilities of a batch, both named tuples of tensors per row.

        Args:
            batch: rows as tensors.
            rows: the part of the data, `train` or `eval`, that the batch's indices refer to.
        """

    @abstractmethod
    def columns(self, output: Any, logps: Any) -> dict[str, list[Any]]:
        """What `predict` writes of each row: names, and a value per row of the batch."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the loss to train, and for the measures the loss's output and `logps`, both detached."""
        output, logps = self.compare(batch)
        loss = self.accumulate(output.losses, batch.weights)
        output, logps = output._replace(losses=output.losses.detach()), logps.detach()
        self.loss.observe(output, logps)
        return {"loss": loss, "output": output, "logps": logps}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the loss's output and `logps` for the measures."""
        output, logps = self.compare(batch, "eval")
        return {"output": output, "logps": logps}

    test_step = validation_step
    predict_step = validation_step

    def on_train_start(self) -> None:
        """Broadcast the reference's weights to every rank, as Lightning does with the policy's."""
        super().on_train_start()
        self.reference.broadcast()
        for part in self._means():
            part.begin()

    def takes_trees(self) -> bool:
        """Whether both policy and reference take shared prefixes and packed rows."""
        return super().takes_trees() and self.reference.takes_trees()

    def check_layout(self, layout: Collator) -> None:
        """Raise if policy or reference gives other log-probabilities in this layout than in padded rows."""
        super().check_layout(layout)
        if self.reference.has_model:
            with self.reference.as_model(self.policy) as model:
                check_left_padding(model, layout)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the summed gradients by the window's weight, and update the loss's running means."""
        super().on_before_optimizer_step(optimizer)
        for part in self._means():
            part.step(lambda value: self.trainer.strategy.reduce(value, reduce_op="sum"))

    def drop_step(self) -> None:
        """Forget the sums of an optimizer step that will change nothing."""
        super().drop_step()
        for part in self._means():
            part.begin()

    def _means(self) -> list[RunningMean]:
        parts = () if self.loss_state is None else self.loss_state.modules()
        return [part for part in parts if isinstance(part, RunningMean)]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Update the reference once per optimizer step, before a checkpoint of the step is written."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.reference.after_step(self.policy, self.trainer.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the identity of the reference that the run began with."""
        super().on_save_checkpoint(checkpoint)
        checkpoint |= self.reference.identity(self.policy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise if the reference is not the one that the checkpoint's run began with."""
        super().on_load_checkpoint(checkpoint)
        self.reference.check_identity(self.policy, checkpoint)
