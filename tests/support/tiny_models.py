"""Tiny models of random weights and a tiny byte-level BPE tokenizer, all made in milliseconds."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<pad>")
"""The control tokens, ids 0 to 4."""
END_OF_TEXT, START, END, BEGIN, PAD = CONTROL

VOCAB = 480
"""Rows of the models' embeddings; the tokenizer uses almost all of them."""

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's template, with a shorter system message."""

SENTENCES = (
    "The answer is 46. It costs $46, or 46 dollars, says the assistant.",
    "Hello, how are you today? I am fine, thank you.",
    "An island is land in the water; the islands are far away.",
    "What is the capital of France? Paris is the capital of France.",
    "안녕하세요, 오늘 날씨가 좋습니다. 대한민국의 수도는 서울입니다.",
    "def answer(x):\n    return x + 46\n\nprint(answer(1))\n",
    "system\nuser\nassistant\nYou are a helpful assistant\n<think>\n\n</think>\n\n",
)


@functools.cache
def _bpe() -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence([])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES * 3, trainer)
    return bpe.to_str()


def make_tokenizer(
    *,
    template: str | None = None,
    eos: str = END_OF_TEXT,
    bos: str | None = None,
    pad: str | None = PAD,
    prepends_bos: bool = False,
) -> Any:
    """A byte-level BPE tokenizer that merges " 46" and "island" into fewer tokens than their parts have.

    Args:
        template: a chat template, e.g. `CHATML`.
        eos: the token that ends an answer; `END` for chats, as SmolLM2 has it.
        bos: the BOS token; None where there is none, as Qwen has it.
        pad: the padding token; the same as `eos` is common, and so is None.
        prepends_bos: put the BOS before every text, as Llama's tokenizer does.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer.from_str(_bpe())
    if prepends_bos:
        bos = bos or BEGIN
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, CONTROL.index(bos))]
        )
    named = {"eos_token": eos, "bos_token": bos, "pad_token": pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=256, **{name: token for name, token in named.items() if token}
    )
    tokenizer.chat_template = template
    return tokenizer


def make_chat_tokenizer(**options: Any) -> Any:
    """A tokenizer with SmolLM2's template and roles: `<|im_end|>` ends an answer and pads."""
    return make_tokenizer(**{"template": CHATML, "eos": END, "bos": START, "pad": END} | options)


def make_llama(vocab_size: int = VOCAB, *, seed: int = 0, **options: Any) -> Any:
    """A Llama-type model (rotary positions): 2 layers, hidden size 16, 2 heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    return _seeded(LlamaForCausalLM, LlamaConfig(**config | options), seed)


def make_gpt2(vocab_size: int = VOCAB, *, dropout: float = 0.0, seed: int = 0, **options: Any) -> Any:
    """A GPT-2-type model (absolute positions): 2 layers, hidden size 16, 2 heads."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {
        "vocab_size": vocab_size,
        "n_positions": 256,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.2,
        "attn_pdrop": dropout,
        "embd_pdrop": dropout,
        "resid_pdrop": dropout,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    return _seeded(GPT2LMHeadModel, GPT2Config(**config | options), seed)


def turns(*said: tuple[str, str]) -> tuple[dict[str, str], ...]:
    """Chat messages from `(role, content)`."""
    return tuple({"role": role, "content": content} for role, content in said)


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Write a model folder in the Hugging Face layout."""
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = model.config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, which is made where it is not there."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def _seeded(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()
