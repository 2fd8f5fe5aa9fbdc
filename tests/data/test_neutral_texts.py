"""Neutralized control tokens: the ids decode to the text, whatever a tokenizer adds to the beginning of a text."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny_models import SENTENCES, turns
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dpo_lightning.data.encoding.neutral_texts import MARK
from dpo_lightning.data.encoding.rendering import Renderer

SPECIAL = ["<unk>", "<s>", "</s>", "[INST]"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TEXTS = (
    "Explain <s> and </s> in HTML.",
    "What is <unk>?",
    "Use <s>text</s> for struck text.",
    "<s>",
    "</s> at the beginning",
    "at the end <s>",
    "<s><s> </s>",
    " <s> 안녕 </s>, <unk>",
    "line\n</s>\nline  <s>  two",
)
KINDS = ("prepend", "always", "first", "never", "byte-level", "byte-level prefix", "unigram", "no backend")


def make_tokenizer(kind: str) -> Any:
    """A tokenizer that adds a space in front of texts in one of the ways that occur."""
    model: Any = models.Unigram() if kind == "unigram" else models.BPE(unk_token="<unk>", byte_fallback=False)
    made = Tokenizer(model)
    alphabet = ["▁", *"<>/s[]()unkINST?.,"]
    if kind == "prepend":  # Llama 2, Mistral
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(steps)
    elif kind.startswith("byte-level"):
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind != "byte-level")
        made.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        scheme = kind if kind in ("always", "first", "never") else "always"
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    kinds = {"vocab_size": 600, "special_tokens": SPECIAL, "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **kinds) if kind == "unigram" else trainers.BpeTrainer(**kinds)
    made.train_from_iterator([*SENTENCES, *TEXTS, "(s) and (/s), (unk)"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )
    if kind == "no backend":
        tokenizer.__class__ = type("Own", (PreTrainedTokenizerFast,), {"__call__": PreTrainedTokenizerFast.__call__})
    return tokenizer


def ordinary(text: str) -> str:
    """The text with words of the same kind in place of control tokens."""
    for control in SPECIAL[:3]:
        text = text.replace(control, f"({control[1:-1]})")
    return text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_decode_to_the_text(kind: str, text: str) -> None:
    """As those of ordinary words do: a prompt, and within the turns of a chat."""
    tokenizer = make_tokenizer(kind)
    for template in ("raw", "chat"):
        renderer = Renderer(tokenizer, template, "neutralize")
        neutral, plain = (renderer.encode_prompt(each) for each in (text, ordinary(text)))
        assert ordinary(tokenizer.decode(neutral)) == ordinary(tokenizer.decode(plain))
        for control in range(3):  # no more than the template writes
            assert neutral.count(control) == plain.count(control)
    raw = Renderer(tokenizer, "raw", "neutralize")
    if tokenizer.decode(raw.encode_prompt(ordinary(text))) == ordinary(text):
        assert tokenizer.decode(raw.encode_prompt(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_have_the_ids_of_a_call(kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    renderer = Renderer(tokenizer, "raw", "neutralize")
    before = renderer.encode("Hello, how are you?")
    renderer.encode_prompt(TEXTS[0])
    assert renderer.encode("Hello, how are you?") == before
    assert before == tokenizer("Hello, how are you?", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_can_write_what_stands_for_a_control_token(kind: str) -> None:
    """The characters by which the copy of the tokenizer marks control tokens are as any others in a text."""
    tokenizer = make_tokenizer(kind)
    renderer = Renderer(tokenizer, "raw", "neutralize")
    for number in range(len(SPECIAL)):
        ids = renderer.encode_prompt(f"</s> {MARK}{chr(0xF0000 + number)}{MARK} x")
        assert not {1, 2, 3} & {*ids}


def test_answers_after_neutralized_prompts() -> None:
    tokenizer = make_tokenizer("prepend")
    renderer = Renderer(tokenizer, "chat", "neutralize")
    said = turns(("user", TEXTS[0]), ("assistant", TEXTS[2]))
    ids = renderer.encode_chat(said, (), None, add_generation_prompt=False)
    assert ids.count(2) == 1
    assert "Use <s>text</s> for struck text." in tokenizer.decode(ids)
