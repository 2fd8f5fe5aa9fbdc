"""`PolicyModule`: base of SFT, DPO and KTO; loads the policy and makes means exact over accumulation and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import AdamW, Optimizer

from dpo_lightning.batches import Batch
from dpo_lightning.callbacks import MonitorCheck, NonFinite, OptimizerLog, RoundedUpdates, RouterBalance
from dpo_lightning.data.collate import Collator
from dpo_lightning.data.text_datamodule import TextDataModule
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.fsdp2 import compiled_error, sharding_mesh
from dpo_lightning.hardware import BLOCK, PIECE, settle_memory
from dpo_lightning.log import logger
from dpo_lightning.models.attention_backend import takes_trees
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.compilation import compile_layers
from dpo_lightning.models.folder_files import is_adapter_folder
from dpo_lightning.models.forward_checks import check_left_padding, independent_length
from dpo_lightning.models.lm_head import causal_lm, find_head, sharding_units
from dpo_lightning.models.lora import check_precision
from dpo_lightning.models.quantization import QUANTIZATION_KEY, quantization_states
from dpo_lightning.models.router_loss import RouterLoss, router_coefficient
from dpo_lightning.optimizers import blaming, make_optimizer, make_scheduler, plan_schedules, without_fusing
from dpo_lightning.runs.checkpoint_shards import check_joined, join_shards
from dpo_lightning.schedules import KEY as SCHEDULER
from dpo_lightning.sharding import broadcast_weights, local_gradients, shard_model

OptimizerFactory = Callable[[Iterable[Any], float], Optimizer]
"""Called with parameters and learning rate, so that an optimizer's own `lr` option cannot be set in a config."""


class PolicyModule(LightningModule):
    """Base of the modules. Weights are loaded in `configure_model`, never while a config is parsed."""

    data_module: ClassVar[type[TextDataModule]]
    """The data that this module trains on."""

    policy: nn.Module
    routers: RouterLoss | None = None

    def __init__(
        self,
        policy: CausalLM,
        learning_rate: float,
        optimizer: OptimizerFactory = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Describe the policy and how it is trained.

        Args:
            policy: the model to train.
            learning_rate: of the optimizer, before a scheduler changes it.
            optimizer: class of the optimizer and its other options.
            lr_scheduler: class of a scheduler that is stepped once per optimizer step.
        """
        super().__init__()
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"learning_rate={learning_rate} is not a positive number", "model.learning_rate"),
                fix="--model.learning_rate 5e-7, or another positive number",
            )
        if learning_rate > 1e-2 and policy.lora is None:
            logger.warning(f"learning_rate={learning_rate} is very large for training all weights")
        self._check_trainable(policy)
        self.spec, self.learning_rate = policy, learning_rate
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.window_weight = torch.zeros(())
        """The weight of all rows of the optimizer step so far, on this rank; its gradients are sums over them."""
        self.row_losses = torch.zeros(0)
        """The loss of each row of the last micro-batch."""
        self.updating = False
        """True while an optimizer step may have changed weights and `global_step` does not count it yet."""
        self.evaluated = 0
        """In a resumed epoch: the number of batches up to which the run was evaluated before the checkpoint."""
        self._reported_length = 0

    @staticmethod
    def _check_trainable(policy: CausalLM) -> None:
        if policy.quantization is not None and policy.lora is None and not is_adapter_folder(policy.path):
            raise UserError(
                ExitCode.CONFIG,
                Problem("quantized weights cannot be trained; train an adapter on them", QUANTIZATION_KEY),
                fix="--model.policy.lora.r 16, or an adapter folder as --model.policy.path",
            )

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a module with the weights of a checkpoint, as Lightning does.

        A checkpoint holds what was trained and none of the arguments: name those of the run, `policy` at least.

        Raises:
            UserError: `policy` is missing, or the arguments are not those of the checkpoint's run.
        """
        fix = (
            f"{cls.__name__}.load_from_checkpoint(path, policy=CausalLM(...), ...) with the arguments in the run's "
            'config.yaml; the trained model is CausalLM("RUN/final_model"), a run resumes by fit --ckpt_path'
        )
        if "policy" not in kwargs:
            raise UserError(ExitCode.CONFIG, Problem("a checkpoint holds no arguments of a module", "policy"), fix=fix)
        try:
            return super().load_from_checkpoint(join_shards(checkpoint_path), *args, **kwargs)
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            what = "the checkpoint holds other weights than a module with these arguments trains"
            raise UserError(ExitCode.CONFIG, Problem(what, str(checkpoint_path)), fix=fix) from error

    @cached_property
    def tokenizer(self) -> Any:
        """The policy's tokenizer, loaded on first use and without the weights."""
        return self.spec.tokenizer()

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer besides the tokenizer's EOS."""
        return self.spec.end_ids()

    def exclude_given(self, *callbacks: Callback) -> list[Callback]:
        """Return callbacks whose class the trainer has no instance of, as Lightning would replace the trainer's own."""
        callbacks += RouterBalance(), NonFinite(), OptimizerLog(), MonitorCheck(), RoundedUpdates()
        given: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if not any(isinstance(other, type(callback)) for other in given)]

    def check_length(self, max_length: int) -> None:
        """Raise if `max_length` exceeds the model's positions; report where a row's numbers depend on its batch."""
        config = self.spec.config()
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions and max_length > positions:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"max_length={max_length} exceeds the model's {positions} positions", "data.max_length"),
                fix=f"--data.max_length {positions} or less",
            )
        independent = independent_length(config)
        if independent and max_length > independent[0] and self._reported_length != max_length:
            self._reported_length = max_length
            length, cause = independent
            logger.info(
                f"note: beyond {length:,} tokens, a row's log-probabilities depend on the longest row of its batch "
                f"({config.model_type}: {cause}), so the same row gets other numbers in another batch; "
                f"--data.max_length {length} prevents this"
            )

    def setup(self, stage: str) -> None:
        """Configure glibc's malloc on a CPU: keep freed memory for speed, or return it where memory is short."""
        if self.mesh is not None and self.spec.compile:
            raise compiled_error()
        if stage == "fit" and self.trainer.strategy.root_device.type == "cpu":
            keep = self.mesh is None and not self.spec.gradient_checkpointing
            settle_memory(keep=keep, least=BLOCK if self.mesh is None else PIECE)

    @property
    def mesh(self) -> DeviceMesh | None:
        """The ranks over which models are sharded; None where each rank holds them whole."""
        return None if self._trainer is None else sharding_mesh(self.trainer.strategy)

    def configure_model(self) -> None:
        """Load the policy once, before Lightning restores a checkpoint, and shard it if the strategy does."""
        if "policy" not in self._modules:
            self._load()
            if self.mesh is not None:
                self._shard(self.mesh)

    def _load(self) -> None:
        if self._trainer is not None:
            self.spec = self.spec.under(self.trainer.precision)
            check_precision(self.spec.lora, self.trainer.precision)
        coefficient = router_coefficient(self.spec.router_aux_loss_coef, self.spec.config())
        self.policy = self.spec.build().train()  # transformers returns models in eval mode
        if self.mesh is not None:  # a new adapter may be another one on each rank
            trained = (value for value in self.policy.parameters() if value.requires_grad)
            broadcast_weights(trained, self.trainer.strategy.root_device)
        self.head = find_head(self.policy)
        self.routers = RouterLoss(causal_lm(self.policy), coefficient) if coefficient else None
        if self.spec.compile:
            compile_layers(causal_lm(self.policy))

    def _shard(self, mesh: DeviceMesh) -> None:
        shard_model(self.policy, sharding_units(self.policy), mesh)

    @property
    def needs_mismatched(self) -> bool:
        """Whether rows need a mismatched answer, one to another prompt."""
        return False

    def takes_trees(self) -> bool:
        """Whether a batch may hold sequences that share a prefix, or several sequences in a row of tokens."""
        return takes_trees(causal_lm(self.policy))

    def check_layout(self, layout: Collator) -> None:
        """Raise if the model gives other log-probabilities in this layout than in padded rows."""
        check_left_padding(self.policy, layout)

    def configure_optimizers(self) -> Any:
        """Create the optimizer of the trained parameters, and its scheduler."""
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(self.optimizer, trained, self.learning_rate, on_cpu=self.device.type == "cpu")
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": make_scheduler(self.lr_scheduler, optimizer)}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the scheduler; one whose options fit fewer steps than the run has fails here."""
        with blaming(SCHEDULER):
            super().lr_scheduler_step(scheduler, metric)

    def on_train_start(self) -> None:
        """Begin schedules and the accumulation window; unfuse optimizers where scaled gradients have to be clipped."""
        plan_schedules(self.trainer)
        self.window_weight.zero_()
        self.updating = False
        if getattr(self.trainer.precision_plugin, "scaler", None) and self.trainer.gradient_clip_val:
            for optimizer in self.trainer.optimizers:
                without_fusing(optimizer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Record the router logits of a mixture of experts in the next forward pass."""
        if self.routers is not None:
            self.routers.watch(batch.mask)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Mark the step as counted; skip an evaluation that was done before the checkpoint was written."""
        self.updating = False
        if batch_idx < self.evaluated:
            self.trainer.fit_loop.epoch_loop._skip_next_val = True
        else:
            self.evaluated = 0

    def accumulate(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Return a loss whose gradient becomes the weighted mean over all rows of an optimizer step.

        Micro-batches, ranks and a last, shorter window hold unequal numbers of pairs or tokens, so a mean of means is
        wrong. The value returned is the weighted *sum*, multiplied by what Lightning divides by (accumulation and
        ranks); `on_before_optimizer_step` divides the gradients by the weight of the whole window. The router loss of
        a mixture of experts is added here, for every kind of training.
        """
        self.row_losses = losses.detach()
        if self.routers is not None:
            losses = self.routers.add_to(losses, weights)
        self.window_weight = self.window_weight.to(weights.device) + weights.detach().sum()
        total = torch.where(weights > 0, losses * weights, 0).sum()
        return total * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def drop_step(self) -> None:
        """Forget the sums of an optimizer step that will change nothing."""
        self.window_weight.zero_()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide summed gradients by the window's weight; Lightning clips them afterwards."""
        self.updating = True
        weight = self.trainer.strategy.reduce(self.window_weight.clone(), reduce_op="sum")
        gradients = local_gradients(self.policy.parameters())
        if gradients:
            torch._foreach_div_(gradients, torch.where(weight > 0, weight, 1))
        self.window_weight.zero_()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, also with a fused optimizer in bf16, which Lightning refuses without need."""
        plugin: Any = self.trainer.precision_plugin
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            plugin.clip_gradients(optimizer, gradient_clip_val or 0.0, algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remove frozen weights from the checkpoint; they are loaded from the base model's folder."""
        frozen = self._frozen().keys() | {f"policy.{name}" for name in quantization_states(self.policy)}
        state = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name: value for name, value in state if name not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frozen weights, so that strict loading still checks the trained ones."""
        check_joined(checkpoint)
        checkpoint["state_dict"] = self._frozen() | checkpoint["state_dict"]

    def _frozen(self) -> dict[str, Tensor]:
        """Return the weights that are not trained; tied weights under each of their names, as in a state dict."""
        named = self.policy.named_parameters(remove_duplicate=False)
        return {f"policy.{name}": value for name, value in named if not value.requires_grad}
