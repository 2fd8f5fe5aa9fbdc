"""Tiny models of many families, of random weights that make attention and logits matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support import tiny_models
from support.batch_layouts import answer, pair

VOCAB = 96
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
    "tie_word_embeddings": True,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128} | dict.fromkeys(
    ("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0
)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": False}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": ("Gemma3", {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt2": ("GPT2", GPT2),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "granite": ("Granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.5}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2Moe",
        {"num_experts": 4, "num_experts_per_tok": 2}
        | dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
}
"""Families that take every layout."""

EXPERTS = ("mixtral", "qwen2_moe", "olmoe")
"""Those of them that are mixtures of experts."""

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": ("Mamba", {"state_size": 8, "num_key_value_heads": 4}, "mamba has linear_attention layers"),
    "jamba": (
        "Jamba",
        {"use_mamba_kernels": False, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
        "jamba has linear_attention layers, which mix all tokens of a row",
    ),
    "gpt-oss": (
        "GptOss",
        {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "sliding_window": 4},
        "its attention has s_aux",
    ),
    "llama 4": (
        "Llama4",
        {"head_dim": 8, "attention_chunk_size": 4, "intermediate_size_mlp": 48, "num_local_experts": 2},
        "llama4_text has chunked_attention layers, which mix all tokens of a row",
    ),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}, "bloom fails with the package's attention"),
    "doge": ("Doge", {}, "doge fails with the package's attention: its attention has a mask of its own"),
    "falcon": ("Falcon", {"num_kv_heads": 2}, "falcon does not use transformers' attention functions"),
}
"""Models whose rows stay padded: a name in `make`, its options, and the reason that `install` gives."""

PAIRS = [
    pair([11, 12, 13, 14, 15, 16, 17], [21, 22, 23, 24, 0], [31, 32, 0]),
    pair([41], [42, 0], [43, 44, 45, 46, 47, 48, 49, 0]),
    pair([51, 52, 53, 54, 55], [61, 62, 63, 64, 65, 0], [61, 62, 63, 71, 0]),
    pair([51, 52], [53, 54], answer(53, 54, 55, 56, 0, scored=[True, True, False, False, True])),
]
"""Pairs that are longer than a window, of unequal lengths, with answers that begin alike."""

IDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 0}
"""Special tokens inside a small vocabulary."""

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48} | IDS
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "init_std": 0.2} | IDS
PHI = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4} | IDS
"""Sizes of the models that `build` makes."""

LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
LONGROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 48,
    "rope_parameters": LONG | {"original_max_position_embeddings": 48},
}
"""Positions that are others where a batch has a row of more than 48 tokens."""


def make(family: str, **changes: Any) -> Any:
    """A model of a family, in train mode and without dropout; the same at every call."""
    import transformers

    name, options = FAMILIES.get(family, (family, {}))
    kinds = [getattr(transformers, name + end, None) for end in ("Config", "TextConfig")]
    config = (kinds[1] or kinds[0])(**SIZES | options | changes)
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, name + head)(config).train()


def with_adapter(model: Any, **options: Any) -> Any:
    """The model with an adapter that changes what it says."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(task_type="CAUSAL_LM", r=2, **{"target_modules": "all-linear"} | options)
        policy = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=draw) * 0.2)
    return policy


def build(kind: str, vocab_size: int = VOCAB, **options: Any) -> Any:
    """A causal language model of a kind of transformers, of random weights, in train mode; the same at every call."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[kind](vocab_size=vocab_size, **{"initializer_range": 0.2} | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).train()


def save(path: Path, kind: str, **options: Any) -> Path:
    """A folder of such a model with a tokenizer."""
    return tiny_models.save(path, build(kind, tiny_models.VOCAB, **options), tiny_models.make_chat_tokenizer())
