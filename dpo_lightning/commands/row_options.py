"""Options of commands that read rows: those of `fit` under `--data.`, with or without that prefix."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dpo_lightning.errors import ExitCode, UserError

if TYPE_CHECKING:
    from dpo_lightning.data.load import ReadOptions
    from dpo_lightning.data.readers.left_out import BadRowsOption

COLUMNS, DATA = "--columns.", "--data."


def add_row_options(options: argparse.ArgumentParser) -> None:
    """Add the options that say how columns are read."""
    options.add_argument(
        "--format", "--from", default="auto", metavar="NAME", help="the format of the rows, if it is not recognized"
    )
    options.add_argument("--ignore_columns", nargs="+", default=[], metavar="COLUMN", help="columns to leave aside")
    options.add_argument("--first_wins", metavar="VALUE", help="the verdict with which the first of two answers wins")


def add_bad_rows_option(options: argparse.ArgumentParser) -> None:
    """Add the option that says what is done with a bad row; `convert` leaves such rows out always."""
    help = "a row that cannot be used is an error, or left out and listed (default: %(default)s)"
    options.add_argument("--bad_rows", choices=("error", "drop"), default="error", help=help)


def add_text_options(options: argparse.ArgumentParser) -> None:
    """Add the options that say how texts become token ids."""
    group = options.add_argument_group("texts, as for fit")
    group.add_argument("--template", choices=("auto", "chat", "raw"), default="auto")
    group.add_argument("--chat_template", metavar="FILE")
    group.add_argument("--template_date", metavar="DATE")
    group.add_argument("--special_tokens", choices=("refuse", "neutralize"), default="refuse")


def make_read_options(args: argparse.Namespace, columns: Mapping[str, str]) -> ReadOptions:
    """The options as `load_examples` takes them; a list of columns may be written as in YAML, as errors print it."""
    from dpo_lightning.data.load import ReadOptions

    ignored = [name.strip() for word in args.ignore_columns for name in _split_list(word)]
    bad_rows: BadRowsOption = getattr(args, "bad_rows", "error")
    return ReadOptions(columns or None, False, args.format, ignored, args.first_wins, bad_rows=bad_rows)


def _split_list(word: str) -> list[str]:
    return word[1:-1].split(",") if word.startswith("[") and word.endswith("]") else [word]


def take_columns(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split the options `--columns.X NAME` off; options with the prefix of `fit`, `--data.`, are read as well.

    Raises:
        UserError: 64, an option has no name of a column.
    """
    rest: list[str] = []
    columns: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if word.startswith(DATA):
            word = "--" + word.removeprefix(DATA)
        if not word.startswith(COLUMNS):
            rest.append(word)
            continue
        ours, equals, theirs = word.removeprefix(COLUMNS).partition("=")
        theirs = theirs if equals else next(words, "")
        if not theirs:
            raise UserError(ExitCode.CONFIG, f"{word} names no column", fix=f"{word} NAME, the file's name of it")
        columns[ours] = theirs
    return rest, columns
