"""One prompt for both answers, EOS once, and only the assistant's own words learned."""

import pytest
from support import tiny_models
from support.batch_layouts import ORIGIN
from support.encoded_pairs import encode
from support.tiny_models import CHATML, END, END_OF_TEXT, PAD, turns
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dpo_lightning.data.encoding.counts import format_unlisted_ends
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.kinds.pairs import PairExample
from dpo_lightning.data.kinds.sft import SFTExample
from dpo_lightning.errors import ExitCode, UserError

NO_THOUGHT = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n")
"""Writes an empty thought where the model answers, and none in an answer that is given."""
FORGETFUL = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages if m.role == 'user' %}{% set ns.last = messages.index(m) %}{% endfor %}"
    "{% for m in messages %}{% set said = m.content %}{% if m.role == 'assistant' and loop.index0 < ns.last %}"
    "{% set said = m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Drops the reasoning of all turns but the last, as Qwen3's template does."""
WITHOUT_EOS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
TWICE_ENDED = CHATML + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
"""Ends the whole conversation once more, as Phi-3's template does."""


def demonstrate(tokenizer, prompt, completion, *, ends=()):
    encoder = Encoder(Renderer(tokenizer, end_ids=frozenset(ends)), 200)
    (row,) = encoder.encode([SFTExample(ORIGIN, prompt, (completion,))])
    return row, encoder.counts


def learned(tokenizer, row):
    """The runs of text that are scored."""
    runs, before = [], False
    for id_, own in zip(row.completion.ids, row.completion.scored, strict=True):
        if own:
            runs = [*runs[:-1], [*runs[-1], id_]] if before else [*runs, [id_]]
        before = own
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "merged"),
    [
        ("The answer is ", "46", "$46", 1),  # " 46" is one token, so the prompt's last blank is not one of its own
        ("The answer is ", "$46", "46", 1),
        ("The answer is", " 46", " $46", 0),
        ("The answer is 4", "6", " dollars", 2),
        ("The answer is 4", " dollars", "6", 2),
        ("안녕하", "세요", "십니까", 3),  # the whole prompt
    ],
)
def test_tokens_that_merge_across_the_border_leave_one_prompt_for_both(tokenizer, prompt, chosen, rejected, merged):
    pair, counts = encode(tokenizer, prompt, chosen, rejected)
    plain = tokenizer(prompt)["input_ids"]
    assert list(pair.prompt_ids) == plain[: len(plain) - merged]
    assert counts.crossing == len(counts.format_lines()) == (merged > 0)
    for answer, text in ((pair.chosen, chosen), (pair.rejected, rejected)):
        ids = [*pair.prompt_ids, *answer.ids]
        assert ids == [*tokenizer(prompt + text)["input_ids"], tokenizer.eos_token_id]
        assert tokenizer.decode(ids) == prompt + text + END_OF_TEXT
        assert all(answer.scored)


@pytest.mark.parametrize("text", ["Hi ", "Hi\n", " Hi \n\n", "Hi\t", "Hi\u3000", "Hi \n<|endoftext|>"])
def test_white_space_at_the_end_of_a_raw_answer_is_learned(tokenizer, text):
    pair, _ = encode(tokenizer, "Hello,", text, "No")
    assert (
        tokenizer.decode([*pair.prompt_ids, *pair.chosen.ids]) == f"Hello,{text.removesuffix(END_OF_TEXT)}{END_OF_TEXT}"
    )
    assert all(pair.chosen.scored)
    encoder = Encoder(Renderer(tokenizer), 200)
    (row,) = encoder.encode([SFTExample(ORIGIN, "Hello,", (text,))])
    assert [*row.prompt_ids, *row.completion.ids] == [*pair.prompt_ids, *pair.chosen.ids]


def test_a_template_that_writes_only_where_the_model_answers_does_not_shift_the_answer():
    made = tiny_models.make_chat_tokenizer(template=NO_THOUGHT)
    pair, counts = encode(made, "Hello", "Hi", "I am fine")
    header = made.decode(pair.prompt_ids)
    assert header.rstrip("\n").endswith("<|im_start|>assistant")
    for answer, text in ((pair.chosen, "Hi"), (pair.rejected, "I am fine")):
        assert (header + made.decode(answer.ids)).endswith(f"<|im_start|>assistant\n{text}<|im_end|>")
        assert made.decode(answer.ids).strip() == f"{text}<|im_end|>"
    assert counts.crossing == 0
    assert counts.other_openings == 1
    assert r"rendered without '<think>\n\n</think>\n\n', with which" in counts.format_lines()[0]


@pytest.mark.parametrize("text", ["Hi", "Hi{eos}"])
@pytest.mark.parametrize("pad", [PAD, None, "eos"])
@pytest.mark.parametrize("template", [None, CHATML])
def test_an_answer_ends_with_one_eos_whether_the_text_ends_with_it_or_not(text, pad, template):
    eos = END if template else END_OF_TEXT
    made = tiny_models.make_tokenizer(template=template, eos=eos, pad=eos if pad == "eos" else pad)
    pair, _ = encode(made, "Hello", text.format(eos=eos), "I am fine")
    for answer in pair.answers:
        assert answer.ids[-1] == made.eos_token_id
        assert list(answer.ids).count(made.eos_token_id) == 1
        assert answer.scored[-1]


def test_an_eos_that_the_template_leaves_out_is_added():
    made = tiny_models.make_tokenizer(template=WITHOUT_EOS)
    pair, counts = encode(made, "Hello", "Hi", "I am fine")
    assert made.decode(pair.chosen.ids).strip() == "Hi\n<|endoftext|>"
    assert list(pair.chosen.ids).count(made.eos_token_id) == 1
    (line,) = counts.format_lines()
    assert line.startswith("1 of 1 rows have answers that the template ends with no end token: give a template")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (END, "<|im_end|>, which ends no generation: add its id 2 to eos_token_id in generation_config.json"),
        ("<|eot|>", "<|eot|>, 7 tokens here: give a template that writes EOS by --data.chat_template FILE"),
    ],
)
def test_an_end_that_ends_no_generation_is_told(end, told):
    made = tiny_models.make_tokenizer(template=CHATML.replace(END, end))
    pair, counts = encode(made, "Hello", "Hi", "I am fine")
    assert made.decode(pair.chosen.ids) == f"Hi{end}\n<|endoftext|>"
    assert counts.format_lines() == [
        f"1 of 1 rows have answers that the template ends with {told}; EOS is added (100.0%)"
    ]
    if end == END:
        pair, counts = encode(made, "Hello", "Hi", "I am fine", ends=[2])
        assert made.decode(pair.chosen.ids) == "Hi<|im_end|>"
        assert counts.format_lines() == []


def test_an_end_that_the_generation_config_does_not_list_is_told():
    made = tiny_models.make_chat_tokenizer()
    _, counts = encode(made, "Hello", "Hi", "I am fine")
    assert counts.ends == {2}
    for ends, told in (([0], 1), ([0, 2], 0), ([], 0)):  # none: what it says is not known
        lines = list(format_unlisted_ends(counts.ends, Renderer(made, end_ids=frozenset(ends))))
        assert len(lines) == told
    (line,) = format_unlisted_ends(counts.ends, Renderer(made, end_ids=frozenset([0])))
    assert "answers end with <|im_end|> (id 2), which eos_token_id in the model's generation_config.json" in line


def test_characters_that_the_tokenizer_lacks_are_counted():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Hello": 2, "Hi": 3, "No": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    rows = [PairExample(ORIGIN, "Hello", answers) for answers in ((" Hi", " No"), (" Hi", " No no"))]
    encoder = Encoder(Renderer(made), 20)
    encoder.encode(rows)
    assert encoder.counts.unknown == 1
    (line,) = encoder.counts.format_lines()
    assert line.startswith("1 of 2 rows have characters in an answer that the tokenizer lacks")
    made.unk_token = "</s>"  # as SmolLM2 has it: what ends an answer is no sign
    encoder = Encoder(Renderer(made), 20)
    encoder.encode(rows)
    assert encoder.counts.unknown == 0


def test_a_template_that_writes_the_bos_twice_is_refused():
    made = tiny_models.make_tokenizer(template="{{ bos_token }}<s>" + CHATML, prepends_bos=True)
    with pytest.raises(UserError, match=r"writes <s>, the BOS, twice at pairs\.jsonl:7") as told:
        encode(made, "Hello", "Hi", "I am fine")
    assert told.value.code == ExitCode.MODEL


def test_what_a_template_writes_after_the_end_of_an_answer_is_not_learned():
    made = tiny_models.make_tokenizer(template=TWICE_ENDED)
    end = made.convert_tokens_to_ids(END)
    pair, _ = encode(made, "Hello", "Hi", "I am fine", ends=[end])
    assert made.decode(pair.chosen.ids) == "Hi<|im_end|>"
    said = turns(("assistant", "Hi"), ("user", "Well?"), ("assistant", "I am fine"))
    row, counts = demonstrate(made, turns(("user", "Hello")), said, ends=[end])
    assert learned(made, row) == ["Hi<|im_end|>", "I am fine<|im_end|>"]
    assert counts.last_turn_only == 0


def test_an_answer_of_two_ended_parts_ends_with_the_second():
    """A plan before the words, each with an end of its own: neither is cut off, and what comes behind both is."""
    plan = "('A plan<|im_end|>' if message['role'] == 'assistant' else '')"
    parts = CHATML.replace("+ message['content'] +", f"+ {plan} + message['content'] +")
    made = tiny_models.make_chat_tokenizer(template=parts)
    pair, _ = encode(made, "Hello", "Hi", "I am fine")
    assert made.decode(pair.chosen.ids) == "A plan<|im_end|>Hi<|im_end|>"
    assert made.decode(pair.rejected.ids) == "A plan<|im_end|>I am fine<|im_end|>"
    said = turns(("assistant", "Hi"), ("user", "Well?"), ("assistant", "I am fine"))
    row, _ = demonstrate(made, turns(("user", "Hello")), said)
    assert learned(made, row) == ["A plan<|im_end|>Hi<|im_end|>", "A plan<|im_end|>I am fine<|im_end|>"]


@pytest.mark.parametrize(
    "make", [tiny_models.make_chat_tokenizer, lambda: tiny_models.make_tokenizer(prepends_bos=True)]
)
def test_training_and_generation_read_the_same_prompt(make):
    made = make()
    pair, _ = encode(made, "Hello, you", " I am fine", " thank you")
    assert list(pair.prompt_ids) == Renderer(made).encode_prompt("Hello, you")


def test_only_the_assistants_turns_are_learned(chat_tokenizer):
    said = turns(("assistant", "Hi"), ("user", "Well?"), ("tool", "46"), ("assistant", "I am fine"))
    row, counts = demonstrate(chat_tokenizer, turns(("system", "Be brief"), ("user", "Hello")), said)
    assert learned(chat_tokenizer, row) == ["Hi<|im_end|>", "I am fine<|im_end|>"]
    assert chat_tokenizer.decode([*row.prompt_ids, *row.completion.ids]).count("<|im_start|>") == 6
    assert counts.format_lines() == []


def test_no_part_of_a_conversation_is_rendered_twice(chat_tokenizer, monkeypatch):
    rendered, render = [], type(chat_tokenizer).apply_chat_template

    def recorded(tokenizer, messages, **options):
        rendered.append((len(messages), options["add_generation_prompt"]))
        return render(tokenizer, messages, **options)

    monkeypatch.setattr(type(chat_tokenizer), "apply_chat_template", recorded)
    said = turns(("user", "Hello"), ("assistant", "Hi"), ("user", "Well?"), ("assistant", "thank you"))
    demonstrate(chat_tokenizer, said[:1], said[1:])
    assert sorted(rendered) == [(1, True), (2, False), (3, True), (4, False)]


def test_two_turns_of_the_assistant_in_a_row_are_learned_each_by_itself(chat_tokenizer):
    """What opens the second is the template's, wherever the two stand."""
    for more in ((), (("user", "Well?"), ("assistant", "thank you"))):
        said = turns(("assistant", "Hi"), ("assistant", "I am fine"), *more)
        row, _ = demonstrate(chat_tokenizer, turns(("user", "Hello")), said)
        wanted = ["Hi<|im_end|>", "I am fine<|im_end|>", *(["thank you<|im_end|>"] if more else [])]
        assert learned(chat_tokenizer, row) == wanted


def test_an_answer_that_begins_with_another_turn_is_learned_from_the_assistants_words_on(chat_tokenizer):
    chosen = turns(("user", "Well?"), ("assistant", "I am fine"))
    rejected = turns(("user", "Well?"), ("assistant", "thank you"))
    pair, _ = encode(chat_tokenizer, turns(("user", "Hello"), ("assistant", "Hi")), chosen, rejected)
    scored = [id_ for id_, own in zip(pair.chosen.ids, pair.chosen.scored, strict=True) if own]
    assert chat_tokenizer.decode(scored) == "I am fine<|im_end|>"


def test_a_template_that_drops_the_reasoning_of_earlier_turns_leaves_the_last_answer_to_learn():
    made = tiny_models.make_chat_tokenizer(template=FORGETFUL)
    thought = "<think>\nhm\n</think>\n\n"
    said = turns(("assistant", thought + "Hi"), ("user", "Well?"), ("assistant", thought + "I am fine"))
    row, counts = demonstrate(made, turns(("user", "Hello")), said)
    assert learned(made, row) == [thought + "I am fine<|im_end|>"]
    assert counts.last_turn_only == 1
    assert "only the last answer is learned (100.0%)" in counts.format_lines()[0]
    row, counts = demonstrate(made, turns(("user", "Hello")), (turns(("assistant", "Hi"))[0], *said[1:]))
    assert learned(made, row) == ["Hi<|im_end|>", thought + "I am fine<|im_end|>"]
    assert counts.format_lines() == []


def test_a_rewritten_conversation_counts_as_one_row():
    made = tiny_models.make_chat_tokenizer(template=FORGETFUL)
    thought = "<think>\nhm\n</think>\n\n"
    more = [("assistant", thought + "Hi"), ("user", "Well?")] * 3
    said = turns(*more, ("assistant", "I am fine"))
    pair, counts = encode(made, turns(("user", "Hello")), said, said[:-1] + turns(("assistant", "No")))
    assert counts.last_turn_only == 1
    assert not pair.chosen.scored[0]


def test_a_control_token_in_an_answer_is_refused_with_its_line(chat_tokenizer):
    for chosen, rejected in (("Hi <|im_start|>", "No"), ("Hi", "No<|endoftext|> way")):
        with pytest.raises(UserError, match=r"control token <\|.* at pairs.jsonl:7"):
            encode(chat_tokenizer, "Hello", chosen, rejected)


def test_bad_rows_are_told_together(chat_tokenizer):
    rows = [
        PairExample(Origin("pairs.jsonl", line), f"say {END}" if line % 2 else "say", ("yes", "no"))
        for line in range(1, 31)
    ]
    with pytest.raises(UserError) as told:
        Encoder(Renderer(chat_tokenizer), 200).encode(rows)
    assert len(told.value.problems) == 15
    assert [problem.where for problem in told.value.problems[:2]] == ["pairs.jsonl:1", "pairs.jsonl:3"]
    assert "and 5 more" in str(told.value)
    assert all("neutralize" in problem.fix for problem in told.value.problems)
