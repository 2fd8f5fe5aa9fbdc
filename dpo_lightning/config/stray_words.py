"""Words of a command line that are neither an option nor the value of one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dpo_lightning.config.files import ATTACHED
from dpo_lightning.config.unknown_options import UnknownOption

SWITCHES = ("fresh", "print_config", "help")
"""Flags without a value."""

ROWS = ("data.train", "data.eval")
"""Options that take several files, as a list."""

MOST_FILES = 5
"""Files that are shown in such a list."""

SHORT = re.compile(r"-[A-Za-z_][\w.+-]*(=.*)?", re.DOTALL)
"""A word that begins with one dash and is no number."""


def find_stray_words(args: Sequence[str]) -> Iterator[UnknownOption]:
    """Iterate over words after a single dash, and over `KEY=VALUE`, `FILE.yaml` and further files of rows."""
    for flag, words in split_at_flags(args):
        key, equals, value = flag.lstrip("-").partition("=")
        if SHORT.fullmatch(flag) and flag != "-c" and not flag.startswith("-h") and not ATTACHED.match(flag):
            yield UnknownOption(key, value or next(iter(words), ""), flag)
        values = [value] if equals else words[: 0 if key in ("", *SWITCHES) or ATTACHED.match(flag) else 1]
        strays = words[len(values) - len(equals) :]
        files = [word for word in strays if assignment(word) is None]
        yield from filter(None, map(assignment, strays))
        if files and key.rstrip("+") in ROWS:
            yield UnknownOption(key, format_list([*values, *files]), files[0])
        else:
            yield from (UnknownOption("config", word, word) for word in files if word.endswith((".yaml", ".yml")))


def split_at_flags(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Iterate over the flags of a command line, each with the words up to the next one; the first flag is empty."""
    flag, words = "", list[str]()
    for arg in args:
        if (arg.startswith("--") and len(arg) > 2) or SHORT.fullmatch(arg):
            yield flag, words
            flag, words = arg, []
        else:
            words.append(arg)
    yield flag, words


def assignment(word: str) -> UnknownOption | None:
    """Return the option of a word `KEY=VALUE`, None for other words."""
    found = re.fullmatch(r"\+*([A-Za-z_][\w.]*)=(.*)", word)
    return UnknownOption(found[1], found[2], word) if found else None


def format_list(names: Sequence[str]) -> str:
    """Format file names as the value of one option."""
    return f"'[{','.join(names[:MOST_FILES])}{',...' if len(names) > MOST_FILES else ''}]'"
