"""The check of every key of a command line and its config files, before the classes that take them are imported.

Only keys of this package's classes and of the trainer are checked. What stands below a class of another package, or
below an option of another type, is left to the parser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import islice, pairwise
from typing import NamedTuple

import yaml

from dpo_lightning.config.files import ConfigFile
from dpo_lightning.config.option_table import OptionTable, read_options
from dpo_lightning.config.stray_words import find_stray_words
from dpo_lightning.config.unknown_options import ANCHOR_HOLDERS, UnknownOption, translate, unknown_options_error
from dpo_lightning.errors import ExitCode, UserError

ALWAYS = ("help", "allow-class-path")
"""Flags that are handled before the parser."""

REQUIRED = ("output_dir", "data", "model")
"""Keys that every run has."""

LAYERS = ("init_args", "dict_kwargs")
"""Keys between a class and its options, which may be left out."""

PACKAGE = "dpo_lightning"
TRAINER = "trainer."
"""Keys of lightning's trainer. Another version than that of the table may have others: the parser knows them."""

MOST_TRIED = 100
"""Keys of an unknown section that are looked at to find out whether it is one of another program."""


class Places(NamedTuple):
    """Names that are known at each key.

    Attributes:
        names: the keys below each key that takes options; `` has those at the top.
        classes: names of this package's classes that each key takes.
        open: keys with a class of another package, whose options are unknown.
    """

    names: Mapping[str, frozenset[str]]
    classes: Mapping[str, frozenset[str]]
    open: frozenset[str] = frozenset()


class Flag(NamedTuple):
    """An option of the command line: its key without dashes, and its value."""

    key: str
    value: str


def check_keys(args: Sequence[str], files: Sequence[ConfigFile], own: Sequence[str] = ()) -> None:
    """Check every key of a command line and its config files.

    Args:
        args: the command line; the first word is the command.
        files: the config files that it names.
        own: further keys of the command.

    Raises:
        UserError: 64, with every key that does not exist.
    """
    table, command = read_options(), args[0]
    command = command if command in table.commands else "fit"
    known = list(dict.fromkeys([*table.list_keys(command), *own]))
    places = list_places(table, known)
    flags = list(parse_flags(args[1:]))
    places = places._replace(open=frozenset(find_open(flags, files, places)))
    unknown = [*find_unknown_flags(flags, places), *find_stray_words(args[1:])]
    for file in files:
        if isinstance(file.node, yaml.MappingNode):
            unknown += dict.fromkeys(find_unknown_keys(file.node, (), file.path, places, known))
    if any(option.key.startswith(TRAINER) for option in unknown) and version("lightning") != table.lightning:
        unknown = [option for option in unknown if not option.key.startswith(TRAINER)]
    if unknown:
        raise unknown_options_error(unknown, known)


def check_required(args: Sequence[str], files: Sequence[ConfigFile]) -> None:
    """Check that a command line or its config files have the keys without which there is no run.

    Raises:
        UserError: 64, with those that are missing.
    """
    keys = [flag.key for flag in parse_flags(args[1:])]
    given = {key.partition(".")[0] for key in keys}.union(*(file.content for file in files))
    missing = [key for key in REQUIRED if key not in given]
    if missing and "print_config" not in given and not any(key.endswith(".help") for key in keys):
        raise missing_keys_error(missing)


def missing_keys_error(names: Sequence[str]) -> UserError:
    """Make the error for required keys that are not set."""
    verb = "is" if len(names) == 1 else "are"
    fix = f"--config with a whole recipe (configs/dpo.yaml), or --{names[0]}"
    return UserError(ExitCode.CONFIG, f"{', '.join(names)} {verb} missing", fix=fix)


def list_places(table: OptionTable, known: Sequence[str]) -> Places:
    """List the names that exist below each key that takes options, and the classes that it takes."""
    names: dict[str, set[str]] = {place: set() for place in ("", *table.places)}
    for key in known:
        place, _, name = key.rpartition(".")
        if place in names:
            names[place].add(name)
    classes = {place: frozenset(kind.name for kind in kinds) for place, kinds in table.places.items()}
    return Places({place: frozenset(inner) for place, inner in names.items()}, classes)


def parse_flags(args: Sequence[str]) -> Iterator[Flag]:
    """Iterate over the flags of a command line; the value of one without a value is empty."""
    for word, following in pairwise([*args, ""]):
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            yield Flag(key.rstrip("+"), value if equals else "" if following.startswith("--") else following)


def split_key(key: str) -> tuple[str, ...]:
    """Return the parts of a dotted key, without those between a class and its options."""
    return tuple(part for part in key.split(".") if part not in LAYERS)


def find_unknown_flags(flags: Sequence[Flag], places: Places) -> Iterator[UnknownOption]:
    """Iterate over flags that do not exist."""
    for flag in flags:
        parts = split_key(flag.key)
        if parts[-1:] not in (("help",), ("class_path",)) and flag.key not in ALWAYS and is_unknown(parts, places):
            yield UnknownOption(".".join(parts), flag.value, f"--{flag.key}")


def is_unknown(parts: Sequence[str], places: Places) -> bool:
    """Whether a key does not exist, as far as it can be told without the classes of other packages."""
    place = ""
    for part in parts:
        if place in places.open or place not in places.names:
            return False
        if part not in places.names[place]:
            return True
        place = f"{place}.{part}".lstrip(".")
    return False


def find_unknown_keys(
    node: yaml.MappingNode, above: tuple[str, ...], path: str, places: Places, known: Sequence[str]
) -> Iterator[UnknownOption]:
    """Iterate over keys of a mapping, and of those below it, that do not exist.

    Args:
        node: the mapping.
        above: the key of the mapping.
        path: of the file.
        places: the names that are known.
        known: every existing key.
    """
    # What is written in a mapping stands after what is merged into it.
    content = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    place = ".".join(above)
    if place not in places.names or (place in places.open and "class_path" not in content):
        return
    if "class_path" in content and not is_own_class(str(content["class_path"][1].value), place, places):
        return
    for name, (key, value) in content.items():
        if name == "class_path":
            continue
        parts = above if name in LAYERS else (*above, name.rstrip("+"))
        if is_unknown(parts, places):
            yield from report_unknown(parts, key, value, path, known)
            continue
        for inner in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if isinstance(inner, yaml.MappingNode):
                yield from find_unknown_keys(inner, parts, path, places, known)


def report_unknown(
    parts: tuple[str, ...], key: yaml.Node, value: yaml.Node, path: str, known: Sequence[str]
) -> Iterator[UnknownOption]:
    """Iterate over what is unknown in an unknown key: the keys below it where it is a section of another program."""
    entries = value.value if isinstance(value, yaml.MappingNode) else []
    inside = [((*parts, inner.value), inner, held) for inner, held in entries if isinstance(inner, yaml.ScalarNode)]
    tried = [] if parts[0].startswith(ANCHOR_HOLDERS) else islice(inside, MOST_TRIED)
    if any(translate(UnknownOption(".".join(below)), known) for below, *_ in tried):
        for below, inner, held in inside:
            yield from report_unknown(below, inner, held, path, known)
    else:
        given = value.value if isinstance(value, yaml.ScalarNode) else ""
        given = "null" if value.tag == "tag:yaml.org,2002:null" else given
        name = ".".join(parts)
        yield UnknownOption(name, given, name, path, key.start_mark.line + 1)


def find_open(flags: Sequence[Flag], files: Sequence[ConfigFile], places: Places) -> Iterator[str]:
    """Iterate over the keys for which a flag or a file names something else than a class of this package."""
    for flag in flags:
        place = ".".join(part for part in split_key(flag.key) if part != "class_path")
        if place in places.classes and flag.value and not is_own_class(flag.value, place, places):
            yield place
    for file in files:
        if file.node is not None:
            yield from find_open_nodes(file.node, (), places)


def find_open_nodes(node: yaml.Node, above: tuple[str, ...], places: Places) -> Iterator[str]:
    """Iterate over the keys, at any depth, whose value names something else than a class of this package."""
    place = ".".join(above)
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            yield from find_open_nodes(inner, above, places)
    elif isinstance(node, yaml.ScalarNode):
        if place in places.classes and not is_own_class(node.value, place, places):
            yield place
    elif isinstance(node, yaml.MappingNode) and place in places.names:
        for key, value in node.value:
            name = key.value.rstrip("+") if isinstance(key, yaml.ScalarNode) else ""
            yield from find_open_nodes(value, above if name in (*LAYERS, "class_path") else (*above, name), places)


def is_own_class(name: str, place: str, places: Places) -> bool:
    """Whether a text names a class of this package that a key takes, with or without its module."""
    module, _, plain = name.rpartition(".")
    return plain in places.classes[place] and module.partition(".")[0] in ("", PACKAGE)
