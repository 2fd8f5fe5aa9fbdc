"""One model out of a base and its adapter: merged in float32, tied weights kept tied, and compared on a probe."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpo_lightning.activity import activity
from dpo_lightning.errors import ExitCode, Problem, UserError, lacks_memory
from dpo_lightning.log import logger
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.folder_checks import call_loader
from dpo_lightning.models.fused_experts import experts_one_by_one
from dpo_lightning.models.lm_head import causal_lm
from dpo_lightning.models.probe import draw_ids, exact_mode
from dpo_lightning.models.transformers4 import add_older_names

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LARGEST_DIFFERENCE = {"float32": 1e-5, "bfloat16": 1e-1, "float16": 2e-2}
"""Largest difference of the written model, as a fraction of the largest absolute logit. Rounding changes a model of
135M parameters by 2e-2 in bfloat16 and 4e-3 in float16.
"""

ALWAYS_ALLOWED = 1e-4
"""Difference of a logit that float32 rounding can cause."""

EXACT = 2_000_000_000
"""Largest number of weights for which the probe is computed in float64."""

SEQUENCES, POSITIONS = 2, 32
"""Number and length of the probe's sequences, drawn from the whole vocabulary."""


class Agreement(NamedTuple):
    """The largest difference between the logits of two models on the probe, and the largest that is allowed."""

    difference: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.difference:.1e}, where {self.allowed:.1e} is allowed"

    @property
    def holds(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.difference <= self.allowed


def check_mergeable(builder: CausalLM) -> None:
    """Check by the configurations alone that a model can be merged and written.

    Raises:
        UserError: the base's weights are quantized, or the adapter is a learned prompt.
    """
    from peft import PeftConfig

    base, adapter = builder.base_path(), builder.adapter_folder()
    if getattr(builder.config(), "quantization_config", None) is not None:
        what = "the base is quantized, which would round the adapter away"
        fix = "use the folder as it is"
        if adapter is not None:
            fix = f"write the unquantized model into base_model_name_or_path of {adapter}/adapter_config.json"
        raise UserError(ExitCode.MODEL, Problem(what, base), fix=fix)
    if adapter is not None and call_loader(PeftConfig.from_pretrained, str(adapter)).is_prompt_learning:
        raise UserError(
            ExitCode.MODEL,
            Problem(
                "the adapter is a learned prompt, which cannot be merged into weights", f"{adapter}/adapter_config.json"
            ),
            fix="use the adapter folder as it is",
        )


@activity("merging the adapter")
def merge_adapter(policy: nn.Module) -> Any:
    """Merge the adapter into the weights of its base, in place.

    An adapter of a tied embedding or output head would change both, so tied weights are separated before. They are tied
    again if they are still equal; otherwise the model is written with both.

    Raises:
        UserError: peft cannot merge an adapter of this kind.
    """
    model = causal_lm(policy)
    tied = has_tied_embeddings(model)
    untie(policy)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*no longer tied.*")  # `retie` reports it
            model = policy.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    except (ValueError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise UserError(
            ExitCode.MODEL,
            Problem(f"peft cannot merge this adapter: {str(error).splitlines()[0]}"),
            fix="use the adapter folder as it is",
        ) from error
    if tied:
        retie(model)
    return model


def has_tied_embeddings(model: Any) -> bool:
    """Whether the output layer shares the weights of the input embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(model.config.get_text_config().tie_word_embeddings and head is not None and head is not embedding)


def untie(policy: nn.Module) -> None:
    """Give every module its own copy of shared weights."""
    seen: set[int] = set()
    for module in policy.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if id(value) in seen:
                setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))
            seen.add(id(value))


def retie(model: Any) -> None:
    """Tie embedding and output head if they are equal, and set the configuration accordingly."""
    equal = torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    # The text model's configuration is the model's own, or a part of it.
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = equal
    if equal:
        model.tie_weights()
    else:
        logger.info("note: the adapter changed one of two tied embeddings: they are written untied")


@torch.no_grad()
def probe_logits(model: Any) -> Float[Tensor, "row position vocab"]:
    """Compute logits of fixed tokens, for a model in float32.

    They are computed in float64 for models that are small enough: the weights are to be compared, and float32
    arithmetic alone changes logits of a 135M model by 1e-4 from one attention kernel to another.
    """
    config = model.config.get_text_config()
    length = min(POSITIONS, getattr(config, "max_position_embeddings", None) or POSITIONS)
    ids = draw_ids(config.vocab_size, SEQUENCES, length)
    if sum(value.numel() for value in model.parameters()) <= EXACT:
        model.double()
    try:
        with exact_mode(causal_lm(model)), experts_one_by_one(causal_lm(model)):
            logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    finally:
        model.float()
    return logits.double().cpu()


def compare_logits(
    logits: Float[Tensor, "row position vocab"], others: Float[Tensor, "row position vocab"], dtype: str
) -> Agreement:
    """Compare the logits of a model with those of the same model written in `dtype`."""
    allowed = max(ALWAYS_ALLOWED, LARGEST_DIFFERENCE[dtype] * float(logits.abs().max()))
    return Agreement(float((logits - others).abs().max()), allowed)


def check_shard_size(text: str) -> str:
    """Check a size such as `5GB`, and return it.

    Raises:
        UserError: it is not a size.
    """
    if not re.fullmatch(r"[1-9]\d*[KMG]B", text):
        raise UserError(
            ExitCode.CONFIG, Problem("not a size", "max_shard_size", text), fix="--max_shard_size 5GB, or 500MB"
        )
    return text


def cast_weights(model: nn.Module, dtype: str) -> None:
    """Convert a model's weights to another data type; buffers such as rotary frequencies keep theirs."""
    for value in model.parameters():
        value.data = value.data.to(DTYPES[dtype])


@activity("writing the model")
def write_model(model: Any, tokenizer: Any, folder: Path, dtype: str, size: str) -> None:
    """Write a whole model with tokenizer and chat template as safetensors; it is converted to `dtype` in place."""
    cast_weights(model, dtype)
    model.save_pretrained(folder, max_shard_size=size)
    tokenizer.save_pretrained(folder)
    add_older_names(folder, tokenizer)
