"""Answers of a model to prompts, from the same prompt ids that training uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dpo_lightning.errors import ExitCode, Problem, UserError


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int = 128
    """Length limit of an answer."""

    temperature: float = 0.7
    """0 takes the likeliest token each time."""

    top_p: float = 0.95
    """Draw from the smallest set of tokens that has this probability."""

    seed: int = 0
    """The same seed gives the same answers."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, good in (
            ("max_new_tokens", self.max_new_tokens >= 1),
            ("temperature", self.temperature >= 0),
            ("top_p", 0 < self.top_p <= 1),
        ):
            if not good:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem(f"{name}={getattr(self, name)} is out of range", name),
                    fix=f"mend {name}",
                )


@torch.inference_mode()
def answer(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, stops: frozenset[int]
) -> list[str]:
    """Generate one answer per prompt.

    Args:
        model: a causal language model with `generate`; its train mode is restored.
        tokenizer: decodes the answers.
        prompts: ids of each prompt, up to where the answer begins.
        sampling: how to draw; the global random state is left as it was.
        stops: ids that end an answer.

    Returns:
        The answers as text, without control tokens.
    """
    width = max(len(prompt) for prompt in prompts)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    if width >= positions:
        raise UserError(
            ExitCode.DATA,
            f"a prompt takes {width} tokens, the model has {positions} positions",
            fix="shorten the prompt",
        )
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    drawn = sampling.temperature > 0
    options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if drawn else {}
    options |= {"num_beams": 1, "num_return_sequences": 1}  # whatever the folder's generation config has
    training = model.training
    model.eval()
    try:
        devices = [model.device] if model.device.type == "cuda" else []
        # Layers that are compiled for training would be compiled anew for every state of the cache.
        with torch.random.fork_rng(devices=devices), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(sampling.seed)
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=min(sampling.max_new_tokens, positions - width),
                do_sample=drawn,
                eos_token_id=sorted(stops),
                pad_token_id=min(stops),
                **options,
            )
    except ValueError as error:  # what a generation config may ask for, and transformers refuses
        what = f"the model does not generate: {' '.join(str(error).split()[:30])}"
        raise UserError(ExitCode.MODEL, what, fix="mend generation_config.json in the model's folder") from None
    finally:
        model.train(training)
    return [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]
