"""Rows that are encoded side by side give what each gives alone, and errors in the order of the rows."""

import pytest
from support import tiny_models
from support.batch_layouts import ORIGIN
from support.tiny_models import turns

from dpo_lightning.data.encoding import tokenization
from dpo_lightning.data.encoding.lockstep import run_in_lockstep
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder, split_into_chunks
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.kinds.pairs import PairExample
from dpo_lightning.errors import ExitCode, UserError


def steps(texts, error=None):
    """A row that returns the ids of its texts, or raises an error after them."""
    ids = []
    for text in texts:
        ids += yield text
    if error:
        raise UserError(error, "a fault")
    return ids


def count_letters(texts):
    """The ids of a text are its length; a text without letters makes the tokenizer fail."""
    return [[len(text)] if text else UserError(ExitCode.MODEL, "the tokenizer fails") for text in texts]


def list_codes(results):
    return [result.code if isinstance(result, UserError) else result for result in results]


def test_rows_get_the_ids_of_their_own_texts_in_few_calls():
    calls = []
    rows = [steps(["a", "bb"]), steps([]), steps(["ccc"]), steps(["a"], ExitCode.DATA), steps(["bb", "a", "ccc"])]
    results = run_in_lockstep(rows, lambda texts: calls.append(texts) or count_letters(texts))
    assert list_codes(results) == [[1, 2], [], [3], ExitCode.DATA, [2, 1, 3]]
    assert calls == [["a", "ccc", "a", "bb"], ["bb", "a"], ["ccc"]]


@pytest.mark.parametrize("late", [steps(["a", "bb", "ccc"], ExitCode.MODEL), steps(["a", "bb", ""])])
def test_rows_end_with_the_first_error_that_is_not_of_a_row(late):
    """Though a row after it fails sooner, and another is complete."""
    rows = [steps(["a"], ExitCode.DATA), late, steps(["a"]), steps([], ExitCode.MODEL), steps(["a"])]
    assert list_codes(run_in_lockstep(rows, count_letters)) == [ExitCode.DATA, ExitCode.MODEL]


def pairs(n):
    return [PairExample(Origin("f.jsonl", i), "Hello" * i, ("Hi", "No " * i)) for i in range(1, n + 1)]


@pytest.mark.parametrize("rows", [1, 2, 3, 256])
def test_chunks_change_nothing(monkeypatch, chat_tokenizer, rows):
    alone = [Encoder(Renderer(chat_tokenizer), 200).encode([row])[0] for row in pairs(7)]
    monkeypatch.setattr(tokenization, "MAX_ROWS", rows)
    assert Encoder(Renderer(chat_tokenizer), 200).encode(iter(pairs(7))) == alone


def test_rows_are_read_chunk_by_chunk(monkeypatch, chat_tokenizer):
    monkeypatch.setattr(tokenization, "MAX_ROWS", 2)
    read = []
    rows = (read.append(row) or row for row in pairs(9))
    encoded = Encoder(Renderer(chat_tokenizer), 200).encode_rows(rows)
    next(encoded)
    assert len(read) <= 3
    assert len(list(encoded)) == 8


def test_errors_come_after_the_rows_that_are_good(chat_tokenizer):
    good, bad = pairs(1)[0], PairExample(ORIGIN, "<|im_end|>", ("Hi", "No"))
    encoded = Encoder(Renderer(chat_tokenizer), 200).encode_rows([bad, good, bad])
    assert next(encoded).origin == good.origin
    with pytest.raises(UserError) as raised:
        next(encoded)
    assert len(raised.value.problems) == 2


def test_long_rows_are_in_small_chunks(monkeypatch):
    monkeypatch.setattr(tokenization, "MAX_CHARACTERS", 40)
    talk = PairExample(ORIGIN, turns(("user", "a" * 30)), (turns(("assistant", "b")), turns(("assistant", "c"))))
    short = PairExample(ORIGIN, "a", ("b", "c"))
    huge = PairExample(ORIGIN, "a" * 99, ("b", "c"))
    rows = [talk, short, talk, huge, short]
    assert list(split_into_chunks(rows)) == [[talk, short], [talk], [huge], [short]]


def test_a_template_that_fails_for_a_row_is_reported_before_later_rows_are_encoded():
    """An error of the template ends the encoding, whatever later rows contain."""
    template = "{% if messages[0].content == 'go' %}{{ 'x' * 10 ** 10 }}{% endif %}" + tiny_models.CHATML
    made = tiny_models.make_chat_tokenizer(template=template)
    rows = [PairExample(ORIGIN, prompt, ("Hi", "No")) for prompt in ("Hello", "go", "<|im_end|>")]
    encoded = Encoder(Renderer(made), 200).encode_rows(rows)
    next(encoded)
    with pytest.raises(UserError, match="takes more than 1 GiB") as raised:
        next(encoded)
    assert raised.value.code == ExitCode.MODEL
