"""Config files as plain data: YAML with unique keys and limited anchors."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from dpo_lightning.config.values import check_values
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.special_files import check_not_special

MOST_VALUES = 100_000
"""Largest number of values in a config, each counted as often as an anchor repeats it."""


class UniqueKeys(yaml.SafeLoader):
    """A YAML loader that refuses repeated keys, of which the default loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping.

        Raises:
            ConstructorError: a key is repeated or unhashable.
        """
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<`: keys of another mapping, which keys written here override
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is repeated", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def check_anchors(value: Any, sizes: dict[int, int]) -> int:
    """Count the values of a config, each as often as it is referred to.

    Args:
        value: parsed YAML; anchors make it the same object in several places, or a part of itself.
        sizes: counts of the objects seen so far, by id.

    Raises:
        ValueError: the value contains itself, or is far larger than a config when written out.
    """
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in sizes:
        # Until it is counted: a value that contains itself is too large.
        sizes[id(value)] = MOST_VALUES
        parts = [*value.values()] if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(check_anchors(part, sizes) for part in parts)
    if sizes[id(value)] >= MOST_VALUES:
        raise ValueError(f"its anchors expand to more than {MOST_VALUES:,} values")
    return sizes[id(value)]


def read_config(path: str) -> dict[str, Any]:
    """Read a config file as plain data, before any class is known.

    Raises:
        UserError: 66, the file is missing; 64, it is no YAML mapping (with line and column).
    """
    try:
        check_not_special(path)
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            content = yaml.load(file, Loader=UniqueKeys)
        check_anchors(content, {})
    except OSError as error:
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem(f"the config cannot be read: {error.strerror}", "--config", path),
            fix="give one of configs/*.yaml",
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(ExitCode.CONFIG, Problem(f"invalid YAML: {reason}", where), fix="correct the line") from None
    if not isinstance(content, dict):
        raise UserError(
            ExitCode.CONFIG, Problem("a config has to be a mapping of keys", path), fix="see configs/dpo.yaml"
        )
    check_values(content, path)
    if not isinstance(content.get("trainer", {}), dict):
        raise UserError(
            ExitCode.CONFIG,
            Problem("expected keys below trainer", path, str(content["trainer"])),
            fix="see configs/dpo.yaml",
        )
    return content


def config_paths(args: list[str]) -> list[str]:
    """Return the values of `--config` and `-c` on a command line."""
    following = zip(args, [*args, ""][1:], strict=True)
    paths = [value for flag, value in following if flag in ("-c", "--config")]
    attached = [arg for arg in args if arg.startswith("--config=") or re.match("-c.", arg)]
    return paths + [re.sub("^(--config=|-c=?)", "", arg) for arg in attached]
