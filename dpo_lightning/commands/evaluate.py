"""`evaluate`: what a trained model prefers on held-out rows, how far it is from its reference, and how it answers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dpo_lightning.commands.row_options import (
    add_bad_rows_option,
    add_row_options,
    add_text_options,
    make_read_options,
    take_columns,
)
from dpo_lightning.commands.sampling_options import add_sampling_options, make_sampling
from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.log import logger

if TYPE_CHECKING:
    from dpo_lightning.evaluation.options import EvaluationOptions

COLLATORS = ("Padded", "SharedPrefix", "Packed", "PackedSharedPrefix")


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command's options."""
    options = RaisingArgumentParser("python -m dpo_lightning evaluate", description=__doc__, allow_abbrev=False)
    options.add_argument(
        "--model", "--model_path", required=True, help="model folder, adapter folder, .ckpt file of a run, or hub id"
    )
    options.add_argument(
        "--data", "--eval_data", required=True, nargs="+", metavar="FILE", help="held-out pairs, or prompts alone"
    )
    options.add_argument(
        "--output",
        "--output_path",
        required=True,
        metavar="NAME.json",
        help="an item per row, as a JSON list or as .jsonl; NAME.summary.json and NAME.html are written beside it",
    )
    options.add_argument("--reference", help="model to compare with, or none; default: the one in the model's record")
    options.add_argument("--beta", type=float, help="beta of the loss; default: that of the model's record, or 0.1")
    options.add_argument("--kind", choices=("auto", "pairs", "prompts"), default="auto", help="what the rows are")
    group = options.add_argument_group("generated answers")
    group.add_argument("--no_generate", dest="generate", action="store_false", help="generate no answers")
    group.add_argument("--generator", metavar="URL", help="take answers from a server with OpenAI's chat API")
    group.add_argument("--served_model", metavar="NAME", help="the model's name at the server; default: its first one")
    add_sampling_options(group, 128, "the same seed and prompt give the same answer")
    add_row_options(options)
    add_bad_rows_option(options)
    group = options.add_argument_group("rows, as for fit")
    group.add_argument("--limit_rows", type=int, metavar="N", help="use at most N rows, drawn at random by --seed")
    group.add_argument("--max_length", type=int, help="tokens of a row; default: what the model reads, up to 1024")
    group.add_argument("--overlong", choices=("error", "drop", "truncate"), default="error")
    add_text_options(options)
    group = options.add_argument_group("computation")
    group.add_argument("--batch_size", type=int, default=8, help="pairs that are scored at a time on a device")
    group.add_argument("--collator", choices=COLLATORS, help="layout; default: the one with the fewest tokens")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    group.add_argument("--precision", choices=("32-true", "bf16-mixed", "16-mixed"), help="default: by the hardware")
    group.add_argument("--accelerator", default="auto", help="auto, cpu, cuda or mps")
    group.add_argument("--devices", type=int, default=1, help="number of devices, with a share of the rows each")
    options.add_argument("--fresh", action="store_true", help="replace an output of other inputs")
    return options


def main(argv: list[str]) -> int:
    """Evaluate, print the summary, and return the exit code."""
    rest, columns = take_columns(argv)
    options = make_options(make_parser().parse_args(rest), columns)

    from dpo_lightning.config.library_noise import silence_libraries
    from dpo_lightning.evaluation.report import format_lines
    from dpo_lightning.evaluation.run import evaluate

    silence_libraries()
    result = evaluate(options)
    for line in format_lines(result):
        logger.info(line)
    logger.info(f"items: {result.path}; page: {result.path.with_suffix('.html')}")
    return 0


def make_options(args: argparse.Namespace, columns: dict[str, str]) -> EvaluationOptions:
    """Make the options of `evaluate` from those of the command line."""
    sampling = make_sampling(args)

    from dataclasses import fields, replace

    from dpo_lightning.data import collate
    from dpo_lightning.evaluation.options import EvaluationOptions

    read = replace(make_read_options(args, columns), limit_rows=args.limit_rows, seed=args.seed)
    collator = None if args.collator is None else getattr(collate, args.collator)()
    given: dict[str, Any] = vars(args) | {"read": read, "sampling": sampling, "collator": collator}
    return EvaluationOptions(**{each.name: given[each.name] for each in fields(EvaluationOptions)})
