"""Null in a config where an option takes none."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

from jsonargparse import Namespace

from dpo_lightning.config.class_paths import find_option, import_object, members
from dpo_lightning.errors import ExitCode, Problem, UserError


def check_nulls(sections: Mapping[str, Any]) -> None:
    """Refuse null for options of classes that take none, which jsonargparse does not compare with their types.

    Args:
        sections: the parsed value of each section; classes that they name exist.

    Raises:
        UserError: 64, with every such option.
    """
    keys = [key for section, value in sections.items() for key in find_nulls(value, section)]
    if keys:
        problems = [Problem("the value may not be null", key) for key in keys]
        raise UserError(ExitCode.CONFIG, problems, fix=f"give a value of --{keys[0]}, or leave it out")


def find_nulls(value: Any, key: str) -> Iterator[str]:
    """Iterate over the keys, at any depth, whose value is null though the type of the option does not allow it."""
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from find_nulls(inner, key)
    if not isinstance(value, (Mapping, Namespace)):
        return
    content, owner = members(value), None
    if isinstance(path := content.get("class_path"), str):
        content, owner = members(content.get("init_args")), import_object(path)
    for name, inner in content.items():
        if inner is None and owner is not None:
            option = find_option(owner, name)
            if option and option.default is not None and option.annotation and not takes_null(option.annotation):
                yield f"{key}.{name}"
        yield from find_nulls(inner, f"{key}.{name}")


def takes_null(annotation: Any) -> bool:
    """Whether a type has None among its values."""
    return annotation in (Any, object, None, NoneType) or any(map(takes_null, typing.get_args(annotation)))
