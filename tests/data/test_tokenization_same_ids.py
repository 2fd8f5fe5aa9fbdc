"""Answers that are the same tokens are refused, equal texts have equal ids, and others have other ids."""

import json

import pytest
from support import tiny_models
from support.batch_layouts import ORIGIN
from support.encoded_pairs import encode
from support.tiny_models import CHATML

from dpo_lightning.data.datamodules import UnpairedDataModule
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.kinds.pairs import PairExample, PairKind
from dpo_lightning.data.kinds.ranked import RankedExample
from dpo_lightning.data.kinds.unpaired import UnpairedExample
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode, UserError


def test_answers_that_are_the_same_tokens_are_refused_as_the_same_texts_are():
    trimmed = tiny_models.make_chat_tokenizer(
        template=CHATML.replace("message['content'] +", "message['content'] | trim +")
    )
    encoder = Encoder(Renderer(trimmed), 200)
    rows = [PairExample(Origin("pairs.jsonl", k), "Hello", ("Hi", "No" if k == 2 else " Hi\n")) for k in (1, 2, 3)]
    with pytest.raises(UserError, match=r"chosen and rejected are the same 3 tokens at pairs\.jsonl:1") as told:
        encoder.encode(rows)
    assert told.value.code == ExitCode.DATA
    assert [problem.where for problem in told.value.problems] == ["pairs.jsonl:1", "pairs.jsonl:3"]
    with pytest.raises(UserError, match="the answers ranked 1 and 3 are the same 3 tokens"):
        Encoder(Renderer(trimmed), 200).encode([RankedExample(ORIGIN, "Hello", ("Hi", "No", "Hi "))])


def test_an_answer_with_both_labels_as_tokens_is_refused():
    trimmed = tiny_models.make_chat_tokenizer(
        template=CHATML.replace("message['content'] +", "message['content'] | trim +")
    )
    said = (("Hi", True), ("No", False), ("Hi ", False), (" Hi", True))
    rows = [UnpairedExample(Origin("f", k), "Hello", (text,), good=good) for k, (text, good) in enumerate(said, 1)]
    data = UnpairedDataModule(train="f")
    with pytest.raises(UserError, match="the same tokens have the other label in f:1 at f:3") as told:
        list(data.encode(Encoder(Renderer(trimmed), 200), rows))
    assert told.value.code == ExitCode.DATA
    assert len(told.value.problems) == 1
    data = UnpairedDataModule(train="f", allow="contradictions")
    assert len(list(data.encode(Encoder(Renderer(trimmed), 200), rows))) == 4


def test_a_changed_template_or_length_changes_the_ids_and_nothing_else_does(chat_tokenizer):
    first, _ = encode(chat_tokenizer, "Hello", "Hi", "I am fine")
    again, _ = encode(tiny_models.make_chat_tokenizer(), "Hello", "Hi", "I am fine")
    assert first == again
    raw, _ = encode(chat_tokenizer, "Hello", "Hi", "I am fine", template="raw")
    other, _ = encode(
        tiny_models.make_chat_tokenizer(template=CHATML.replace("helpful", "terse")), "Hello", "Hi", "I am fine"
    )
    short = Encoder(Renderer(chat_tokenizer), 16, "truncate")
    (cut,) = short.encode([PairExample(ORIGIN, "Hello", ("Hi", "I am fine"))])
    assert len({(*pair.prompt_ids, -1, *pair.chosen.ids) for pair in (first, raw, other, cut)}) == 4


def test_composed_and_decomposed_letters_are_the_same_ids(tmp_path, chat_tokenizer):
    composed = {"prompt": "카페 café?", "chosen": "한국 né", "rejected": "서울"}
    decomposed = {"prompt": "카페 cafe\u0301?", "chosen": "\u1112\u1161\u11ab국 ne\u0301", "rejected": "서울"}
    encoded = []
    for name, row in (("composed", composed), ("decomposed", decomposed)):
        file = tmp_path / f"{name}.jsonl"
        other = {"prompt": "Hello", "chosen": "Hi", "rejected": "No"}
        file.write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n", encoding="utf-8")
        examples, _ = load_examples(PairKind, str(file))
        encoded.append(Encoder(Renderer(chat_tokenizer), 200).encode(examples)[0])
    assert encoded[0].prompt_ids == encoded[1].prompt_ids
    assert encoded[0].answers == encoded[1].answers
    assert "café" in chat_tokenizer.decode(encoded[1].prompt_ids)
