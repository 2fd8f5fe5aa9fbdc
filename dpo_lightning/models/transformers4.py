"""A model folder that transformers 4 reads as transformers 5 does: the older names beside the newer ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

CONFIG, TOKENIZER_CONFIG, TOKENIZER = "config.json", "tokenizer_config.json", "tokenizer.json"
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""In both versions the tokenizer that does what `tokenizer.json` says, and no more."""

IMPLIED = ("model_input_names", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
"""Settings that differ between the versions, or between a model's own tokenizer class and that one."""

TRIED = (
    "cohere",
    "cohere2",
    "deepseek_v3",
    "exaone4",
    "falcon_h1",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "granitemoe",
    "helium",
    "lfm2",
    "llama",
    "mamba",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
)
"""Model types whose logits the tests compare between transformers 4.57 and 5."""


def add_older_names(folder: Path, tokenizer: Any) -> None:
    """Complete the configurations of a model or adapter folder that transformers 5 wrote, with its tokenizer."""
    if (folder / CONFIG).exists():
        rewrite(folder / CONFIG, config_names)
    if (folder / TOKENIZER).exists():
        rewrite(folder / TOKENIZER_CONFIG, partial(tokenizer_names, tokenizer))


def read_by(model_type: str) -> str:
    """The versions of transformers that read a folder of this kind of model alike, as far as it was tried."""
    return (
        "transformers 4.57 and 5" if model_type in TRIED else f"transformers 5 ({model_type} was not tried with 4.57)"
    )


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON object in place."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def config_names(config: dict[str, Any]) -> None:
    """Add to a model's configuration, and to those within it, what transformers 4 looks for."""
    for part in list(parts(config)):
        part |= {name: value for name, value in older_names(part).items() if name not in part}


def parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A configuration and its parts, such as the text model's."""
    yield config
    for name, value in config.items():
        if name.endswith("_config") and isinstance(value, dict):
            yield from parts(value)


def older_names(config: dict[str, Any]) -> dict[str, Any]:
    """Names that transformers 4 has for what stands in a configuration under others."""
    names = {}
    if config.get("dtype"):
        names["torch_dtype"] = config["dtype"]
    kind, rotation = config.get("model_type", ""), config.get("rope_parameters") or {}
    if kind == "qwen3_moe":
        names["num_experts"] = config.get("num_local_experts")
    if "full_attention" in rotation:
        if kind.startswith("gemma3"):
            names["rope_local_base_freq"] = (rotation.get("sliding_attention") or {}).get("rope_theta")
        rotation = rotation["full_attention"] or {}
    base, share = ("rotary_emb_base", "rotary_pct") if kind == "gpt_neox" else ("rope_theta", "partial_rotary_factor")
    names |= {base: rotation.get("rope_theta"), share: rotation.get("partial_rotary_factor")}
    if rotation.get("rope_type", "default") != "default":
        names["rope_scaling"] = scaling(rotation, config)
    return {name: value for name, value in names.items() if value is not None}


def scaling(rotation: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions beyond the trained ones, in transformers 4's words: without what stands beside them there."""
    beside = {"rope_theta", "partial_rotary_factor"} | (config.keys() & {"original_max_position_embeddings"})
    found = {name: value for name, value in rotation.items() if name not in beside}
    if config.get("model_type") == "phi3":  # which takes no name but this one
        found["type"] = found.pop("rope_type")
    return found


def tokenizer_names(tokenizer: Any, config: dict[str, Any]) -> None:
    """Name a tokenizer that both versions have, and settings of its own that a class would imply.

    Other classes make rules of their own in transformers 4: Llama's and Gemma's put a BOS before every text.
    """
    config["tokenizer_class"] = TOKENIZER_CLASS
    for name in IMPLIED:
        config[name] = getattr(tokenizer, name)
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
