"""Models of random weights, made from the shapes of known ones, with a tokenizer of numbered words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False,
    },
    "13B": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40, "head_dim": 128, "vocab_size": 32000, "tie_word_embeddings": False,
    },
    "toy": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Those of Llama 3.2 1B, Llama 3.1 8B and Llama 2 13B, and one for a trial."""

POSITIONS = 8192

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Qwen3": ("qwen3", {}),
    "Gemma 2 (softcap, window)": (
        "gemma2",
        {"sliding_window": 48, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0},
    ),
}
"""Models of toy size whose attention differs: transformers' name of the kind, and its options."""

END, UNKNOWN = "</s>", "<unk>"


def make_config(shape: str, kind: str = "llama", **options: Any) -> Any:
    """Make the configuration of a model with one of the `SHAPES`."""
    from transformers import CONFIG_MAPPING

    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    return CONFIG_MAPPING[kind](**SHAPES[shape], max_position_embeddings=POSITIONS, **ids, **options)


def make_model(config: Any, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """Make a model of random weights, the same at every call on the same device."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[0] if device == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def make_tokenizer(words: int) -> Any:
    """Make a tokenizer of numbered words, of which every text has exactly as many tokens as words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {END: 0, UNKNOWN: 1} | {f"w{number}": number for number in range(2, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=UNKNOWN)


def write_folder(folder: Path, config: Any, device: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model of random weights and its tokenizer in the Hugging Face layout."""
    model = make_model(config, device, dtype)
    model.save_pretrained(folder)
    make_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder


def write_pairs(path: Path, shapes: Sequence[tuple[int, int]], count: int, words: int) -> dict[tuple[int, int], range]:
    """Write pairs of random words as JSON lines, `count` of each shape.

    Args:
        path: the file.
        shapes: tokens of prompt and of each answer, the end token included.
        count: pairs of each shape.
        words: size of the tokenizer's vocabulary.

    Returns:
        The lines of each shape, counted from 1.
    """
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> str:
        return " ".join(f"w{id_}" for id_ in torch.randint(2, words, (length,), generator=draw).tolist())

    lines, places = [], {}
    for prompt, answer in shapes:
        places[prompt, answer] = range(len(lines) + 1, len(lines) + count + 1)
        for _ in range(count):
            row = {"prompt": text(prompt), "chosen": " " + text(answer - 1), "rejected": " " + text(answer - 1)}
            lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return places


def count_values(config: Any) -> int:
    """Count the values of all matrices of a Llama-shaped model."""
    ends = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return ends + config.num_hidden_layers * layer_values(config)


def layer_values(config: Any) -> int:
    """Count the values of a layer's matrices."""
    heads = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return config.hidden_size * (2 * heads + 2 * keys + 3 * config.intermediate_size)
