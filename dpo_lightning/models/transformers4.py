"""Older names of configuration keys, with which transformers 4 reads a folder as transformers 5 does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

CONFIG, TOKENIZER_CONFIG, TOKENIZER = "config.json", "tokenizer_config.json", "tokenizer.json"
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""The class that, in both versions, applies `tokenizer.json` and nothing else."""

IMPLIED = ("model_input_names", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
"""Settings whose defaults differ between the versions or between tokenizer classes."""

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
    """Add the older names to the configurations of a folder that transformers 5 wrote."""
    if (folder / CONFIG).exists():
        rewrite(folder / CONFIG, add_config_names)
    if (folder / TOKENIZER).exists():
        rewrite(folder / TOKENIZER_CONFIG, partial(set_tokenizer_names, tokenizer))


def supported_versions(model_type: str) -> str:
    """Return the versions of transformers that were tested with this type of model, for the model card."""
    return (
        "transformers 4.57 and 5" if model_type in TRIED else f"transformers 5 ({model_type} was not tried with 4.57)"
    )


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON object in its file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def add_config_names(config: dict[str, Any]) -> None:
    """Add the older names to a configuration and to those within it."""
    for part in list(iterate_configs(config)):
        part |= {name: value for name, value in older_names(part).items() if name not in part}


def iterate_configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Iterate over a configuration and the ones within it, such as the text model's."""
    yield config
    for name, value in config.items():
        if name.endswith("_config") and isinstance(value, dict):
            yield from iterate_configs(value)


def older_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values that transformers 4 expects under other names."""
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
        names["rope_scaling"] = older_scaling(rotation, config)
    return {name: value for name, value in names.items() if value is not None}


def older_scaling(rotation: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the scaling of rotary positions as transformers 4 expects it."""
    beside = {"rope_theta", "partial_rotary_factor"} | (config.keys() & {"original_max_position_embeddings"})
    found = {name: value for name, value in rotation.items() if name not in beside}
    if config.get("model_type") == "phi3":  # which takes no name but this one
        found["type"] = found.pop("rope_type")
    return found


def set_tokenizer_names(tokenizer: Any, config: dict[str, Any]) -> None:
    """Set a tokenizer class that both versions have, and the settings that a class would imply.

    Other classes add rules in transformers 4: those of Llama and Gemma put a BOS token before every text.
    """
    config["tokenizer_class"] = TOKENIZER_CLASS
    for name in IMPLIED:
        config[name] = getattr(tokenizer, name)
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
