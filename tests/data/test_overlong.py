"""What happens to rows beyond `max_length`: an error, dropped, or cut, and always counted."""

import pytest
from support import tiny_models
from support.tiny_models import BEGIN, turns

from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder, drop_oldest_turn
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.kinds.pairs import PairExample
from dpo_lightning.data.kinds.sft import SFTExample
from dpo_lightning.errors import ExitCode, UserError

LONG = "water " * 60
"""More tokens than any `max_length` here."""


def pairs(*rows):
    return [PairExample(Origin("pairs.jsonl", line), row[0], row[1:]) for line, row in enumerate(rows, 1)]


def test_too_long_is_an_error_that_names_every_row(tokenizer):
    rows = pairs(("Hello", "Hi", "No"), (LONG, "Hi", "No"), ("Hello", "Hi", LONG))
    with pytest.raises(UserError) as told:
        Encoder(Renderer(tokenizer), 40).encode(rows)
    assert told.value.code == ExitCode.DATA
    message = str(told.value)
    assert [f"pairs.jsonl:{line}" in message for line in (1, 2, 3)] == [False, True, True]
    assert "max_length is 40" in message
    assert "--data.overlong drop" in message


def test_a_row_of_exactly_max_length_fits(tokenizer):
    (row,) = pairs(("Hello", " you", " you you"))
    longest = len(tokenizer("Hello you you")["input_ids"]) + 1
    assert len(Encoder(Renderer(tokenizer), longest).encode([row])) == 1
    with pytest.raises(UserError):
        Encoder(Renderer(tokenizer), longest - 1).encode([row])


def test_dropped_rows_are_counted_and_the_others_stay_as_they_are(tokenizer):
    rows = pairs((LONG, "Hi", "No"), ("Hello", "Hi", "No"), ("Hello", LONG, "No"))
    encoder = Encoder(Renderer(tokenizer), 40, "drop")
    kept = encoder.encode(rows)
    assert kept == Encoder(Renderer(tokenizer), 40).encode(rows[1:2])
    assert encoder.counts.format_lines() == ["2 of 3 rows dropped: longer than max_length (66.7%)"]


def test_dropping_every_row_is_an_error(tokenizer):
    with pytest.raises(UserError, match="all 1 rows are longer than max_length 8"):
        Encoder(Renderer(tokenizer), 8, "drop").encode(pairs((LONG, "Hi", "No")))


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [(LONG, "Hi", "No"), (LONG, LONG, "No"), (LONG, "Hi", LONG), ("Hello", LONG, "No")],
)
@pytest.mark.parametrize("max_length", [2, 3, 16, 40])
def test_a_cut_row_keeps_something_of_both_answers_and_the_end_of_its_prompt(
    tokenizer, max_length, prompt, chosen, rejected
):
    (full,) = Encoder(Renderer(tokenizer), 500).encode(pairs((prompt, chosen, rejected)))
    encoder = Encoder(Renderer(tokenizer), max_length, "truncate")
    (cut,) = encoder.encode(pairs((prompt, chosen, rejected)))
    assert cut.prompt_ids
    assert list(cut.prompt_ids) == list(full.prompt_ids)[-len(cut.prompt_ids) :]
    for short, whole in zip(cut.answers, full.answers, strict=True):
        assert len(cut.prompt_ids) + len(short.ids) <= max_length
        assert any(short.scored)
        assert list(short.ids) == list(whole.ids)[: len(short.ids)]
        assert short.cut == (len(short.ids) < len(whole.ids))
        assert (short.ids[-1] == tokenizer.eos_token_id) == (not short.cut)


def test_a_short_answer_is_untouched_beside_a_long_one(tokenizer):
    encoder = Encoder(Renderer(tokenizer), 40, "truncate")
    (full,) = Encoder(Renderer(tokenizer), 500).encode(pairs((LONG, LONG, "No")))
    (cut,) = encoder.encode(pairs((LONG, LONG, "No")))
    assert cut.rejected == full.rejected
    assert len(cut.prompt_ids) == 20
    assert len(cut.chosen.ids) == 20
    assert cut.chosen.cut


def test_the_prompt_gives_way_before_an_answer_does(tokenizer):
    encoder = Encoder(Renderer(tokenizer), 40, "truncate")
    (cut,) = encoder.encode(pairs((LONG, " water" * 11, " No")))
    assert not cut.chosen.cut
    assert len(cut.prompt_ids) + len(cut.chosen.ids) == 40
    assert encoder.counts.format_lines() == ["1 of 1 rows lost the start of the prompt to max_length (100.0%)"]


def test_answers_that_are_the_same_once_cut_are_refused(tokenizer):
    rows = pairs(("Hello", LONG + "Hi", LONG + "No"), ("Hello", "Hi", "No"))
    with pytest.raises(UserError, match=r"the same \d+ tokens, cut at max_length 40 at pairs.jsonl:1") as told:
        Encoder(Renderer(tokenizer), 40, "truncate").encode(rows)
    assert told.value.code == ExitCode.DATA
    assert told.value.problems[0].fix == "raise --data.max_length, or --data.overlong drop"
    assert len(Encoder(Renderer(tokenizer), 40, "drop").encode(rows)) == 1
    assert len(Encoder(Renderer(tokenizer), 400, "truncate").encode(rows)) == 2


def test_an_answer_that_lost_its_eos_gets_no_false_one_and_is_counted(tokenizer):
    rows = pairs(("Hello", LONG, "No " + LONG), ("Hello", "Hi", "No"), ("Hello", LONG, "No"))
    encoder = Encoder(Renderer(tokenizer), 40, "truncate")
    kept = encoder.encode(rows)
    assert [[answer.cut for answer in pair.answers] for pair in kept] == [[True, True], [False, False], [True, False]]
    assert tokenizer.eos_token_id not in kept[0].chosen.ids
    assert encoder.counts.format_lines() == ["2 of 3 rows have an answer cut at max_length, without its EOS (66.7%)"]


def test_the_oldest_turns_of_a_prompt_go_first_and_the_system_message_stays(chat_tokenizer):
    prompt = turns(
        ("system", "Be brief"),
        ("user", LONG),
        ("assistant", "Hi"),
        ("user", "Well?"),
        ("assistant", "46"),
        ("user", "So?"),
    )
    renderer = Renderer(chat_tokenizer)
    encoder = Encoder(renderer, 60, "truncate")
    (cut,) = encoder.encode(pairs((prompt, turns(("assistant", "Yes")), turns(("assistant", "No")))))
    assert list(cut.prompt_ids) == renderer.encode_prompt((prompt[0], *prompt[3:]))
    assert chat_tokenizer.decode(cut.prompt_ids).startswith("<|im_start|>system\nBe brief")
    assert encoder.counts.format_lines() == ["1 of 1 rows lost the start of the prompt to max_length (100.0%)"]


@pytest.mark.parametrize("roles", [("developer",), ("system", "developer"), ("developer", "system")])
def test_what_the_author_of_a_prompt_set_down_stays(chat_tokenizer, roles):
    """System and developer messages, in their order, wherever they stand."""
    first = turns(*((role, f"Be {role}") for role in roles))
    said = turns(("user", LONG), ("assistant", "Hi"), ("developer", "Be brief"), ("user", "So?"))
    assert drop_oldest_turn((*first, *said)) == (*first, *said[2:])
    renderer = Renderer(chat_tokenizer)
    (cut,) = Encoder(renderer, 90, "truncate").encode(pairs(((*first, *said), "Yes", "No")))
    assert list(cut.prompt_ids) == renderer.encode_prompt((*first, *said[2:]))


def test_a_tool_result_never_stays_without_its_call():
    said = turns(("user", "Rain?"), ("assistant", "asks"), ("tool", "46"), ("assistant", "Yes"), ("user", "So?"))
    assert drop_oldest_turn(said) == said[4:]
    assert drop_oldest_turn(said[4:]) is None
    assert drop_oldest_turn("Hello") is None


@pytest.mark.parametrize("max_length", [2, 3, 40])
def test_a_cut_prompt_keeps_its_bos(max_length):
    made = tiny_models.make_tokenizer(prepends_bos=True)
    begin = made.convert_tokens_to_ids(BEGIN)
    (cut,) = Encoder(Renderer(made), max_length, "truncate").encode(pairs((LONG, LONG, "No")))
    assert len(cut.prompt_ids) == max_length // 2
    assert list(cut.prompt_ids).count(begin) == (max_length >= 4)
    assert (cut.prompt_ids[0] == begin) == (max_length >= 4)


def test_a_cut_that_leaves_nothing_to_learn_is_an_error(chat_tokenizer):
    chosen = turns(("user", LONG), ("assistant", "Hi"))
    rejected = turns(("user", LONG), ("assistant", "No"))
    with pytest.raises(UserError, match=r"leaves nothing to learn of an answer at pairs\.jsonl:1") as told:
        Encoder(Renderer(chat_tokenizer), 40, "truncate").encode(pairs((turns(("user", "Hello")), chosen, rejected)))
    assert told.value.code == ExitCode.DATA


def test_what_happened_is_counted_once_a_row_however_often_it_is_encoded(chat_tokenizer):
    made = tiny_models.make_chat_tokenizer(
        template=chat_tokenizer.chat_template.replace("assistant\n' }}", "assistant\n\n' }}")
    )
    prompt = turns(*[("user", LONG), ("assistant", "Hi")] * 3, ("user", "So?"))
    encoder = Encoder(Renderer(made), 60, "truncate")
    encoder.encode(pairs((prompt, turns(("assistant", "Yes")), turns(("assistant", "No")))))
    assert encoder.counts.other_openings == 1
    assert encoder.counts.shortened_prompts == 1


def test_demonstrations_follow_the_same_policy(tokenizer):
    rows = [SFTExample(Origin("sft.jsonl", line), "Hello", (text,)) for line, text in ((1, "Hi"), (2, LONG))]
    with pytest.raises(UserError, match=r"sft\.jsonl:2"):
        Encoder(Renderer(tokenizer), 40).encode(rows)
    encoder = Encoder(Renderer(tokenizer), 40, "drop")
    assert len(encoder.encode(rows)) == 1
    assert encoder.counts.dropped == 1
    kept = Encoder(Renderer(tokenizer), 40, "truncate").encode(rows)
    assert [row.completion.cut for row in kept] == [False, True]


@pytest.mark.parametrize(("bad", "read"), [(3, 1005), (999, 1005), (1000, 1000), (1003, 1000)])
def test_a_thousand_bad_rows_are_enough(chat_tokenizer, bad, read):
    """All of them are named; more are not read."""
    rows = pairs(*[("<|im_end|>", "Hi", "No")] * bad, *[("Hello", "Hi", "No")] * (1005 - bad))
    encoder = Encoder(Renderer(chat_tokenizer), 100)
    with pytest.raises(UserError, match="control token") as told:
        encoder.encode(rows)
    assert len(told.value.problems) == min(bad, 1000)
    assert encoder.counts.read == read
