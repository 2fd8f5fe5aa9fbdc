"""`convert`: write the rows of a file of any known format in this package's own columns."""

from __future__ import annotations

import argparse
import shlex
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_lightning.commands.row_options import add_row_options, make_read_options, take_columns
from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import check_output_path
from dpo_lightning.log import logger

if TYPE_CHECKING:
    from dpo_lightning.data.convert import Conversion

COLUMNS = (
    *("prompt", "chosen", "rejected", "completion", "label", "responses", "scores", "messages", "system"),
    *("verdict", "answer_1", "answer_2"),
)
MIN_COLUMNS = 60
"""Columns of a terminal below which the table of formats is not narrowed further."""

MOST_REASONS = 10
"""Reasons for which rows were left out that are printed, the most frequent first."""


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command's options."""
    options = RaisingArgumentParser(
        "python -m dpo_lightning convert",
        description=__doc__,
        epilog="--columns.input context reads the column `context` as `input`, and so on for other columns",
        allow_abbrev=False,
    )
    options.add_argument("--input", nargs="+", metavar="FILE", help="files of one format, or hf://org/name")
    options.add_argument("--output", metavar="FILE.jsonl", help="the new file; rows left out go into a file beside it")
    options.add_argument("--to", choices=("pairs", "ranked", "unpaired", "sft"), help="the kind of the new rows")
    for name in COLUMNS:
        options.add_argument(f"--{name}", metavar="COLUMN", help=f"the column of the file that has our `{name}`")
    options.add_argument(
        "--input_column", metavar="COLUMN", help="the column with the text that an instruction is about"
    )
    add_row_options(options)
    options.add_argument("--overwrite", action="store_true", help="replace files that exist")
    options.add_argument("--list", action="store_true", help="list the formats")
    return options


def main(argv: list[str]) -> int:
    """Convert the rows, write them, log the counts, and return the exit code."""
    rest, columns = take_columns(argv)
    args = make_parser().parse_args(rest)
    if args.list:
        print(list_formats())
        return 0
    for name in ("input", "output"):
        if not getattr(args, name):
            raise UserError(ExitCode.CONFIG, Problem("the option is missing", f"--{name}"), fix=f"--{name} FILE")
    check_output_path(args.output, "--output", "--output rows.jsonl", file=True)
    output = Path(args.output)
    left_out = output.with_name(f"{output.stem}.left-out.jsonl")
    check_output(output, left_out, overwrite=args.overwrite, sources=args.input)

    from dpo_lightning.data.convert import convert_rows

    columns |= {name: value for name in COLUMNS if (value := getattr(args, name))}
    result = convert_rows(args.input, kind=args.to, options=make_read_options(args, columns))
    write_rows(result, output, left_out)
    report(result, output, left_out)
    return 0


def list_formats() -> str:
    """The table of formats: name, kind of rows, columns."""
    from dpo_lightning.data.formats.recognition import FORMATS

    width = max(len(known.name) for known in FORMATS)
    columns = max(MIN_COLUMNS, shutil.get_terminal_size((100, 24)).columns)
    return "\n".join(
        textwrap.fill(
            known.summarize(),
            columns,
            initial_indent=f"{known.name:<{width}}  {known.kind:<8}  ",
            subsequent_indent=" " * (width + 12),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for known in FORMATS
    )


def check_output(*paths: Path, overwrite: bool, sources: Sequence[str]) -> None:
    """Check that the files can be written.

    Raises:
        UserError: 73, a file exists or is one of the sources, or its folder does not exist.
    """
    for path in paths:
        if path.exists() and any(Path(source).exists() and path.samefile(source) for source in sources):
            problem = Problem("the new file would replace one that is read", where=str(path))
            raise UserError(ExitCode.OUTPUT, problem, fix="name another file")
        if not path.parent.is_dir():
            problem = Problem("the folder does not exist", where=str(path.parent))
            fix = "name a file in a folder" if path.parent.exists() else f"mkdir -p {shlex.quote(str(path.parent))}"
            raise UserError(ExitCode.OUTPUT, problem, fix=fix)
        if path.is_dir() or (path.exists() and not overwrite):
            fix = "name another file" if path.is_dir() else "--overwrite, or name another file"
            raise UserError(ExitCode.OUTPUT, Problem("it exists already", where=str(path)), fix=fix)


def write_rows(result: Conversion, output: Path, left_out: Path) -> None:
    """Write the rows, and those that were left out if there are any, each file whole or not at all.

    Raises:
        UserError: 73, a file cannot be written.
    """
    from dpo_lightning.atomic_files import open_atomic
    from dpo_lightning.data.convert import format_jsonl

    try:
        for path, rows in ((output, result.rows), (left_out, result.left_out)):
            if rows:
                with open_atomic(path) as file:
                    file.write(format_jsonl(rows))
        if not result.left_out:
            left_out.unlink(missing_ok=True)  # that of an earlier conversion
    except OSError as error:
        problem = Problem(f"the file cannot be written: {error.strerror}", where=str(output))
        raise UserError(ExitCode.OUTPUT, problem, fix="name a file in a folder that can be written") from None


def report(result: Conversion, output: Path, left_out: Path) -> None:
    """Log what was noticed, how many rows were written, and how many were left out for which reason."""
    for line in result.lines:
        logger.info(f"note: {line}")
    logger.info(f"{output}: {len(result.rows):,} rows ({result.kind})")
    if result.left_out:
        logger.info(f"{left_out}: {len(result.left_out):,} rows left out")
        reasons = sorted(result.reasons.items(), key=lambda item: -item[1])
        for reason, count in reasons[:MOST_REASONS]:
            logger.info(f"  {count:,}  {reason}")
        if len(reasons) > MOST_REASONS:
            logger.info(f"  and {len(reasons) - MOST_REASONS} more reasons, in the file")
