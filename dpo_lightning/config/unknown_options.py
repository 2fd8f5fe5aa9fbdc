"""Errors for options that do not exist, each with the key that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

from dpo_lightning.config.columns import WIDTH, format_row
from dpo_lightning.errors import ExitCode, Problem, UserError, excerpt
from dpo_lightning.foreign_names import (
    Translation,
    normalize,
    option_names,
    translate_option,
    translate_value,
)
from dpo_lightning.terminal import one_line

HELP = "python -m dpo_lightning fit --help lists the options"
RECIPES = "`fit --help` lists all options; configs/dpo.yaml has them as YAML"

MOST_LISTED = 60
"""Unknown options that one error lists; further ones are counted."""

NONE_SUCH = "there is no such option here (`fit --help` lists them)"
"""The advice for an option whose name is like no known one."""

LEAVE_OUT = "leave it out"
"""How the advice for an option without a counterpart begins."""

ANCHOR_HOLDERS = ("x-", ".")
"""How keys begin that some programs ignore, so that anchors for merge keys can stand there."""

ALIKE = 0.8
"""Similarity, from 0 to 1, from which a key without a section, or of another one, may have been meant."""

SIBLING_ALIKE = 0.6
"""The same for a key of the same section: half a key is enough."""

FOREIGN_ALIKE = 0.9
"""The same for a name of another program, of which there are so many that some are alike and mean something else."""

MOST_LONGER = 2
"""Letters by which a misspelt name is longer or shorter than the right one; with more, it is another name."""


class UnknownOption(NamedTuple):
    """An option that does not exist.

    Attributes:
        key: dotted, without the layers between a class and its options.
        given: its value as text, or empty.
        written: as it stands on the command line or in a file.
        path: the config file, or empty for the command line.
        line: in the file, from 1.
    """

    key: str
    given: str = ""
    written: str = ""
    path: str = ""
    line: int = 0


class UnknownOptionsError(UserError):
    """Several options that do not exist, as a table with the right keys."""

    def __init__(self, options: Sequence[UnknownOption], known: Sequence[str]) -> None:
        """Store the options.

        Args:
            options: in the order of the command line.
            known: every existing key.
        """
        self.listed = list(drop_repeated_notes((option, suggest(option, known)) for option in options[:MOST_LISTED]))
        self.count = len(options)
        problems = [Problem(f"the option {option.key} does not exist", option.path) for option in options]
        super().__init__(ExitCode.CONFIG, problems, fix=RECIPES)

    def __str__(self) -> str:
        """Format the table: a heading for each file, and a row for each of its options."""
        lines = [f"error: {self.count} options do not exist; on the right, what to write"]
        longest = max(len(word) for _, suggestion in self.listed for word in ["", *suggestion.split()])
        start = min(max(len(format_place(option)) for option, _ in self.listed) + 2, WIDTH - longest)
        for path, rows in groupby(self.listed, key=lambda row: row[0].path):
            lines.append(one_line(path) or "command line")
            for option, suggestion in rows:
                lines += format_row(format_place(option), suggestion, start)
        if self.count > MOST_LISTED:
            lines.append(f"... and {self.count - MOST_LISTED} more")
        return "\n".join([*lines, f"fix: {self.fix}"])


def drop_repeated_notes(rows: Iterable[tuple[UnknownOption, str]]) -> Iterator[tuple[UnknownOption, str]]:
    """Iterate over options and what to write, with a note only where it stands first."""
    seen = set()
    for option, suggestion in rows:
        plain, _, note = suggestion.partition(": " if suggestion.startswith(LEAVE_OUT) else " (")
        yield option, plain if note in seen else suggestion
        seen |= {note} - {""}


def format_place(option: UnknownOption) -> str:
    """Format the first column: the line in the file, and the option as it was written."""
    return f"  {f'{option.line}: ' if option.path else ''}{excerpt(option.written or option.key)}"


def unknown_options_error(options: Sequence[UnknownOption], known: Sequence[str]) -> UserError:
    """Make the error for options that do not exist.

    Args:
        options: at least one, in the order of the command line.
        known: every existing key, some of them for one class of several only.
    """
    if len(options) > 1:
        return UnknownOptionsError(options, known)
    option = options[0]
    word = excerpt((option.written or option.key).removeprefix("--"))
    what = f"the option {word} does not exist"
    if not option.path and option.written and not option.written.startswith("-"):
        what = f"{word} is neither an option nor the value of one"
    where = f"{option.path}:{option.line}" if option.path else ""
    suggestion, found = suggest(option, known), translate(option, known)
    if suggestion == NONE_SUCH:
        suggestion = RECIPES if option.path else HELP
    if found is not None and found.key:
        same = found[1:] == ("", "") and found.key.rpartition(".")[2] == option.key.rpartition(".")[2]
        suggestion = f"did you mean {found.key}?" if same else f"write {suggestion}"
    return UserError(ExitCode.CONFIG, Problem(what, where), fix=suggestion)


def suggest(option: UnknownOption, known: Sequence[str]) -> str:
    """Return what to write in place of an option, or that there is none."""
    if option.path and option.key.startswith(ANCHOR_HOLDERS):
        return f"{LEAVE_OUT}: define an anchor where it is used first"
    if (found := translate(option, known)) is not None:
        empty = option.path and option.given == "null"
        return f"{LEAVE_OUT}: it has no value" if empty else format_translation(option, found)
    near = next(find_similar(option.key, known), "")
    return f"did you mean {near}?" if near else NONE_SUCH


def translate(option: UnknownOption, known: Sequence[str]) -> Translation | None:
    """Return what an option is called here, or None if neither this package nor another program has its name.

    All of a key is looked up first, then less and less of its end: names of other programs, and existing keys with that
    end. An end that several keys have is no name.
    """
    if option.key in known:
        return Translation(option.key, option.given)
    parts = normalize(option.key).split(".")
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        if (found := translate_option(end, option.given)) is not None:
            return found
        same = keys_by_end(tuple(known)).get(end, ())
        if len(same) == 1:
            return Translation(same[0], translate_value(same[0], option.given))
    return None


@cache
def keys_by_end(known: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the keys that end with the same parts, by these parts."""
    ends: dict[str, list[str]] = {}
    for key in known:
        parts = key.split(".")
        for start in range(len(parts)):
            ends.setdefault(".".join(parts[start:]), []).append(key)
    return ends


def format_translation(option: UnknownOption, found: Translation) -> str:
    """Format what an option is called here, as a flag or as a key of YAML."""
    if not found.key:
        return f"{LEAVE_OUT}: {found.note}"
    separator = ": " if option.path else " "
    written = found.key if option.path else f"--{found.key}"
    written += f"{separator}{found.value}" if found.value else ""
    return f"{written} ({found.note})" if found.note else written


def find_similar(key: str, known: Sequence[str]) -> Iterator[str]:
    """Iterate over existing keys that a misspelt one may have meant, the most likely one first."""
    parent, _, last = normalize(key).rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    in_section = difflib.get_close_matches(last, siblings, n=1, cutoff=SIBLING_ALIKE)
    yield from (siblings[near] for near in (in_section if parent else list_alike(last, siblings, ALIKE)))
    if not siblings:  # a section is misspelt
        yield from list_alike(key, known, ALIKE)
    ends = keys_by_end(tuple(known))
    unique = {end: keys[0] for end, keys in ends.items() if len(keys) == 1 and "." not in end}
    yield from (unique[near] for near in list_alike(last, unique, ALIKE))
    foreign = {name: found.key for name, found in option_names().items() if found.key}
    yield from (foreign[near] for near in list_alike(last, foreign, FOREIGN_ALIKE))


def list_alike(name: str, names: Iterable[str], cutoff: float) -> list[str]:
    """Return the most similar name, if there is one, of those that are about as long."""
    as_long = [each for each in names if abs(len(each) - len(name)) <= MOST_LONGER]
    return difflib.get_close_matches(name, as_long, n=1, cutoff=cutoff)
