"""Where a config may have files written: below the run's folder, and elsewhere only by the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from dpo_lightning.config.class_paths import defined, find, members, option, within
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.references.precomputed import FOLDER, Precomputed

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
"""Options of lightning's callbacks, loggers, profilers and strategies that say where files lie."""

NAMES = {"filename", "filename_suffix", "name", "version", "sub_dir", "run_name", "experiment_name", "checkpoint_name"}
"""Options of theirs that name a file or a folder there."""

NUMBER = re.compile(r"[-+ ]?#?0?\d*[,_]?(\.\d+)?[bdeEfFgGnoxX%]?")
"""How a name may have a metric formatted: as a number, which no `..` and no `/` comes of."""


def check_outputs(config: Mapping[str, Any] | Namespace, args: Sequence[str]) -> None:
    """Refuse a file's options that would have something written elsewhere than in the run's folder.

    Args:
        config: the parsed options of the command.
        args: the command line, which may name any place.

    Raises:
        UserError: 64, with every such key.
    """
    flags, home = list(given(args)), str(config["output_dir"])
    outside = [
        (key, value)
        for key, value, inside in [*places(config["trainer"], "trainer", home), *references(config, home)]
        if not inside and not on_command_line(key, value, flags)
    ]
    if outside:
        key = outside[0][0]
        raise UserError(
            ExitCode.CONFIG,
            [Problem(f"a file would be written outside of output_dir ({home})", key, value) for key, value in outside],
            fix=f"leave it out or name a place in output_dir; on the command line, --{key} may name any",
        )


def places(value: Any, key: str, home: str) -> Iterator[tuple[str, str, bool]]:
    """Key and value of each option of lightning's classes that says where files lie, and whether that is in `home`."""
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from places(inner, key, home)
    if not isinstance(value, (Mapping, Namespace)):
        return
    content, named, owner = members(value), None, None
    if isinstance(path := content.get("class_path"), str):
        content = members(content.get("init_args")) | members(content.get("dict_kwargs"))
        named = find(path)
        owner = of_lightning(named)
    for name, inner in content.items():
        if owner is not None and name in FOLDERS | NAMES and isinstance(inner, (str, os.PathLike)):
            taken, text = option(owner, name), os.fspath(inner)
            if inner != taken.default if taken else owner is named:
                yield f"{key}.{name}", text, lies_in(text, home) if name in FOLDERS else is_name(text)
        else:
            yield from places(inner, f"{key}.{name}", home)


def of_lightning(found: Any) -> Any:
    """The class itself or the nearest one above it that lightning defines, by whatever path it was named."""
    return next((base for base in getattr(found, "__mro__", ()) if within(defined(base), ("lightning",))), None)


def references(config: Mapping[str, Any] | Namespace, home: str) -> Iterator[tuple[str, str, bool]]:
    """The file of a precomputed reference, where it would be made: one that is there only gets the rows it lacks."""
    reference = members(members(members(config["model"]).get("init_args")).get("reference"))
    named = {"out": members(config).get("out")}
    if str(reference.get("class_path")).endswith(f".{Precomputed.__name__}"):
        named["model.reference.path"] = members(reference.get("init_args")).get("path")
    for key, path in named.items():
        if path is not None:
            yield key, path, Path(path).is_file() or lies_in(path, home) or lies_in(path, str(FOLDER))


def lies_in(path: str, home: str) -> bool:
    """Whether a path leads into a folder, links and shell variables followed."""
    if "://" in path or path.startswith("file:"):
        return False
    place = Path(os.path.expandvars(Path(path).expanduser())).resolve()
    return Path(home).resolve() in (place, *place.parents)


def is_name(text: str) -> bool:
    """Whether a name, with metrics in braces, cannot lead out of the folder that it is put in."""
    plain = re.sub(r"[{}]", "", text)
    formats = re.findall(r"\{[^{}:]*:?([^{}]*)\}", text)
    whole = len(formats) == text.count("{") == text.count("}")
    leads = plain.startswith(("/", "~")) or ".." in re.split(r"[/\\]", plain) or "$" in plain or "://" in plain
    return whole and not leads and all(NUMBER.fullmatch(format_) for format_ in formats)


def given(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Key and text of each flag that has a value."""
    for flag, following in zip(args, [*args[1:], ""], strict=True):
        if flag.startswith("--"):
            key, equals, value = flag[2:].partition("=")
            plain = key.rstrip("+").replace("init_args.", "").replace("dict_kwargs.", "")
            yield plain, value if equals else following


def on_command_line(key: str, value: str, flags: Sequence[tuple[str, str]]) -> bool:
    """Whether a flag gives this value: by itself, or as a part of YAML that is written out."""
    return any(
        (flag == key and text == value) or (f"{key}.".startswith(f"{flag}.") and value in leaves(loaded(text)))
        for flag, text in flags
    )


def loaded(text: str) -> Any:
    """The value of a flag as YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def leaves(value: Any) -> list[Any]:
    """The single values of nested ones."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]
