"""`FSDP2Strategy` (`--trainer.strategy fsdp2`): weights, gradients and optimizer states sharded over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.runs.checkpoint_files import CheckpointFiles
from dpo_lightning.runs.checkpoint_shards import read_shards, write_shards
from dpo_lightning.sharding import FSDP2, is_split, make_split, own_rows, unsupported_error

DIMENSIONS = ("data_parallel", "tensor_parallel")
"""Names that Lightning expects; the second has one rank."""


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`, over all ranks as one group.

    A module shards its models in `configure_model`. Checkpoints have the content of other strategies' checkpoints: the
    tensors that are split lie in files of their own, one of each rank, and are read by any number of ranks and by any
    strategy.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta = default_pg_timeout) -> None:
        """Choose how ranks communicate.

        Args:
            process_group_backend: such as `nccl` or `gloo`; left out, the device decides.
            timeout: the longest that a rank waits for another one.
        """
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        self.checkpoint_io = CheckpointFiles()

    @property
    def mesh(self) -> DeviceMesh:
        """The ranks over which a model is sharded."""
        mesh: DeviceMesh = self.device_mesh[DIMENSIONS[0]]
        return mesh

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether weights are restored after optimizers are made: no, as by other strategies."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning restores the optimizers' states: yes, as by other strategies."""
        return True

    @property
    def precision_plugin(self) -> Precision:
        """What determines the precision of the computation."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if getattr(plugin, "scaler", None) is not None:
            raise UserError(
                ExitCode.CONFIG,
                Problem("each rank would choose its own scale for the losses", "trainer.precision", "16-mixed"),
                fix=f"--trainer.precision bf16-mixed or 32-true with {FSDP2}, or --trainer.strategy ddp",
            )
        self._precision_plugin = plugin

    def setup_environment(self) -> None:
        """Join the other ranks; called again by each stage of a trainer."""
        self._setup_distributed()
        if self._device_mesh is None:
            self._device_mesh = init_device_mesh(self.root_device.type, (self.world_size, 1), mesh_dim_names=DIMENSIONS)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's state, in which what is sharded is split."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's own state, in which what belongs to sharded parameters is split."""
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write what is split by all ranks, and then the checkpoint itself by rank 0."""
        content = write_shards(checkpoint, Path(self.broadcast(str(filepath))))
        Strategy.save_checkpoint(self, content, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, of whatever strategy and number of ranks; of what is split, the rows of this rank."""
        content = TorchCheckpointIO().load_checkpoint(checkpoint_path, weights_only=weights_only)
        return read_shards(content, Path(checkpoint_path).parent, self.mesh)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Restore the module's state, in which weights that another strategy has saved are whole."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: self._split_like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the optimizers' states, in which those that another strategy has saved are whole."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [value for group in optimizer.param_groups for value in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            state = {
                number: {name: self._split_like(value, like) for name, value in saved["state"][number].items()}
                for number, like in zip(numbers, parameters, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _split_like(self, value: Any, like: Any) -> Any:
        """Return a whole tensor, or each of a dictionary, split as `like` is, where that is split and of this shape."""
        if isinstance(value, Mapping) and isinstance(like, Mapping):
            return {name: self._split_like(part, like.get(name)) for name, part in value.items()}
        if not (torch.is_tensor(value) and torch.is_tensor(like) and is_split(like)):
            return value
        if is_split(value) or value.shape != like.shape:
            return value
        return make_split(own_rows([value], len(value), self.mesh).to(self.root_device), value, self.mesh)


def sharding_mesh(strategy: Any) -> DeviceMesh | None:
    """Return the ranks over which a strategy shards models; None if it leaves them whole.

    Raises:
        UserError: 64, it shards in another way, which the modules of this package do not support.
    """
    if isinstance(strategy, FSDP2Strategy):
        return strategy.mesh
    if isinstance(strategy, (ModelParallelStrategy, FSDPStrategy)):
        raise unsupported_error(type(strategy).__name__)
    return None


def compiled_error() -> UserError:
    """Make the error for compiled layers of sharded models, which were never seen to work."""
    return UserError(
        ExitCode.CONFIG,
        Problem("compiled layers are not supported with sharded models", "model.policy.compile"),
        fix="--model.policy.compile false, or --trainer.strategy ddp",
    )


StrategyRegistry.register(FSDP2, FSDP2Strategy, description="Fully sharded data parallel, by torch's `fully_shard`")
