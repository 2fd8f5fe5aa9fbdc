"""Weights that hang in a model for a while in the place of those that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn


class Place(NamedTuple):
    """Where a parameter hangs in a model."""

    module: nn.Module
    attribute: str


def trained_places(model: nn.Module) -> dict[str, list[Place]]:
    """Every trained parameter, under its first name; a tied one hangs in several places."""
    names: dict[int, str] = {}
    places: dict[str, list[Place]] = {}
    for prefix, module in model.named_modules():
        for attribute, value in module._parameters.items():
            if value is not None and value.requires_grad:
                name = names.setdefault(id(value), f"{prefix}.{attribute}")
                places.setdefault(name, []).append(Place(module, attribute))
    return places


def standing(places: Mapping[str, Sequence[Place]]) -> dict[str, nn.Parameter]:
    """The parameters that hang there now."""
    found = {name: where[0].module._parameters[where[0].attribute] for name, where in places.items()}
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def exchanged(places: Mapping[str, Sequence[Place]], others: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Hang other parameters there for a while.

    Not their values are exchanged but the parameters themselves: autocast keeps its half-precision copies by the
    parameter, and would go on with those of the old values.
    """
    own = standing(places)
    hang(places, others)
    try:
        yield
    finally:
        hang(places, own)


def hang(places: Mapping[str, Sequence[Place]], parameters: Mapping[str, nn.Parameter]) -> None:
    """Put parameters into their places."""
    for name, where in places.items():
        for module, attribute in where:
            module._parameters[attribute] = parameters[name]
