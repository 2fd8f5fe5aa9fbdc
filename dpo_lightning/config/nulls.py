"""Null in a config where an option takes none."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import NoneType
from typing import Any

from jsonargparse import Namespace

from dpo_lightning.config.class_paths import accepted_classes, find_option, import_object, members
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


def find_nulls(value: Any, key: str, hint: Any = None) -> Iterator[str]:
    """Iterate over the keys, at any depth, whose value is null though the type of the option does not allow it.

    Args:
        value: a parsed value.
        key: its key.
        hint: the type of the option, if known.
    """
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from find_nulls(inner, key, hint)
    if not isinstance(value, (Mapping, Namespace)):
        return
    # The options of a dataclass stand in its place, without `class_path`.
    content, owner = members(value), next(filter(is_dataclass, accepted_classes(hint)), None)
    if isinstance(path := content.get("class_path"), str):
        content, owner = members(content.get("init_args")), import_object(path)
    for name, inner in content.items():
        option = None if owner is None else find_option(owner, name)
        kind = option.annotation if option else None
        # jsonargparse turns the null of a flag into the text None where the option is one of a dataclass.
        absent = inner is None or (inner == "None" and is_dataclass(owner))
        if absent and option and option.default is not None and kind and not takes_null(kind):
            yield f"{key}.{name}"
        yield from find_nulls(inner, f"{key}.{name}", kind)


def takes_null(annotation: Any) -> bool:
    """Whether a type has None among its values."""
    return annotation in (Any, object, None, NoneType) or any(map(takes_null, typing.get_args(annotation)))
