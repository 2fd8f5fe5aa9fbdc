"""Generation of answers from the same prompt ids that training uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpo_lightning.attention.flex import eager_layers
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.probe import list_generators


@dataclass(frozen=True)
class Sampling:
    """How tokens of an answer are sampled."""

    max_new_tokens: int = 128
    """Length limit of an answer."""

    temperature: float = 0.7
    """0 takes the most likely token each time."""

    top_p: float = 0.95
    """Sample from the smallest set of tokens whose probabilities sum to this."""

    seed: int = 0
    """The same seed gives the same answers."""

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "of at least 1"),
            ("temperature", self.temperature >= 0, "of at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and up to 1"),
        ):
            if not good:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem(f"{name}={getattr(self, name)} is out of range", name),
                    fix=f"--{name} {allowed}",
                )


def refuse_nan(ids: Tensor, scores: Tensor) -> Tensor:
    """Refuse logits that are NaN: a greedy choice among them would return a token nevertheless.

    Raises:
        UserError: that is so.
    """
    if scores.isnan().any():
        raise UserError(
            ExitCode.MODEL,
            "the model's scores of the next token are no numbers (nan)",
            fix="use weights that are finite, and for an adapter a finite lora_alpha in its adapter_config.json",
        )
    return scores


@torch.inference_mode()
def answer(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, stops: frozenset[int]
) -> list[str]:
    """Generate one answer per prompt.

    Args:
        model: a causal language model with `generate`; its train mode is restored.
        tokenizer: decodes the answers.
        prompts: token ids of each prompt, up to where the answer starts.
        sampling: how tokens are sampled; the global random state is restored.
        stops: token ids that end an answer.

    Returns:
        The answers as text, without control tokens.

    Raises:
        UserError: a prompt is longer than the model's positions, or the generation config is invalid.
    """
    width = max(len(prompt) for prompt in prompts)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    if width >= positions:
        raise UserError(
            ExitCode.DATA,
            f"a prompt has {width} tokens, the model {positions} positions",
            fix="shorten the prompt",
        )
    # Padded on the left, so that all answers start in the same column.
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    drawn = sampling.temperature > 0
    options: dict[str, Any] = (
        {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if drawn else {}
    )
    options |= {"logits_processor": [refuse_nan]}
    options |= {"num_beams": 1, "num_return_sequences": 1}  # override the folder's generation config
    training = model.training
    model.eval()
    try:
        # Layers compiled for training would be recompiled for every length of the key-value cache.
        with torch.random.fork_rng(list_generators(model)), eager_layers():
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
    except ValueError as error:  # transformers refuses options of the generation config
        what = f"generation failed: {' '.join(str(error).split()[:30])}"
        file = f"{model.config.name_or_path}/generation_config.json"
        raise UserError(ExitCode.MODEL, Problem(what, file), fix=f"correct the options in {file}") from None
    finally:
        model.train(training)
    return [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]
