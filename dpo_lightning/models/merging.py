"""One model out of a base and its adapter: merged in float32, tied weights kept tied, compared on a probe."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpo_lightning.log import logger
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.lm_head import causal_lm
from dpo_lightning.models.probe import undisturbed
from dpo_lightning.models.folder import loaded
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.transformers4 import add_older_names

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LARGEST_DIFFERENCE = {"float32": 1e-5, "bfloat16": 1e-1, "float16": 2e-2}
"""Part of the largest logit by which the written model may differ: rounding moves a model of 135M by 2e-2 and 4e-3."""

ALWAYS_ALLOWED = 1e-4
"""A difference of a logit that is rounding in float32 as well."""

EXACT = 2_000_000_000
"""Weights up to which the probe is computed in float64."""

SEQUENCES, POSITIONS = 2, 32
"""The probe: so many sequences of so many tokens, drawn from the whole vocabulary."""


class Agreement(NamedTuple):
    """How far the logits of two models are apart on the probe at most, and how far they may be."""

    difference: float
    allowed: float

    def __str__(self) -> str:
        """Both numbers."""
        return f"{self.difference:.1e}, where {self.allowed:.1e} is allowed"

    @property
    def holds(self) -> bool:
        """Whether they are near enough; what is no number is not."""
        return self.difference <= self.allowed


def check_mergeable(builder: CausalLM) -> None:
    """Look at the configurations, before any weight is loaded.

    Raises:
        UserError: the base's weights are quantized, or the adapter is none that weights can take up.
    """
    from peft import PeftConfig

    base, adapter = builder.base_path(), builder.adapter_folder()
    if getattr(builder.config(), "quantization_config", None) is not None:
        what = "the model's own weights are quantized: merging would round the adapter away"
        fix = "export without merging means nothing here: use the folder as it is"
        if adapter is not None:
            fix = f"write the unquantized model into base_model_name_or_path of {adapter}/adapter_config.json"
        raise UserError(ExitCode.MODEL, Problem(what, base), fix=fix)
    if adapter is not None and loaded(PeftConfig.from_pretrained, str(adapter)).is_prompt_learning:
        raise UserError(
            ExitCode.MODEL,
            Problem("the adapter is a learned prompt, which no weights can take up", f"{adapter}/adapter_config.json"),
            fix="use the adapter folder as it is",
        )


def merged(policy: nn.Module) -> Any:
    """The base with its adapter taken up into the weights, in place.

    An adapter of a tied embedding or of its head would change both: ties are cut before, and made anew where nothing is
    lost by it. Where the two differ now, the model is written with both.

    Raises:
        UserError: peft cannot merge an adapter of this kind.
    """
    model = causal_lm(policy)
    tied = tied_names(model)
    untie(policy)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*no longer tied.*")  # said below where it is so
            model = policy.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    except (ValueError, RuntimeError) as error:
        if "memory" in str(error).lower():
            raise
        raise UserError(
            ExitCode.MODEL,
            Problem(f"peft cannot merge this adapter: {str(error).splitlines()[0]}"),
            fix="use the adapter folder as it is",
        ) from error
    if tied:
        retie(model)
    return model


def tied_names(model: Any) -> bool:
    """Whether the output layer has the input embedding's own weights."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(model.config.get_text_config().tie_word_embeddings and head is not None and head is not embedding)


def untie(policy: nn.Module) -> None:
    """Give every module weights of its own."""
    seen: set[int] = set()
    for module in policy.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if id(value) in seen:
                setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))
            seen.add(id(value))


def retie(model: Any) -> None:
    """Tie embedding and head again where they are equal; otherwise the configuration says that they are two."""
    equal = torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = equal
    if equal:
        model.tie_weights()
    else:
        logger.info("note: the adapter changed one of two tied embeddings: input and output are written as two, untied")


@torch.no_grad()
def probe(model: Any) -> Float[Tensor, "row position vocab"]:
    """Logits of fixed tokens, of a model in float32.

    They are computed in float64 where that has room: what is asked is whether weights are the same, and the arithmetic
    of float32 alone moves a logit of a model of 135M by 1e-4 from one attention kernel to another.
    """
    config = model.config.get_text_config()
    length = min(POSITIONS, getattr(config, "max_position_embeddings", None) or POSITIONS)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (SEQUENCES, length), generator=draw)
    if sum(value.numel() for value in model.parameters()) <= EXACT:
        model.double()
    try:
        with undisturbed(causal_lm(model)):
            logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    finally:
        model.float()
    return logits.double().cpu()


def agreement(
    logits: Float[Tensor, "row position vocab"], others: Float[Tensor, "row position vocab"], dtype: str
) -> Agreement:
    """Compare the logits of a model with those of the same model, written in `dtype`."""
    allowed = max(ALWAYS_ALLOWED, LARGEST_DIFFERENCE[dtype] * float(logits.abs().max()))
    return Agreement(float((logits - others).abs().max()), allowed)


def shard_size(text: str) -> str:
    """A size such as `5GB`.

    Raises:
        UserError: it is none.
    """
    if not re.fullmatch(r"[1-9]\d*[KMG]B", text):
        raise UserError(
            ExitCode.CONFIG, Problem("this is no size", "max_shard_size", text), fix="--max_shard_size 5GB, or 500MB"
        )
    return text


def cast(model: nn.Module, dtype: str) -> None:
    """Turn a model's weights into another precision; what it computes of its own, such as rotations, is not rounded."""
    for value in model.parameters():
        value.data = value.data.to(DTYPES[dtype])


def write(model: Any, tokenizer: Any, folder: Path, dtype: str, size: str) -> None:
    """Write a whole model with its tokenizer and template, its weights as safetensors of `dtype`, which it keeps."""
    cast(model, dtype)
    model.save_pretrained(folder, max_shard_size=size)
    tokenizer.save_pretrained(folder)
    add_older_names(folder, tokenizer)
