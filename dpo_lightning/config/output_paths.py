"""Where a config file may have files written: inside the run's folder; other places only by the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from dpo_lightning.config.class_paths import find_option, import_object, is_within, members, qualified_name
from dpo_lightning.data.cache.cache_choice import AUTO, DEFAULT, KEY, OFF
from dpo_lightning.data.cache.cache_folder import KNOWN_DIGESTS
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.references.precomputed import FOLDER, Precomputed
from dpo_lightning.special_files import is_file, real_path

FOLDERS = {
    "dirpath",
    "save_dir",
    "root_dir",
    "dir",
    "exclude_batches_path",
    "nvme_path",
    "tracking_uri",
    "artifact_location",
}
"""Options of Lightning's callbacks, loggers, profilers and strategies that name a folder."""

NAMES = {"filename", "filename_suffix", "name", "version", "sub_dir", "run_name", "experiment_name", "checkpoint_name"}
"""Options of these that name a file or folder inside it."""

NUMBER = re.compile(r"[-+ ]?#?0?\d*[,_]?(\.\d+)?[bdeEfFgGnoxX%]?")
"""Format specifications of metrics in a name that give a number, which contains no `..` or `/`."""

SAVED = "config.yaml"
"""The file by which an output folder is recognized as that of a run."""

OUTSIDE = {"output_dir": "a folder in a config may not lead up by `..`"}
"""What is wrong with a path, where it is not that it is outside of the run's folder."""


def check_outputs(config: Mapping[str, Any] | Namespace, args: Sequence[str]) -> None:
    """Refuse options of a file that would have something written outside of the run's folder.

    Args:
        config: the parsed options of the command.
        args: the command line, which may name any place.

    Raises:
        UserError: 64, with every such key.
    """
    flags, home = list(parse_flags(args)), str(config["output_dir"])
    outside = [
        (key, value)
        for key, value, inside in [
            *find_places(config["trainer"], "trainer", home),
            *find_reference_files(config, home),
            *find_cache(config, home),
            *find_way_up(home),
        ]
        if not inside and not on_command_line(key, value, flags)
    ]
    if outside:
        key = outside[0][0]
        within = "the working folder" if key == "output_dir" else "output_dir"
        raise UserError(
            ExitCode.CONFIG,
            [
                Problem(OUTSIDE.get(key, f"the path is outside of output_dir ({home})"), key, value)
                for key, value in outside
            ],
            fix=f"use a path in {within}, or set --{key} on the command line, where any path is allowed",
        )


def find_places(value: Any, key: str, home: str) -> Iterator[tuple[str, str, bool]]:
    """Iterate over options of Lightning's classes that name a path: key, value, whether it is in `home`."""
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from find_places(inner, key, home)
    if not isinstance(value, (Mapping, Namespace)):
        return
    content, named, owner = members(value), None, None
    if isinstance(path := content.get("class_path"), str):
        content = members(content.get("init_args")) | members(content.get("dict_kwargs"))
        named = import_object(path)
        owner = find_lightning_base(named)
    for name, inner in content.items():
        if owner is not None and name in FOLDERS | NAMES and isinstance(inner, (str, os.PathLike)):
            taken, text = find_option(owner, name), os.fspath(inner)
            # Keyword arguments that Lightning's class does not list count only for the class itself.
            if inner != taken.default if taken else owner is named:
                yield f"{key}.{name}", text, is_inside(text, home) if name in FOLDERS else is_name(text)
        else:
            yield from find_places(inner, f"{key}.{name}", home)


def find_lightning_base(found: Any) -> Any:
    """Return a class itself or its nearest base that Lightning defines; None if there is none."""
    return next(
        (base for base in getattr(found, "__mro__", ()) if is_within(qualified_name(base), ("lightning",))), None
    )


def find_reference_files(config: Mapping[str, Any] | Namespace, home: str) -> Iterator[tuple[str, str, bool]]:
    """Iterate over key, path and permission of the files of precomputed references.

    A file that exists may be anywhere, as only missing rows are added to it.
    """
    reference = members(members(members(config["model"]).get("init_args")).get("reference"))
    named = {"out": members(config).get("out")}
    if str(reference.get("class_path")).endswith(f".{Precomputed.__name__}"):
        named["model.reference.path"] = members(reference.get("init_args")).get("path")
    for key, path in named.items():
        if path is not None:
            yield key, path, is_file(path) or is_inside(path, home) or is_inside(path, str(FOLDER))


def find_cache(config: Mapping[str, Any] | Namespace, home: str) -> Iterator[tuple[str, str, bool]]:
    """Iterate over key, path and permission of the folder of encoded rows.

    A folder that has encoded rows may be anywhere, as only entries are added to it.
    """
    path = members(members(config["data"]).get("init_args")).get("cache")
    if isinstance(path, str) and path != AUTO and path.lower() not in OFF:
        default = str(Path(home).parent / DEFAULT)
        yield KEY, path, is_inside(path, home) or is_inside(path, default) or is_file(Path(path, KNOWN_DIGESTS))


def find_way_up(home: str) -> Iterator[tuple[str, str, bool]]:
    """Iterate over key, path and permission of an output folder beside the working folder; that of a run may be."""
    if ".." in Path(home).parts:
        yield "output_dir", home, is_file(Path(home) / SAVED)


def is_inside(path: str, home: str) -> bool:
    """Whether a path leads into a folder after links and shell variables are resolved."""
    if "://" in path or path.startswith("file:"):
        return False
    place = real_path(os.path.expandvars(Path(path).expanduser()))
    return real_path(home) in (place, *place.parents)


def is_name(text: str) -> bool:
    """Whether a name, with metrics in braces, cannot lead out of the folder in which it is used."""
    plain = re.sub(r"[{}]", "", text)
    formats = re.findall(r"\{[^{}:]*:?([^{}]*)\}", text)
    whole = len(formats) == text.count("{") == text.count("}")
    leads = plain.startswith(("/", "~")) or ".." in re.split(r"[/\\]", plain) or "$" in plain or "://" in plain
    return whole and not leads and all(NUMBER.fullmatch(format_) for format_ in formats)


def parse_flags(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Iterate over key and value of each flag that has a value."""
    for flag, following in zip(args, [*args[1:], ""], strict=True):
        if flag.startswith("--"):
            key, equals, value = flag[2:].partition("=")
            plain = key.rstrip("+").replace("init_args.", "").replace("dict_kwargs.", "")
            yield plain, value if equals else following


def on_command_line(key: str, value: str, flags: Sequence[tuple[str, str]]) -> bool:
    """Whether a flag sets this value, by itself or as a part of inline YAML."""
    return any(
        (flag == key and text == value)
        or (f"{key}.".startswith(f"{flag}.") and value in flatten_values(parse_yaml(text)))
        for flag, text in flags
    )


def parse_yaml(text: str) -> Any:
    """Return the value of a flag as YAML, or its text if it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def flatten_values(value: Any) -> list[Any]:
    """Return the scalars of nested lists and mappings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for inner in value for leaf in flatten_values(inner)] if isinstance(value, list) else [value]
