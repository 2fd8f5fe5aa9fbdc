"""Generation of answers from the same prompt ids that training uses, with random numbers of its own for each prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dpo_lightning.attention.flex import eager_layers
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.sampling import Sampling
from dpo_lightning.stopping import raise_if_requested

SMALLEST = torch.finfo(torch.float32).tiny
"""The least number whose logarithm is finite."""


class SampleByPrompt:
    """A logits processor after which the largest score is a sample, drawn with a generator for each prompt.

    Adding Gumbel noise to log-probabilities and taking the largest is the same as sampling from them (Gumbel 1954;
    Maddison et al. 2014, arXiv:1411.0030). The noise of a prompt does not depend on the other prompts of the batch.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        """Seed a generator for each prompt."""
        from transformers import TopPLogitsWarper

        self._sampling = sampling
        self._filter = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None
        self._generators = [
            torch.Generator(device).manual_seed(sampling.prompt_seed(prompt))
            for prompt in prompts
            if sampling.temperature > 0
        ]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `[prompt, vocabulary]` with noise; unchanged if the temperature is 0.

        Raises:
            Stopped: a signal has come, or a time limit has passed.
            UserError: a score is NaN; the largest of them would be a token nevertheless.
        """
        raise_if_requested()
        if scores.isnan().any():
            raise UserError(
                ExitCode.MODEL,
                "the model's scores of the next token are no numbers (nan)",
                fix="use weights that are finite, and for an adapter a finite lora_alpha in its adapter_config.json",
            )
        if not self._generators:
            return scores
        scores = scores.float() / self._sampling.temperature
        if self._filter is not None:
            scores = self._filter(ids, scores)
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min(SMALLEST).log()


def answer(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, stops: frozenset[int]
) -> list[str]:
    """Generate one answer per prompt, as text without control tokens; the arguments are those of `generate_ids`.

    Args:
        model: a causal language model.
        tokenizer: decodes the answers.
        prompts: token ids of each prompt.
        sampling: how tokens are sampled.
        stops: token ids that end an answer.

    Raises:
        UserError: as in `generate_ids`.
    """
    return decode_answers(tokenizer, generate_ids(model, prompts, sampling, stops))


def decode_answers(tokenizer: Any, answers: Sequence[Sequence[int]]) -> list[str]:
    """Return answers as text, without control tokens and outer white space."""
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


@torch.inference_mode()
def generate_ids(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, stops: frozenset[int], streamer: Any = None
) -> list[list[int]]:
    """Generate one answer per prompt.

    Args:
        model: a causal language model with `generate`; its train mode is restored.
        prompts: token ids of each prompt, up to where the answer starts.
        sampling: how tokens are sampled.
        stops: token ids that end an answer.
        streamer: of transformers, which gets the tokens of a single prompt's answer one by one.

    Returns:
        The token ids of each answer, with the one that ended it; without one where `max_new_tokens` was reached.

    Raises:
        UserError: a prompt is longer than the model's positions, or the generation config is invalid.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    longest = max(len(prompt) for prompt in prompts)
    if longest >= positions:
        raise UserError(
            ExitCode.DATA,
            f"a prompt has {longest} tokens, the model {positions} positions",
            fix="shorten the prompt",
        )
    # An answer is as long as its own prompt allows, so prompts of other limits are not generated with it.
    limits = [min(sampling.max_new_tokens, positions - len(prompt)) for prompt in prompts]
    answers: dict[int, list[int]] = {}
    training = model.training
    model.eval()
    try:
        for limit in set(limits):
            rows = [row for row, own in enumerate(limits) if own == limit]
            limited = replace(sampling, max_new_tokens=int(limit))
            answers |= zip(
                rows, _generate(model, [prompts[row] for row in rows], limited, stops, streamer), strict=True
            )
    finally:
        model.train(training)
    return [answers[row] for row in range(len(prompts))]


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, stops: frozenset[int], streamer: Any
) -> list[list[int]]:
    """Generate answers of up to `max_new_tokens` tokens, for which the model has the positions."""
    width = max(len(prompt) for prompt in prompts)
    # Padded on the left, so that all answers start in the same column.
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    try:
        # Layers compiled for training would be recompiled for every length of the key-value cache.
        with eager_layers():
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=sampling.max_new_tokens,
                logits_processor=[SampleByPrompt(sampling, prompts, model.device)],
                do_sample=False,  # the processor samples
                num_beams=1,  # this and what follows override the folder's generation config
                num_return_sequences=1,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=sorted(stops),
                pad_token_id=min(stops),
                streamer=streamer,
            )
    except (ValueError, TypeError, AttributeError, IndexError) as error:  # of options of the generation config
        what = f"generation failed: {' '.join(str(error).split()[:30])}"
        file = f"{model.config.name_or_path}/generation_config.json"
        raise UserError(ExitCode.MODEL, Problem(what, file), fix=f"correct the options in {file}") from None
    return [cut_at_stop(row, stops) for row in out[:, width:].tolist()]


def cut_at_stop(ids: Sequence[int], stops: frozenset[int]) -> list[int]:
    """Return the ids up to the first that ends an answer; what follows it is padding."""
    end = next((place for place, token in enumerate(ids, 1) if token in stops), len(ids))
    return list(ids[:end])
