"""Names of options, values and commands of other trainers, and what they are called here: `foreign_names.yaml`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FILE = Path(__file__).with_suffix(".yaml")
OFF = ("false", "no", "off", "none", "null", "0")
"""Values with which a switch of another program is off."""

GIVEN = "{}"
"""Stands for the given value in one of the file."""


class Translation(NamedTuple):
    """What an option of another program is called here.

    Attributes:
        key: the option here, or empty if there is none.
        value: what to give it, or empty if it takes the same values.
        note: how it differs, or why there is none.
    """

    key: str
    value: str = ""
    note: str = ""


@cache
def read_names() -> Mapping[str, Any]:
    """Read the file with all names."""
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")))


@cache
def read_rows() -> dict[str, Mapping[str, Any]]:
    """Return the row of each option's name, or pattern of names."""
    return {name: row for row in read_names()["options"] for name in row["names"].split()}


@cache
def option_names() -> dict[str, Translation]:
    """Return the translation of each option's name that stands there in full."""
    return {name: make_translation(row) for name, row in read_rows().items() if "*" not in name}


def translate_option(key: str, given: str = "") -> Translation | None:
    """Return what an option of another program is called here, or None if its name is unknown.

    Args:
        key: dotted or not; all of it has to match.
        given: its value, which may have another name here.
    """
    name, rows = normalize(key), read_rows()
    row = rows.get(name) or next((rows[pattern] for pattern in rows if fnmatchcase(name, pattern)), None)
    if row is None:
        return None
    off = normalize(given) in OFF
    for words, case in row.get("cases", {}).items():
        kinds = {"false": off, "fraction": is_fraction(given)}
        if normalize(given) in words.split() or any(kinds.get(word) for word in words.split()):
            return Translation("", note=case) if isinstance(case, str) else make_translation(case)
    found = make_translation(row)
    if row.get("inverted"):
        return found._replace(value="true" if off else "false")
    if GIVEN in found.value:
        return found._replace(value=found.value.replace(GIVEN, given.strip("[]()")) if given else "")
    if found.value and off:
        return Translation("", note="it is off if left out")
    return found._replace(value=found.value or translate_value(found.key, given))


def is_fraction(given: str) -> bool:
    """Whether a value is a number between 0 and 1."""
    try:
        return 0 < float(given) < 1
    except ValueError:
        return False


def make_translation(row: Mapping[str, str]) -> Translation:
    """Return the translation that a row of the file holds."""
    return Translation(row.get("key", ""), row.get("value", ""), row.get("note", ""))


def translate_value(key: str, given: str) -> str:
    """Return what the value of an option is called here, or an empty text if its name is unknown."""
    values = read_names()["values"].get(key, {})
    return next((ours for ours, names in values.items() if normalize(given) in names.split()), "")


def value_names(key: str) -> dict[str, str]:
    """Return the names that other programs have for values of an option, and what each is called here."""
    values = read_names()["values"].get(key, {})
    return {name: ours for ours, names in values.items() for name in names.split()}


def translate_command(name: str) -> str:
    """Return what to type in place of a command of another program, or an empty text if its name is unknown."""
    plain = plain_name(name)
    commands = read_names()["commands"].items()
    return next((ours for ours, names in commands if plain in normalize(names).split()), "")


def explain_unsupported(name: str) -> str:
    """Return why a method of training does not exist here, or an empty text if it is not known to be one."""
    methods = read_names()["unsupported_methods"]
    return str(methods["note"]) if plain_name(name) in methods["names"].split() else ""


def translate_flag(name: str, flags: Collection[str]) -> Translation | None:
    """Return which of a command's flags a flag of another program is, or None if its name is unknown.

    Args:
        name: without dashes.
        flags: that the command has, with their dashes.
    """
    for row in read_names()["flags"]:
        keys = row["keys"].split()
        if normalize(name) in row["names"].split() and (not keys or set(keys) & set(flags)):
            return Translation(next((key for key in keys if key in flags), ""), note=row.get("note", ""))
    return None


def plain_name(name: str) -> str:
    """Return the name of a command that may be the path of a script."""
    return normalize(name.rpartition("/")[2].removesuffix(".py"))


def normalize(name: str) -> str:
    """Return a name in lower case and with underscores, as the file has it."""
    return name.lower().replace("-", "_")
