"""Temporary replacement of a model's trained parameters by others of the same shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from dpo_lightning.sharding import is_split, local_part


class Place(NamedTuple):
    """The module and the attribute under which a parameter is registered."""

    module: nn.Module
    attribute: str


def find_trained(model: nn.Module) -> dict[str, list[Place]]:
    """Find every trained parameter under its first name, with all its places (several for tied weights)."""
    names: dict[int, str] = {}
    places: dict[str, list[Place]] = {}
    for prefix, module in model.named_modules():
        for attribute, value in module._parameters.items():
            if value is not None and value.requires_grad:
                # A tied parameter is met once per place, and keeps its first name.
                name = names.setdefault(id(value), f"{prefix}.{attribute}")
                places.setdefault(name, []).append(Place(module, attribute))
    return places


def current_parameters(places: Mapping[str, Sequence[Place]]) -> dict[str, nn.Parameter]:
    """Return the parameters that are registered at these places now, by name."""
    found = {name: where[0].module._parameters[where[0].attribute] for name, where in places.items()}
    return {name: value for name, value in found.items() if value is not None}


def copy_parameters(places: Mapping[str, Sequence[Place]]) -> dict[str, nn.Parameter]:
    """Return frozen copies of the parameters that are registered at these places now, by name."""
    return {
        name: nn.Parameter(value.detach().clone(), requires_grad=False)
        for name, value in current_parameters(places).items()
    }


@contextmanager
def swapped(places: Mapping[str, Sequence[Place]], others: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Replace parameters within the block.

    The parameter objects are replaced, not their values: autocast caches half-precision copies by parameter, and would
    return the copies of the old values. A sharded model knows its parameter objects, so their values are exchanged, and
    autocast forgets its copies.
    """
    own = current_parameters(places)
    if any(map(is_split, own.values())):
        exchange_values(own, others)
        try:
            yield
        finally:
            exchange_values(own, others)
        return
    set_parameters(places, others)
    try:
        yield
    finally:
        set_parameters(places, own)


@torch.no_grad()
def exchange_values(own: Mapping[str, nn.Parameter], others: Mapping[str, nn.Parameter]) -> None:
    """Exchange the values of split parameters, of which no part is gathered."""
    for name, value in own.items():
        mine, other = local_part(value), local_part(others[name])
        before = mine.clone()
        mine.copy_(other)
        other.copy_(before)
    torch.clear_autocast_cache()


def set_parameters(places: Mapping[str, Sequence[Place]], parameters: Mapping[str, nn.Parameter]) -> None:
    """Register a parameter at each of its places."""
    for name, where in places.items():
        for module, attribute in where:
            module._parameters[attribute] = parameters[name]
