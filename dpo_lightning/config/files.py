"""Config files as plain data: YAML with unique keys and bounded anchors."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from dpo_lightning.config.values import check_values
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.special_files import check_not_special

MOST_VALUES = 100_000
"""Values that a config may have, each counted as often as an anchor repeats it."""


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the parser would silently take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a repeated key."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<`: keys of another mapping, which the ones written here take the place of
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is no word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def check_anchors(value: Any, sizes: dict[int, int]) -> int:
    """Count the values of a config, each as often as it is referred to.

    Args:
        value: of YAML; anchors make it the same object at several places, or a part of itself.
        sizes: the counts of what was met, by identity.

    Raises:
        ValueError: it is a part of itself, or written out it is far larger than a config.
    """
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = MOST_VALUES
        parts = [*value.values()] if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(check_anchors(part, sizes) for part in parts)
    if sizes[id(value)] >= MOST_VALUES:
        raise ValueError(f"its anchors make more than {MOST_VALUES:,} values of it")
    return sizes[id(value)]


def read_config(path: str) -> dict[str, Any]:
    """A config file as plain data, before any class is known.

    Raises:
        UserError: the file is missing (66) or is no YAML mapping (64, with line and column).
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
        raise UserError(ExitCode.CONFIG, Problem(f"this is no YAML: {reason}", where), fix="mend the line") from None
    if not isinstance(content, dict):
        raise UserError(ExitCode.CONFIG, Problem("a config is a mapping of keys", path), fix="see configs/dpo.yaml")
    check_values(content, path)
    if not isinstance(content.get("trainer", {}), dict):
        raise UserError(
            ExitCode.CONFIG,
            Problem("expected keys below trainer", path, str(content["trainer"])),
            fix="see configs/dpo.yaml",
        )
    return content


def config_paths(args: list[str]) -> list[str]:
    """The files that `--config` names."""
    following = zip(args, [*args, ""][1:], strict=True)
    paths = [value for flag, value in following if flag in ("-c", "--config")]
    attached = [arg for arg in args if arg.startswith("--config=") or re.match("-c.", arg)]
    return paths + [re.sub("^(--config=|-c=?)", "", arg) for arg in attached]
