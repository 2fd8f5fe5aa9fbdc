"""All of a learned answer stands in what is scored, or its row is refused; of the turns before, not so."""

import pytest
from support import tiny_models
from support.chat_templates import QWEN3, R1, R1_KEPT
from support.tiny_models import CHATML, turns

from dpo_lightning.data.common_prefix import count_common
from dpo_lightning.data.encoding.kept_texts import find_missing
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.kinds.pairs import PairExample
from dpo_lightning.data.kinds.ranked import RankedExample
from dpo_lightning.data.kinds.sft import SFTExample
from dpo_lightning.data.kinds.unpaired import UnpairedExample
from dpo_lightning.errors import ExitCode, UserError

THOUGHT = "<think>\nhm, so\n</think>\n\n"
ASKED = turns(("user", "Hello"))


def at(line):
    return Origin("rows.jsonl", line)


def encoder(template, special_tokens="refuse"):
    return Encoder(Renderer(tiny_models.make_chat_tokenizer(template=template), special_tokens=special_tokens), 250)


def demonstrate(template, completion, prompt=ASKED, **options):
    """The scored runs of text of a demonstration, and the counts."""
    made = encoder(template, **options)
    (row,) = made.encode([SFTExample(at(1), prompt, (completion,))])
    runs, before = [], False
    for id_, own in zip(row.completion.ids, row.completion.scored, strict=True):
        if own:
            runs = [*runs[:-1], [*runs[-1], id_]] if before else [*runs, [id_]]
        before = own
    return [made.renderer.tokenizer.decode(run) for run in runs], made.counts


def refused(encode, *lost):
    with pytest.raises(UserError) as told:
        encode()
    assert told.value.code == ExitCode.DATA
    assert "omits or changes" in told.value.problems[0].what
    assert [problem.where for problem in told.value.problems] == [f"rows.jsonl:{k}" for k in range(1, len(lost) + 1)]
    assert [problem.text for problem in told.value.problems] == list(lost)
    assert all("--data.chat_template FILE" in problem.fix for problem in told.value.problems)
    return told.value


KINDS = {
    "pairs": lambda made, a, b: made.encode(
        [PairExample(at(1), "Hello", (a, "No")), PairExample(at(2), "Hello", ("No", b))]
    ),
    "ranked": lambda made, a, b: made.encode(
        [RankedExample(at(1), "Hello", ("Yes", a, "No")), RankedExample(at(2), "Hello", ("Yes", "No", b))]
    ),
    "sft": lambda made, a, b: made.encode([SFTExample(at(1), "Hello", (a,)), SFTExample(at(2), "Hello", (b,))]),
    "unpaired": lambda made, a, b: made.encode(
        [UnpairedExample(at(1), "Hello", (a,), good=True), UnpairedExample(at(2), "Hello", (b,), good=False)]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_that_cuts_out_the_reasoning_of_an_answer_is_refused_with_every_row(kind):
    answers = ("<think>\nhm\n</think>\n\nHi", "<think>\nwell\n</think>\n\nHi")
    told = refused(lambda: KINDS[kind](encoder(R1), *answers), "<think>\nhm\n</think>", "<think>\nwell\n</think>")
    assert "the reasoning of a learned answer" in told.problems[0].what
    KINDS[kind](encoder(R1_KEPT), *answers)


@pytest.mark.parametrize(
    ("opens", "closes"),
    [("<thought>", "</thought>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("# Why\n", "# So\n")],
)
def test_reasoning_is_found_missing_by_what_is_left_and_not_by_its_name(opens, closes):
    template = R1.replace("</think>", closes.replace("\n", "\\n"))
    answer = f"{opens}hm{closes}Hi"
    if closes == "# So\n":  # of a turn that is no reasoning to anyone, the whole is missed
        with pytest.raises(UserError, match="omits or changes a turn of the assistant"):
            demonstrate(template, answer)
        return
    refused(lambda: demonstrate(template, answer), f"{opens}hm{closes}")


def test_the_reasoning_of_every_learned_turn_counts():
    said = turns(("assistant", THOUGHT + "Hi"), ("user", "Well?"), ("assistant", "I am fine"))
    refused(lambda: demonstrate(R1, said), THOUGHT.strip())
    learned, counts = demonstrate(R1_KEPT, said)
    assert learned == [THOUGHT.removeprefix("<think>\n") + "Hi<|im_end|>", "I am fine<|im_end|>"]
    assert counts.last_turn_only == 0


@pytest.mark.parametrize("template", [R1, QWEN3])
def test_reasoning_may_be_cut_out_of_the_turns_before(template):
    before = (*ASKED, *turns(("assistant", THOUGHT + "Hi"), ("user", "Well?")))
    (learned,), counts = demonstrate(template, "I am fine", before)
    assert learned.endswith("I am fine<|im_end|>")
    assert counts.respaced == counts.last_turn_only == 0


def test_a_turn_that_is_no_longer_learned_may_lose_its_reasoning_and_is_counted():
    said = turns(("assistant", THOUGHT + "Hi"), ("user", "Well?"), ("assistant", THOUGHT + "I am fine"))
    learned, counts = demonstrate(QWEN3, said)
    assert learned == [THOUGHT + "I am fine<|im_end|>"]
    assert counts.last_turn_only == 1


def test_the_same_reasoning_in_the_prompt_is_not_that_of_the_answer():
    refused(lambda: demonstrate(R1, THOUGHT + "Hi", turns(("user", f"Write {THOUGHT}, then Hi"))), THOUGHT.strip())


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_under_a_key_of_its_own_is_learned_or_refused(key):
    said = ({"role": "assistant", "content": "Hi", key: "hm, so"},)
    refused(lambda: demonstrate(CHATML, said), "hm, so")
    assert demonstrate(QWEN3, said)[0] == [THOUGHT + "Hi<|im_end|>"]
    context = (*ASKED, *said, *turns(("user", "Well?")))
    assert demonstrate(CHATML, "I am fine", context)[0] == ["I am fine<|im_end|>"]


def test_reasoning_that_is_no_text_is_not_passed_over():
    said = ({"role": "assistant", "content": "Hi", "thinking": [{"text": "hm, so"}]},)
    refused(lambda: demonstrate(CHATML, said), '[{"text": "hm, so"}]')
    for nothing in ("", [], None, " "):
        assert demonstrate(CHATML, ({**said[0], "thinking": nothing},))[0] == ["Hi<|im_end|>"]


def test_a_generation_prompt_may_begin_the_reasoning_that_is_learned():
    (learned,), counts = demonstrate(R1_KEPT, THOUGHT + "Hi")
    assert learned == THOUGHT.removeprefix("<think>\n") + "Hi<|im_end|>"
    assert counts.format_lines() == []


def test_an_answer_that_does_not_begin_as_the_generation_prompt_ends_is_counted():
    (learned,), counts = demonstrate(R1, "Hi")
    assert learned.strip() == "Hi<|im_end|>"
    (line,) = counts.format_lines()
    assert line.startswith("1 of 1 rows have answers rendered without '<think>\\n', with which the template ends")
    assert "--data.chat_template" in line
    assert counts.crossing == 0


def test_white_space_around_an_answer_may_go_and_within_it_is_counted():
    trimmed = CHATML.replace("message['content'] +", "message['content'] | trim +")
    (learned,), counts = demonstrate(trimmed, "\n Hi  you ")
    assert learned == "Hi  you<|im_end|>"
    assert counts.format_lines() == []
    (learned,), counts = demonstrate(QWEN3, "<think>hm, so</think>Hi")
    assert learned == THOUGHT + "Hi<|im_end|>"
    assert counts.format_lines() == ["1 of 1 rows have an answer in which the template changes white space (100.0%)"]


@pytest.mark.parametrize("written", ["''", "m['content'] | upper", "m['content'][:3]", "m['content'] | e"])
def test_an_answer_that_stands_in_the_prompt_has_to_stand_in_the_answer_as_well(written):
    """Where a template drops or changes it, the prompt's copy of it is no excuse."""
    template = R1_KEPT.replace("+ said +", f"+ (({written}) if m['role'] == 'assistant' else said) +")
    with pytest.raises(UserError, match=r"omits or changes a part of a learned answer at rows.jsonl:1") as told:
        demonstrate(template, "it's 46", turns(("user", "Say: it's 46")))
    assert told.value.code == ExitCode.DATA


def call(**arguments):
    return ({"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": arguments}]},)


@pytest.mark.parametrize(
    ("written", "kept"),
    [("call | tojson", True), ("call.name + ' ' + (call.arguments.values() | join(' '))", True), ("call.name", False)],
)
def test_what_a_call_says_is_learned_as_well(written, kept):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        f"{{% for call in m.tool_calls or [] %}}{{{{ {written} }}}}{{% endfor %}}{{{{ '<|im_end|>\n' }}}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    said = call(city='Paris, "46"\n', days=3)
    if kept:
        assert "Paris" in demonstrate(template, said)[0][0]
        return
    refused(lambda: demonstrate(template, said), 'Paris, "46"')
    assert demonstrate(template, "Hi", (*ASKED, *said, *turns(("tool", "rain"))))[0] == ["Hi<|im_end|>"]


def test_a_call_that_a_template_leaves_out_is_refused_where_its_name_stands_elsewhere():
    calls = [{"function": {"name": "weather", "arguments": {"days": 2}}}]
    said = ({"role": "assistant", "content": "", "tool_calls": calls},)
    asked = turns(("user", "What is the weather?"))
    refused(lambda: demonstrate(CHATML, said, asked), "weather")
    with pytest.raises(UserError, match="a tool call of a learned answer"):
        demonstrate(CHATML, said, asked)


def test_a_neutralized_control_token_is_a_part_like_any_other():
    said = "<think>\na <|im_end|> b\n</think>\n\nHi"
    assert demonstrate(QWEN3, said, special_tokens="neutralize")[0] == [said + "<|im_end|>"]
    with pytest.raises(UserError, match="the reasoning of a learned answer"):
        demonstrate(R1, said, special_tokens="neutralize")


def test_what_is_missing_is_what_no_end_of_the_text_holds():
    assert find_missing("abc, def", "x def y") == "abc,"
    assert find_missing("abc", "xyz") == "abc"
    assert find_missing("the weather", "or") == "the weather"
    assert [count_common(*two) for two in [("abc", "abcd"), ("abx", "aby"), ("", "a"), ("b", "a"), ("abc", "ab")]] == [
        3,
        2,
        0,
        0,
        2,
    ]
