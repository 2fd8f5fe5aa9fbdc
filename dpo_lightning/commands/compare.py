"""`compare`: which of several models answers the same prompts better, by a judge of your choice."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from dpo_lightning.commands.row_options import (
    add_bad_rows_option,
    add_row_options,
    add_text_options,
    make_read_options,
    take_columns,
)
from dpo_lightning.commands.sampling_options import add_sampling_options, make_sampling
from dpo_lightning.console import RaisingArgumentParser

if TYPE_CHECKING:
    from dpo_lightning.comparison.run import ComparisonOptions

JUDGES = ("implicit", "reward_model", "llm", "person")
ALLOWED = ("sampling", "template")


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command's options."""
    options = RaisingArgumentParser("python -m dpo_lightning compare", description=__doc__, allow_abbrev=False)
    options.add_argument("models", nargs="+", metavar="MODEL", help="result file of evaluate, or with --data a model")
    options.add_argument("--judge", required=True, choices=JUDGES)
    options.add_argument(
        "--output",
        required=True,
        metavar="NAME.json",
        help="the figures; NAME.html and, of people and language models, NAME.verdicts.jsonl are written beside it",
    )
    options.add_argument(
        "--allow", nargs="+", default=[], choices=ALLOWED, help="differences between the evaluations to accept"
    )
    group = options.add_argument_group("judge")
    group.add_argument("--judge_model", metavar="PATH", help="model folder; for llm also the URL of a chat server")
    group.add_argument("--judge_reference", metavar="PATH", help="for implicit; default: the one in the model's record")
    group.add_argument("--judge_prompt", metavar="FILE", help="for llm: a text with {prompt}, {answer_1}, {answer_2}")
    group.add_argument("--judge_name", metavar="NAME", help="the model's name at the server; default: its first model")
    group.add_argument("--judge_tokens", type=int, default=512, metavar="N", help="length limit of a reply of llm")
    group.add_argument("--requests", type=int, default=4, metavar="N", help="requests to the server at a time")
    group = options.add_argument_group("answers of models")
    group.add_argument("--data", nargs="+", default=[], metavar="FILE", help="prompts, or pairs whose prompts are used")
    group.add_argument("--limit_rows", type=int, metavar="N", help="use at most N rows, drawn at random by --seed")
    add_sampling_options(group, 128, "of the answers, and of the judge")
    add_row_options(options)
    add_bad_rows_option(options)
    add_text_options(options)
    group = options.add_argument_group("computation")
    group.add_argument(
        "--max_length", type=int, help="tokens of a row, for implicit; default: what it reads, up to 1024"
    )
    group.add_argument("--batch_size", type=int, default=8, help="answers that are scored at a time")
    group.add_argument("--precision", choices=("32-true", "bf16-mixed", "16-mixed"), help="default: by the hardware")
    group.add_argument("--accelerator", default="auto", help="auto, cpu, cuda or mps")
    options.add_argument("--fresh", action="store_true", help="replace answers of models that have other inputs")
    return options


def main(argv: list[str]) -> int:
    """Compare, print the figures, and return the exit code."""
    rest, columns = take_columns(argv)
    options = make_options(make_parser().parse_args(rest), columns)

    from dpo_lightning.comparison.run import compare
    from dpo_lightning.config.library_noise import silence_libraries

    silence_libraries()
    compare(options)
    return 0


def make_options(args: argparse.Namespace, columns: dict[str, str]) -> ComparisonOptions:
    """Make the options of `compare` from those of the command line."""
    sampling = make_sampling(args)

    from dpo_lightning.comparison.run import ComparisonOptions
    from dpo_lightning.evaluation.options import EvaluationOptions

    generation = EvaluationOptions(
        model="",
        data=args.data,
        output="answers.jsonl",
        reference="none",
        kind="prompts",
        sampling=sampling,
        batch_size=args.batch_size,
        max_length=args.max_length,
        template=args.template,
        chat_template=args.chat_template,
        template_date=args.template_date,
        special_tokens=args.special_tokens,
        precision=args.precision,
        accelerator=args.accelerator,
        read=replace(make_read_options(args, columns), limit_rows=args.limit_rows, seed=args.seed),
        fresh=args.fresh,
    )
    return ComparisonOptions(
        args.models,
        args.judge,
        args.output,
        generation,
        args.judge_model,
        args.judge_reference,
        args.judge_prompt,
        args.judge_name,
        args.judge_tokens,
        args.requests,
        args.allow,
    )
