"""Models that are sharded over ranks by FSDP2: how they are split, called, and gathered again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, distributed, nn

from dpo_lightning.errors import ExitCode, Problem, UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

P = ParamSpec("P")
R = TypeVar("R")

FSDP2 = "fsdp2"
"""The name of the strategy that shards models: `--trainer.strategy fsdp2`."""

CALL = "call_sharded"
"""The method of a sharded model by which a function runs as its forward pass."""

SHARDED: WeakSet[nn.Module] = WeakSet()
"""The sharded models of this process."""


def shard_model(model: nn.Module, units: Collection[str], mesh: DeviceMesh) -> None:
    """Split the parameters of a model over the ranks of a mesh, along their first dimension, with `fully_shard`.

    A unit is gathered when its forward or backward pass begins and freed when it ends. What is in no unit (embeddings,
    the last norm, the output layer, which often shares a weight with the embeddings) is gathered for the whole pass.
    Weights that are no floating-point numbers are quantized and stay whole on each rank: their scales are attributes
    of the parameter, which a shard would lose.

    Args:
        model: with equal weights on all ranks.
        units: names of the classes of the modules that are units, such as decoder layers.
        mesh: a mesh of one dimension.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    whole = {value for value in model.parameters() if not value.is_floating_point()}
    # Also at the root, which by default stays gathered after its forward pass: a reference runs between the passes.
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True, "ignored_params": whole}
    for unit in [module for module in model.modules() if type(module).__name__ in units]:
        fully_shard(unit, **options)
    fully_shard(model, **options)
    setattr(model, CALL, MethodType(_call, model))
    register_fsdp_forward_method(model, CALL)
    SHARDED.add(model)


def _call(model: nn.Module, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function; as a forward method of a sharded model, with the parameters outside of its units gathered."""
    return function(*args, **kwargs)


def run_within(model: nn.Module, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that runs parts of a model.

    The parts of a sharded model cannot be called by themselves: a pass has to begin at its root. All ranks have to call
    this together then, and gradients flow through the tensors that the function returns.

    Args:
        model: a model, sharded or not.
        function: the function.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    if model in SHARDED:
        return getattr(model, CALL)(function, *args, **kwargs)
    return function(*args, **kwargs)


def local_part(value: Tensor) -> Tensor:
    """Return the rows of a sharded tensor that this rank holds, without a copy; other tensors as they are."""
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def local_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of the parameters that have one, of sharded ones the rows that this rank holds."""
    found = (parameter.grad for parameter in parameters)
    return [local_part(gradient) for gradient in found if gradient is not None]


def is_split(value: Tensor) -> bool:
    """Whether each rank holds a part of the tensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def broadcast_weights(values: Iterable[Tensor], device: torch.device) -> None:
    """Copy tensors of rank 0 to all ranks, one at a time through a device that the ranks communicate with.

    Args:
        values: the tensors, none of them split.
        device: such as the GPU of this rank.
    """
    for value in values:
        sent = value.detach().to(device)
        distributed.broadcast(sent, 0)
        value.detach().copy_(sent)


def gather_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather split tensors on the CPU of rank 0, one at a time; all ranks have to call this.

    Args:
        state: tensors by name, split or not; one that has several names is gathered once.

    Returns:
        The whole tensors on rank 0; no tensor on other ranks.
    """
    first, whole = not distributed.is_initialized() or distributed.get_rank() == 0, dict[str, Tensor]()
    known: dict[int, Tensor] = {}
    for name, value in state.items():
        place = local_part(value.detach()).untyped_storage()._cdata
        if place not in known:
            gathered = value.detach().full_tensor() if is_split(value) else value.detach()  # type: ignore[attr-defined]
            known[place] = gathered.cpu() if first else torch.empty(0)
        if first:
            whole[name] = known[place]
    return whole


def own_rows(parts: Iterable[Tensor], rows: int, mesh: DeviceMesh) -> Tensor:
    """Return a copy of the rows that this rank holds of a tensor which is given in consecutive parts.

    Args:
        parts: tensors that together, along their first dimension, are the whole one.
        rows: the length of the whole first dimension.
        mesh: the ranks that share them.
    """
    each = -(-rows // mesh.size())
    begin = min(mesh.get_local_rank() * each, rows)
    end = min(begin + each, rows)
    return torch.cat(list(_overlaps(parts, begin, end)))


def _overlaps(parts: Iterable[Tensor], begin: int, end: int) -> Iterator[Tensor]:
    place = 0
    for part in parts:
        first, last = max(begin - place, 0), min(end - place, len(part))
        yield part[first : max(first, last)]
        place += len(part)


def make_split(local: Tensor, like: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return the split tensor whose rows on this rank are `local`.

    Args:
        local: the rows.
        like: a tensor with the shape of the whole one.
        mesh: the ranks that share it.
    """
    from torch.distributed.tensor import DTensor, Shard

    stride = torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=like.shape, stride=stride)


def unsupported_error(name: str) -> UserError:
    """Make the error for another strategy that shards models."""
    return UserError(
        ExitCode.CONFIG,
        Problem(f"{name} does not shard the models of this package", "trainer.strategy"),
        fix=f"--trainer.strategy {FSDP2}",
    )
