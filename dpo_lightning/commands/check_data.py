"""`check-data`: what `fit` would say of rows, how they are trained, and which are doubtful; nothing is trained."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from dpo_lightning.commands.row_options import add_bad_rows_option, add_row_options, make_read_options, take_columns
from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.terminal import CONTROL

if TYPE_CHECKING:
    from dpo_lightning.data.checks.reading import CheckedRows
    from dpo_lightning.data.checks.report import Report
    from dpo_lightning.data.checks.tokens import EncodedSet
    from dpo_lightning.data.encoding.rendering import Renderer

ALLOWED = ("contradictions", "leak")


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command's options."""
    options = RaisingArgumentParser(
        "python -m dpo_lightning check-data",
        description=__doc__,
        epilog="--columns.prompt question reads the column `question` as `prompt`, and so on for other columns",
        allow_abbrev=False,
    )
    options.add_argument("files", nargs="+", metavar="FILE", help="files of rows, or hf://org/name")
    options.add_argument("--kind", choices=("pairs", "ranked", "unpaired", "sft"), help="default: by the columns")
    options.add_argument("--eval", action="append", metavar="FILE", help="held-out rows; may be repeated")
    options.add_argument("--model", help="model folder, adapter folder or hub id: count and show tokens")
    options.add_argument("--max_length", type=int, default=1024, help="tokens of a row, as --data.max_length of fit")
    options.add_argument("--overlong", choices=("error", "drop", "truncate"), default="error", help="as for fit")
    options.add_argument("--template", choices=("auto", "chat", "raw"), default="auto", help="as for fit")
    options.add_argument("--chat_template", metavar="FILE", help="as for fit")
    options.add_argument("--special_tokens", choices=("refuse", "neutralize"), default="refuse", help="as for fit")
    options.add_argument("--strict", action="store_true", help="treat warnings about rows as errors, as for fit")
    options.add_argument("--allow", action="append", choices=ALLOWED, default=[], help="as for fit")
    add_bad_rows_option(options)
    add_row_options(options)
    options.add_argument("--json", action="store_true", help="print one JSON object, with all places")
    return options


def main(argv: list[str]) -> int:
    """Print the report; return 65 if `fit` would refuse the rows, else 0."""
    rest, columns = take_columns(argv)
    args = make_parser().parse_args(rest)
    if args.max_length < 2:
        raise UserError(
            ExitCode.CONFIG, Problem(f"max_length={args.max_length} is less than 2", "--max_length"), "--max_length 2"
        )
    report = check(args, columns)
    if args.json:
        print(format_json(report))
        return report.exit_code

    from dpo_lightning.data.checks.text_report import Layout, format_report, use_colour

    layout = Layout(max(60, shutil.get_terminal_size((100, 24)).columns), use_colour())
    for line in format_report(report, layout):
        print(line)
    sys.stdout.flush()
    for error in report.all_errors:
        print(error, file=sys.stderr)
    return report.exit_code


def format_json(report: Report) -> str:
    """Format a report as JSON, in which control characters and text direction marks are escaped as well."""
    text = json.dumps(report.to_json(), ensure_ascii=False, indent=2)
    return CONTROL.sub(lambda found: json.dumps(found.group())[1:-1], text)


def check(args: argparse.Namespace, columns: dict[str, str]) -> Report:
    """Read the rows, encode them where a model is given, and analyse them."""
    from dpo_lightning.data.checks.reading import check_rows, recognize_kind
    from dpo_lightning.data.checks.report import build_report, compare_sets

    options = make_read_options(args, columns)
    kind = args.kind or recognize_kind(args.files, options)
    train = check_rows(kind, args.files, options, strict=args.strict, allow=args.allow)
    held_out = None
    if args.eval:
        held_out = check_rows(
            kind, args.eval, replace(options, columns_optional=True), strict=args.strict, allow=args.allow
        )
    renderer = make_renderer(args) if args.model else None
    report = build_report(args.files, kind, train, encode(args, kind, train, renderer))
    report.recognized = args.kind is None
    if held_out is not None:
        encoded = encode(args, kind, held_out, renderer)
        report.held_out = build_report(args.eval, kind, held_out, encoded)
        compare_sets(train, held_out, report.held_out, args.allow)
    return report


def encode(args: argparse.Namespace, kind: str, rows: CheckedRows, renderer: Renderer | None) -> EncodedSet | None:
    """Encode rows; None without a model."""
    from dpo_lightning.data.checks.tokens import encode_set

    if renderer is None:
        return None
    return encode_set(kind, rows.examples, renderer, args.max_length, args.overlong, rows.bad)


def make_renderer(args: argparse.Namespace) -> Renderer:
    """Load the tokenizer of the model.

    Raises:
        UserError: 66 if there is no such model, 67 if its tokenizer cannot be used.
    """
    from dpo_lightning.config.library_noise import silence_libraries
    from dpo_lightning.data.encoding.chat_templates import RunDate, choose_template
    from dpo_lightning.data.encoding.rendering import Renderer
    from dpo_lightning.models.causal_lm import CausalLM

    silence_libraries()
    spec = CausalLM(args.model)
    tokenizer = spec.tokenizer()
    choose_template(tokenizer, args.template, args.chat_template, "--")
    day = RunDate(None).choose_day(tokenizer.chat_template)
    return Renderer(tokenizer, args.template, args.special_tokens, spec.end_ids(), day)
