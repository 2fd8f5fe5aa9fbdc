"""`infer`: answer an instruction with a trained model, an adapter or any model folder."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from dpo_lightning.commands.sampling_options import add_sampling_options, make_sampling
from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.data.encoding.chat_templates import parse_date
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.sampling import Sampling
from dpo_lightning.terminal import escape_controls


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command's options."""
    options = RaisingArgumentParser("python -m dpo_lightning infer", description=__doc__)
    options.add_argument("--model", required=True, help="model folder, adapter folder, .ckpt file of a run, or hub id")
    options.add_argument("--instruction", required=True, help="the text to answer; - reads standard input")
    options.add_argument("--system", help="a system message")
    add_sampling_options(options, 256, "the same seed gives the same answer")
    options.add_argument("--template", choices=("auto", "chat", "raw"), default="auto", help="as --data.template")
    options.add_argument("--template_date", help="the date that the chat template writes (2026-11-28), if not today's")
    return options


def main(argv: list[str]) -> int:
    """Load the model, print its answer while it is generated, and return the exit code."""
    args = make_parser().parse_args(argv)
    instruction = read_instruction(args.instruction)
    sampling = make_sampling(args)
    day = parse_date(args.template_date, "--template_date")

    import torch

    from dpo_lightning.config.library_noise import silence_libraries
    from dpo_lightning.data.encoding.rendering import Renderer
    from dpo_lightning.models.generation import generate_ids
    from dpo_lightning.models.streaming import AnswerStream
    from dpo_lightning.runs.checkpoint_model import open_model

    silence_libraries()
    source = open_model(args.model)
    spec = source.spec
    tokenizer = spec.tokenizer()
    renderer = Renderer(tokenizer, args.template, "neutralize", spec.end_ids(), day)
    system = ({"role": "system", "content": args.system},) if args.system else ()
    prompt = (*system, {"role": "user", "content": instruction}) if system else instruction
    ids = renderer.encode_prompt(prompt)
    sampling = limit_new_tokens(sampling, len(ids), spec.config().get_text_config())
    model = source.build().to("cuda" if torch.cuda.is_available() else "cpu")
    stream = AnswerStream(tokenizer, lambda text: print(escape_controls(text), end="", flush=True))
    (answer,) = generate_ids(model, [ids], sampling, renderer.stops, stream)
    print()
    if answer[-1] not in renderer.stops:
        what = f"note: the answer was cut after {len(answer)} tokens"
        longer = sampling.max_new_tokens == args.max_new_tokens
        print(f"{what}: --max_new_tokens allows more" if longer else what, file=sys.stderr)
    return 0


def read_instruction(instruction: str) -> str:
    """Return the instruction, read from standard input if it is `-`.

    Raises:
        UserError: it is empty or not UTF-8.
    """
    if instruction == "-":
        try:
            instruction = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise UserError(ExitCode.DATA, f"standard input is not UTF-8: {error.reason}", fix="write UTF-8") from None
    if not instruction.strip():
        raise UserError(ExitCode.CONFIG, "the instruction is empty", fix='--instruction "a question"')
    return instruction


def limit_new_tokens(sampling: Sampling, tokens: int, config: object) -> Sampling:
    """Return the sampling options with at most as many new tokens as the model has positions left.

    Raises:
        UserError: the prompt leaves no position.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or tokens + sampling.max_new_tokens <= positions:
        return sampling
    if tokens >= positions:
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"the instruction takes {tokens} tokens, the model has {positions} positions", "--instruction"),
            fix="shorten it",
        )
    print(f"note: the model's {positions} positions limit the answer to {positions - tokens} tokens", file=sys.stderr)
    return dataclasses.replace(sampling, max_new_tokens=positions - tokens)
