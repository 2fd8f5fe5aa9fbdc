"""Tiny reward models of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support import tiny_models

ENCODER = {
    "vocab_size": tiny_models.VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "num_labels": 1,
    "initializer_range": 0.2,
}
"""The size of an encoder."""


def make_classifier(outputs: int = 1, pad: int | None = None) -> Any:
    """A Llama-type decoder."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    small = tiny_models.make_llama().config.to_dict()
    config = LlamaConfig(**small | {"num_labels": outputs, "pad_token_id": pad, "architectures": None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForSequenceClassification(config).eval()


def make_encoder() -> Any:
    """A BERT-type encoder."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(**ENCODER)).eval()


def make_roberta() -> Any:
    """A RoBERTa-type encoder: one segment, and positions that begin after the padding id."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(**ENCODER, pad_token_id=4, type_vocab_size=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RobertaForSequenceClassification(config).eval()


def make_pair_tokenizer() -> Any:
    """A tokenizer that returns segment ids, as those of BERT and ELECTRA do."""
    tokenizer = tiny_models.make_tokenizer()
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, model_input_names=names, pad_token=tokenizer.pad_token
    )


def save(folder: Path, model: Any, tokenizer: Any = None) -> str:
    """Write a model folder; by default with the chat tokenizer."""
    model.save_pretrained(folder)
    (tokenizer or tiny_models.make_chat_tokenizer()).save_pretrained(folder)
    return str(folder)
