"""The memo of words gives the ids that the tokenizer gives for whole texts, and is used only where that is certain."""

import itertools
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_models
from support.tiny_models import CONTROL, SENTENCES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dpo_lightning.data.encoding import word_memo
from dpo_lightning.data.encoding.text_encoder import TextEncoder
from dpo_lightning.data.encoding.word_memo import WORD_BREAK, encodes_words, split_at_breaks
from dpo_lightning.errors import UserError

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's pattern, as its tokenizer.json has it."""
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""GPT-4o's pattern, as gpt-oss has it."""
PATTERNS = {
    "Llama 3": LLAMA,
    "Qwen 2": LLAMA.replace("{1,3}", ""),
    "Qwen 3.5": LLAMA.replace("{1,3}", "").replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}"),
    "cl100k": LLAMA.replace(r"?\p{L}", r"?+\p{L}")
    .replace("{1,3}", "{1,3}+")
    .replace("]+[", "]++[")
    .replace("n]+|", "n]|"),
    "o200k": O200K,
}
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern, **options):
    """A pre-tokenizer that splits by a pattern, then encodes as bytes."""
    kind = {"behavior": "isolated", **options}
    parts = [pre_tokenizers.Split(Regex(pattern), **kind), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def train(pre_tokenizer, *, normalizer=None, post_processor=None, model=None, added=()):
    """A tiny BPE tokenizer."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    texts = [
        *SENTENCES * 3,
        "it's   I'LL  don't can't 2024 1,000.5\t\n\n   x  ==  y //\n\r\n",
        "e\u0301 caf\u00e9 Caf\u00c9 \u00a0 \u2028",
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=560, special_tokens=list(CONTROL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts * 3, trainer)
    made.add_tokens(list(added))
    if normalizer is not None:
        made.normalizer = normalizer
    if post_processor is not None:
        made.post_processor = post_processor
    if model is not None:
        made.model = model
    return made


def digits(individual):
    """SmolLM's pre-tokenizer, if each digit is alone."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual), GPT2])


BOS = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
KNOWN = {
    "GPT-2": {"pre_tokenizer": GPT2},
    "SmolLM": {"pre_tokenizer": digits(True), "post_processor": processors.ByteLevel()},
    "digits together": {"pre_tokenizer": digits(False)},
    "NFC": {"pre_tokenizer": split(PATTERNS["Qwen 2"]), "normalizer": normalizers.NFC()},
    "BOS": {"pre_tokenizer": split(LLAMA), "post_processor": processors.Sequence([processors.ByteLevel(), BOS])},
    "white space as tokens": {
        "pre_tokenizer": GPT2,
        "normalizer": normalizers.NFC(),
        "added": [AddedToken(" " * n, normalized=True) for n in (1, 2, 3, 8)] + [AddedToken("\n\n", normalized=False)],
    },
    **{name: {"pre_tokenizer": split(pattern)} for name, pattern in PATTERNS.items()},
}
PIECES = st.one_of(
    st.sampled_from(
        ["a", "The", "answer", "it's", "I'LL", "don't", "'", "'S", "x=1", "2024", "1,000.5", "7", "서울", "안녕"]
    ),
    st.sampled_from(
        ["가각".encode().decode(), "\u1100\u1161", "e\u0301", "\u0301", "\u0338", "\u212b", "ſ", "ß", "Ⅷ", "٣"]
    ),
    st.sampled_from(
        ["👩‍👩‍👧", "🙂", "!", "...", "//", "#", "- ", "(", "<", "<|im_end|>", "<|im_start|>user\n", "<|im_", "end|>"]
    ),
    st.sampled_from(
        [" ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\r\n", "\t", "\t ", "\u00a0", "\u2003", "\u2028", "\u3000"]
    ),
    st.sampled_from(["\x0b", "\x1c", "\x1f", "\x85", "\u180e", "\u200b", "\ufeff", "\x00"]),
    st.text(max_size=3),
)
TEXTS = st.lists(st.lists(st.one_of(PIECES, st.just(" ")), max_size=14).map("".join), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=KNOWN)
def known(request):
    """A tokenizer with which words are remembered, and its encoder, which is the same for all examples."""
    made = PreTrainedTokenizerFast(tokenizer_object=train(**KNOWN[request.param]), eos_token=CONTROL[0])
    return made, TextEncoder(made)


def encode_whole(tokenizer, texts):
    """What a call of the tokenizer gives for each text."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def is_remembered(tokenizer):
    return encodes_words(tokenizer.backend_tokenizer)


@given(texts=TEXTS)
def test_ids_of_words_are_those_of_the_whole_text(known, texts):
    tokenizer, encoder = known
    assert is_remembered(tokenizer)
    assert encoder.encode(texts) == encode_whole(tokenizer, texts)


@given(texts=TEXTS)
def test_ids_of_words_of_a_real_model(real_tokenizer, texts):
    assert is_remembered(real_tokenizer)
    assert TextEncoder(real_tokenizer).encode(texts) == encode_whole(real_tokenizer, texts)


@pytest.fixture(scope="module")
def real_tokenizer(request):
    """SmolLM2's tokenizer."""
    from transformers import AutoTokenizer

    folder = request.config.rootpath / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.skip("the model is not here: `make test` fetches it (python -m dpo_lightning fetch-model)")
    return AutoTokenizer.from_pretrained(folder)


def test_white_space_of_the_patterns_is_white_space_in_python():
    every = "".join(chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000)
    found = [text for text, _ in pre_tokenizers.Split(Regex(r"\s"), "removed", invert=True).pre_tokenize_str(every)]
    assert {" ", "\n", "\u3000"} <= set(found)
    assert all(text.isspace() for text in found)


def test_texts_are_split_at_the_same_places_in_either_way():
    texts = ["".join(letters) for n in range(6) for letters in itertools.product(" \n\x1fa\u2003", repeat=n)]
    assert [split_at_breaks(text) for text in texts] == [WORD_BREAK.split(text) for text in texts]
    assert split_at_breaks(" a  b\n c d") == [" a", " b\n c", "d"]


OTHER = {
    "a space is added": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
    "another pattern": {"pre_tokenizer": split(LLAMA.replace(r"\p{N}{1,3}", r"\p{N} \p{N}"))},
    "a pattern that looks back": {"pre_tokenizer": split(r"(?<=a )b|" + LLAMA)},
    "an empty alternative": {"pre_tokenizer": split(LLAMA + "|")},
    "no white space by itself": {"pre_tokenizer": split(LLAMA.removesuffix(r"|\s+"))},
    "matches are removed": {"pre_tokenizer": split(LLAMA, behavior="removed")},
    "matches are merged": {"pre_tokenizer": split(LLAMA, behavior="merged_with_previous")},
    "inverted": {"pre_tokenizer": split(LLAMA, invert=True)},
    "two patterns": {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"), split(LLAMA)])},
    "punctuation before": {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), GPT2])},
    "spaces as a letter": {"pre_tokenizer": pre_tokenizers.Metaspace()},
    "compatibility forms": {"pre_tokenizer": GPT2, "normalizer": normalizers.NFKC()},
    "lower case, too": {
        "pre_tokenizer": GPT2,
        "normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
    },
    "written twice": {
        "pre_tokenizer": GPT2,
        "post_processor": processors.TemplateProcessing(single="$A $A", special_tokens=[]),
    },
    "a token with a space": {"pre_tokenizer": GPT2, "added": ["the answer"]},
    "a token before a space": {"pre_tokenizer": GPT2, "added": ["answer "]},
    "a token that takes spaces after it": {"pre_tokenizer": GPT2, "added": [AddedToken("<x>", rstrip=True)]},
    "a token that takes spaces before it": {"pre_tokenizer": GPT2, "added": [AddedToken("<x>", lstrip=True)]},
    "a token that is a word": {"pre_tokenizer": GPT2, "added": [AddedToken(" a", single_word=True)]},
    "random merges": {"pre_tokenizer": GPT2, "model": models.BPE(dropout=0.5)},
    "whole words": {"pre_tokenizer": GPT2, "model": models.WordLevel({"a": 0}, unk_token="a")},
}


@pytest.mark.parametrize("name", OTHER)
def test_other_tokenizers_encode_whole_texts(name):
    made = train(**OTHER[name])
    assert not encodes_words(made)
    if name == "random merges":
        return
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    texts = ["the answer is 4 6  <x>  b", "", "a b a b", *SENTENCES]
    assert TextEncoder(tokenizer).encode(texts) == encode_whole(tokenizer, texts)


def test_options_of_an_earlier_call_have_no_effect():
    tokenizer = tiny_models.make_tokenizer()
    encoder, texts = TextEncoder(tokenizer), [*SENTENCES, "<|im_end|> Hello"]
    whole = encode_whole(tokenizer, texts)
    tokenizer(list(SENTENCES), padding="max_length", truncation=True, max_length=3, split_special_tokens=True)
    assert encoder.encode(texts) == whole


def test_a_tokenizer_that_splits_special_tokens_does_so():
    tokenizer = tiny_models.make_tokenizer()
    encoder, whole = TextEncoder(tokenizer), encode_whole(tokenizer, ["<|im_end|> Hello"])
    tokenizer.split_special_tokens = True
    assert encoder.encode(["<|im_end|> Hello"]) == encode_whole(tokenizer, ["<|im_end|> Hello"]) != whole


class Reversed(PreTrainedTokenizerFast):
    """A tokenizer with code of its own."""

    def _encode_plus(self, text, **options):
        return super()._encode_plus(text[::-1], **options)


def test_a_tokenizer_with_code_of_its_own_is_called():
    tokenizer = Reversed(tokenizer_object=tiny_models.make_tokenizer().backend_tokenizer)
    assert TextEncoder(tokenizer).encode(["Hello you"]) == encode_whole(tokenizer, ["Hello you"])


def test_few_words_are_remembered(monkeypatch):
    monkeypatch.setattr(word_memo, "MOST_WORDS", 5)
    tokenizer = tiny_models.make_tokenizer()
    encoder = TextEncoder(tokenizer)
    texts = ["one two three four " + "x" * 41, "five six", "one seven eight"]
    for text in texts:
        assert encoder.encode([text]) == encode_whole(tokenizer, [text])
        assert len(encoder._memo._further) <= 5
    assert "x" * 41 not in encoder._memo._further


def test_a_text_at_which_the_tokenizer_panics_is_named():
    slow = split(r"([xyz][xyz]?)+[0-8]{3}")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train(slow))
    first, second = TextEncoder(tokenizer).encode(["Hello", "xyzzy" * 12])
    assert first == tokenizer("Hello", add_special_tokens=False)["input_ids"]
    assert isinstance(second, UserError)
    assert "the tokenizer fails" in str(second)
    assert "xyzzy" in str(second)


def test_words_are_not_remembered_without_ids(monkeypatch):
    """As after a panic, of which no known pattern is capable."""
    tokenizer = tiny_models.make_tokenizer()
    encoder, panic = TextEncoder(tokenizer), type("PanicException", (BaseException,), {})
    with monkeypatch.context() as patch:
        patch.setattr(encoder._memo, "_encode_texts", lambda _: (_ for _ in ()).throw(panic("no end")))
        assert encoder.encode(["Hello you"]) == encode_whole(tokenizer, ["Hello you"])
    assert encoder.encode(["Hello you"]) == encode_whole(tokenizer, ["Hello you"])


def test_the_pattern_of_the_real_model_is_among_those_tested(real_tokenizer):
    state = json.loads(real_tokenizer.backend_tokenizer.pre_tokenizer.__getstate__())
    assert state == json.loads(digits(True).__getstate__())
