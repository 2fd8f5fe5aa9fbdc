"""`infer`: answer an instruction with a trained model, an adapter, or any model folder."""

from __future__ import annotations

import argparse
import sys

from dpo_lightning.errors import ExitCode, UserError


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser("python -m dpo_lightning infer", description=__doc__)
    options.add_argument("--model", required=True, help="model folder, adapter folder or hub id")
    options.add_argument("--instruction", required=True, help="what to answer; - reads it from standard input")
    options.add_argument("--system", help="a system message")
    options.add_argument("--max_new_tokens", type=int, default=256)
    options.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token each time")
    options.add_argument("--top_p", type=float, default=0.95)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--template", choices=("auto", "chat", "raw"), default="auto", help="as --data.template")
    return options


def main(argv: list[str]) -> int:
    """Print the answer."""
    args = parser().parse_args(argv)
    instruction = sys.stdin.read() if args.instruction == "-" else args.instruction
    if not instruction.strip():
        raise UserError(ExitCode.CONFIG, "the instruction is empty", fix='--instruction "a question"')

    import torch

    from dpo_lightning.data.rendering import Renderer
    from dpo_lightning.generation import Sampling, answer
    from dpo_lightning.library_noise import quiet
    from dpo_lightning.models import CausalLM

    quiet()
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    builder = CausalLM(args.model)
    tokenizer = builder.tokenizer()
    renderer = Renderer(tokenizer, args.template, "neutralize", builder.end_ids())
    system = ({"role": "system", "content": args.system},) if args.system else ()
    prompt = (*system, {"role": "user", "content": instruction}) if system else instruction
    ids = renderer.prompt_ids(prompt)
    model = builder.build().to("cuda" if torch.cuda.is_available() else "cpu")
    print(answer(model, tokenizer, [ids], sampling, renderer.stops)[0])
    return 0
