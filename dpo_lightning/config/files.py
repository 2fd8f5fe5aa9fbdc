"""Config files as plain data: YAML with unique keys and limited anchors."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import yaml

from dpo_lightning.config.values import check_arguments, check_values
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.special_files import check_not_special

MOST_VALUES = 100_000
"""Largest number of values in a config, each counted as often as an anchor repeats it."""


LARGEST_CONFIG = 1 << 20
"""Largest size of a config in characters, which takes seconds to parse."""


OBJECTS = {
    *("model", "policy", "lora", "quantization", "loss", "losses", "reference", "optimizer", "lr_scheduler"),
    *("data", "collator", "trainer", "callbacks", "logger", "strategy", "profiler", "plugins", "init_args"),
}
"""Options that hold options of their own. The parser takes the path of a file with these as well."""

FILLED = ("class_path", "init_args")
"""Keys of a class and of its options."""


ATTACHED = re.compile(r"-c(?!(onfig|kpt_path)(=|$)).")
"""How `-c` with its file in the same word begins; `-config` and `-ckpt_path` are options that lack a dash."""


class ConfigFile(NamedTuple):
    """A YAML file.

    Attributes:
        path: as it was given.
        content: plain data.
        node: the tree that the content was made of, with the line of each key; None of an empty file.
    """

    path: str
    content: Any
    node: yaml.Node | None


class UniqueKeys(yaml.SafeLoader):
    """A YAML loader that refuses repeated keys, of which the default loader silently takes the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace merge keys (`<<`) by the keys of the mappings that they name.

        Raises:
            ConstructorError: a key is repeated or unhashable. Keys written here may override merged ones, so that a
                mapping is checked once, before the others are merged into it.
        """
        if id(node) not in self.checked:
            self.checked.add(id(node))
            self.check_unique(node)
        super().flatten_mapping(node)

    def check_unique(self, node: yaml.MappingNode) -> None:
        """Refuse repeated keys of one mapping."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is repeated", key_node.start_mark)
            seen.add(key)


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
    """Read a config file as plain data; see `read_config_file`."""
    return dict(read_config_file(path).content)


def read_config_file(path: str) -> ConfigFile:
    """Read a config file before any class is known.

    Raises:
        UserError: 66, the file is missing; 64, it is no YAML mapping (with line and column), or a part of it is not.
    """
    file = read_yaml(path)
    content = file.content
    if not isinstance(content, dict):
        raise UserError(
            ExitCode.CONFIG, Problem("a config has to be a mapping of keys", path), fix="see configs/dpo.yaml"
        )
    check_values(content, path)
    check_parts(content, path, (path,))
    if "config" in content:
        raise UserError(
            ExitCode.CONFIG,
            Problem("a config cannot name a further config", "config", str(content["config"])),
            fix="give both on the command line: --config A --config B",
        )
    if empty := list(find_empty(content)):
        raise UserError(
            ExitCode.CONFIG,
            [Problem(f"{key} has no value", path) for key in empty],
            fix="write a class after `class_path:` and its options below `init_args:`, or leave the key out",
        )
    if not isinstance(content.get("trainer", {}), dict):
        raise UserError(
            ExitCode.CONFIG,
            Problem("expected keys below trainer", path, str(content["trainer"])),
            fix="see configs/dpo.yaml",
        )
    return file


def find_empty(value: Any, key: str = "") -> Iterator[str]:
    """Iterate over the keys of a section, a class or its options, at any depth, whose value is null or empty."""
    for inner in value if isinstance(value, list) else ():
        yield from find_empty(inner, key)
    for name, inner in value.items() if isinstance(value, dict) else ():
        below = f"{key}.{name}".lstrip(".")
        if (name in FILLED or below in ("model", "data")) and (inner is None or inner == ""):
            yield below
        yield from find_empty(inner, below)


def read_yaml(path: str) -> ConfigFile:
    """Read a YAML file of limited size.

    Raises:
        UserError: 66, the file cannot be read; 64, it is no YAML.
    """
    try:
        check_not_special(path)
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            text = file.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            raise ValueError(f"more than {LARGEST_CONFIG >> 20} MiB")
        loader = UniqueKeys(text)
        node = loader.get_single_node()
        content = None if node is None else loader.construct_document(node)
        check_anchors(content, {})
    except OSError as error:
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem(f"the config cannot be read: {error.strerror}", "--config", path),
            fix="give one of configs/*.yaml",
        ) from None
    except UnicodeDecodeError as error:
        what = Problem(f"the config is not text in UTF-8: {error.reason}", path)
        raise UserError(ExitCode.CONFIG, what, fix="save the file in UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        reason = "a number has thousands of digits" if "integer string conversion" in reason else reason
        raise UserError(ExitCode.CONFIG, Problem(f"invalid YAML: {reason}", where), fix="correct the line") from None
    return ConfigFile(path, content, node)


def check_parts(value: Any, key: str, above: tuple[str, ...]) -> None:
    """Check the files that a config names in place of an object's options, which the parser would read unchecked.

    Args:
        value: of a key; also a list or a mapping.
        key: its name, dotted or not.
        above: the files that led to this value.

    Raises:
        UserError: as `read_yaml`; 64, a file is a part of itself.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            check_parts(inner, str(name), above)
    elif isinstance(value, list):
        for inner in value:
            check_parts(inner, key, above)
    elif isinstance(value, str) and key.rstrip("+").rpartition(".")[2] in OBJECTS:
        # The parser looks for a part beside its config.
        places = {os.path.realpath(os.path.join(folder, value)) for folder in ("", *map(os.path.dirname, above[-1:]))}  # noqa: PTH118
        for path in filter(os.path.isfile, sorted(places)):  # false for a name that is too long
            if path in map(os.path.realpath, above):
                what = Problem("the file is a part of itself", key, value)
                raise UserError(ExitCode.CONFIG, what, fix="write the options out")
            content = read_yaml(path).content
            check_values(content, path)
            check_parts(content, key, (*above, path))


def read_command_line(args: Sequence[str]) -> list[ConfigFile]:
    """Check the values of a command line, and read the config files that it names.

    Raises:
        UserError: as `check_arguments`, `check_parts` and `read_config_file`.
    """
    check_arguments(args)
    check_flags(args)
    return [read_config_file(path) for path in config_paths(args)]


def check_flags(args: Sequence[str]) -> None:
    """Check the files that flags name in place of an object's options.

    Raises:
        UserError: as `check_parts`.
    """
    for flag, following in pairwise([*args, ""]):
        key, equals, value = flag.removeprefix("--").partition("=")
        if flag.startswith("--"):
            check_parts(value if equals else following, key, ())


def config_paths(args: Sequence[str]) -> list[str]:
    """Return the values of `--config` and `-c` on a command line, in their order, of which the last one wins."""
    found = []
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        if arg in ("-c", "--config"):
            found.append(following)
        elif arg.startswith("--config=") or ATTACHED.match(arg):
            found.append(re.sub("^(--config=|-c=?)", "", arg))
    return found
