"""The state of the random generators of all processes, as checkpoints hold it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed

State = Mapping[str, Any]


def capture_random() -> dict[str, Any]:
    """Return the state of this process's generators of Python, NumPy, PyTorch and its GPU, of plain types."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - that of other libraries
    version, internal, gauss_next = random.getstate()
    state = {
        "python": [version, list(internal), gauss_next],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random(state: State) -> None:
    """Set this process's generators to a captured state."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in the order of their ranks; every process has to call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def own(values: Sequence[Any], rank: int) -> Any:
    """Return the value that `gather` got from a rank; for a rank that the earlier run had not, another one's."""
    return values[rank % len(values)]
