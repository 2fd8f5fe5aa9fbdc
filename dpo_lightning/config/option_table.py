"""The options of `fit` and its relatives out of `options.json`, without importing the classes that take them.

`python docs/make_options.py` writes the file out of the parsers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("options.json")


class Option(NamedTuple):
    """An option of a command or a class; `default` is as in YAML, or `required`."""

    name: str
    type: str
    default: str
    help: str


class OptionClass(NamedTuple):
    """A class of this package, or the trainer.

    Attributes:
        place: the key that takes the class, such as `model.loss`.
        name: without its module.
        summary: one line.
        options: its own, without those of the classes that they take.
    """

    place: str
    name: str
    summary: str
    options: Sequence[Option]


class OptionTable(NamedTuple):
    """All options.

    Attributes:
        commands: the options of each command that belong to no class.
        places: the classes that each key takes, in the order of a config.
        lightning: the version whose trainer has these options.
    """

    commands: Mapping[str, Sequence[Option]]
    places: Mapping[str, Sequence[OptionClass]]
    lightning: str

    def find_class(self, name: str) -> OptionClass | None:
        """Return the class of this name, in any case of its letters."""
        known = (kind for kinds in self.places.values() for kind in kinds)
        return next((kind for kind in known if kind.name.lower() == name.lower()), None)

    def list_keys(self, command: str) -> list[str]:
        """List every key of a command, dotted, those that most runs set first."""
        sections = dict.fromkeys(place.partition(".")[0] for place in self.places)
        keys = [*(option.name for option in self.commands[command]), *sections]
        for place, kinds in self.places.items():
            keys += [f"{place}.{option.name}" for kind in kinds for option in kind.options]
        return list(dict.fromkeys(keys))


@cache
def read_options() -> OptionTable:
    """Read the table of options."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    commands = {name: [Option(**option) for option in options] for name, options in content["commands"].items()}
    places: dict[str, list[OptionClass]] = {}
    for entry in content["classes"]:
        options = [Option(**option) for option in entry["options"]]
        places.setdefault(entry["place"], []).append(OptionClass(**entry | {"options": options}))
    return OptionTable(commands, places, content["lightning"])
