"""Normalized texts, scripts, display width and the findings about single rows."""

import pytest
from support.planted_rows import make_examples

from dpo_lightning.data.checks.display_width import fold, measure_width, pad, quote_ends
from dpo_lightning.data.checks.findings import find_copied_prompts, find_equal_answers, find_other_scripts
from dpo_lightning.data.checks.lengths import compare_lengths, measure_characters, summarize
from dpo_lightning.data.checks.normalization import make_question, normalize
from dpo_lightning.data.checks.scripts import choose_script, count_scripts
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.kinds.pairs import PairExample
from dpo_lightning.data.kinds.sft import SFTExample


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  C? ", "what is c"),
        ("Don’t stop!", "DONT STOP"),
        ("안녕하세요?", "안녕하세요 ..."),
        ("ＡＢＣ「漢字」", "abc 漢字"),
        ("Straße", "STRASSE"),
        ("It happened in 2020.", "it happened in 2020"),
    ],
)
def test_case_space_and_punctuation_do_not_count(one, other):
    assert normalize(one) == normalize(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is C?", "What is C#?"),
        ("2*3", "2-3"),
        ("2 - 3", "2 + 3"),
        ("3.5", "35"),
        ("-3", "3"),
        ("की", "का"),
        ("7", "8"),
    ],
)
def test_digits_operators_and_vowel_signs_count(one, other):
    assert normalize(one) != normalize(other)


def test_the_context_of_a_question_is_all_but_its_last_turn():
    turns = [("system", "Be kind."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "Why?")]
    prompt = tuple({"role": role, "content": content} for role, content in turns)
    answer = ({"role": "assistant", "content": "Because."},)
    question = make_question(SFTExample(Origin("a", 1), prompt, (answer,)))
    assert question.text == "why"
    assert question.context == "system be kind \nuser hi \nassistant hello"
    (plain,) = make_examples([("Why?", "a", "b")])
    assert make_question(plain) == ("", "why")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Keep it in a glass.", "Latin"),
        ("물을 자주 주세요", "Hangul"),
        ("东京的天气怎么样", "Han"),
        ("東京の天気はどうですか", "Kana"),
        ("Как починить часы?", "Cyrillic"),
        ("كيف أصلح الساعة", "Arabic"),
        ("Ελληνικά γράμματα", "Greek"),
        ("हिन्दी में लिखो", "Devanagari"),
        ("ภาษาไทย", "Thai"),
        ("`print(x)` 함수를 설명해 줘", "Hangul"),
        ("```python\nprint('hello')\n```\n섞입니다.", "Hangul"),
        ("42", ""),
        ("B", ""),
        ("", ""),
    ],
)
def test_the_script_of_a_text(text, script):
    assert choose_script(count_scripts(text)) == script


def find_scripts(*texts):
    examples = make_examples([(prompt, chosen, "no") for prompt, chosen in texts])
    return find_other_scripts(examples, [count_scripts(example.prompt) for example in examples]).places


def test_answers_in_another_script_are_found():
    assert find_scripts(
        ("Why does ice float on water?", "얼음은 물보다 가볍기 때문입니다."),
        ("얼음은 왜 물에 뜨나요?", "Because it is less dense than water."),
        ("Why does ice float on water?", "Because it is less dense."),
        ("Translate 'good morning' into Korean", "좋은 아침입니다."),
        ("다음을 영어로 옮겨 줘: 좋은 아침", "Good morning to you."),
        ("파이썬으로 출력해 줘", "```python\nprint('hello world')\n```"),
        ("몇 개인가요?", "42"),
        ("東京の天気", "晴れのち曇りでしょう"),
    ) == ["rows:1", "rows:2"]


def test_the_label_of_a_bad_answer_is_enough():
    from dpo_lightning.data.kinds.unpaired import UnpairedExample

    texts = "Why does ice float on water?", ("얼음은 물보다 가볍기 때문입니다.",)
    examples = [UnpairedExample(Origin("rows", i), *texts, good=good) for i, good in ((1, True), (2, False))]
    assert find_other_scripts(examples, [count_scripts(texts[0])] * 2).places == ["rows:1"]


def test_answers_that_hardly_differ_are_found():
    examples = make_examples(
        [
            ("p", "The same answer.", "the same  ANSWER"),
            ("p", "The same answer.", "The same answer. "),  # `fit` notes this one
            ("p", "The same answer.", "The other answer."),
            ("p", "x = 1", "x = 2"),
            ("p", "word " * 500, "Word " * 500),
        ]
    )
    assert find_equal_answers(examples).places == ["rows:1", "rows:5"]


def test_copies_of_the_prompt_are_found():
    prompt = "Case studies of banks?"
    examples = make_examples(
        [
            (prompt, prompt + "\n\nBanks are many.", "no"),
            (prompt, "Banks are many.", f"  {prompt} Banks"),
            (prompt, "CASE STUDIES OF BANKS? A title", "no"),
            ("Name a bank", "Name a bankrupt", "no"),
            ("Hi", "Hi there", "no"),
        ]
    )
    assert find_copied_prompts(examples).places == ["rows:1", "rows:2"]


def test_lengths_and_the_longer_answer():
    examples = make_examples([("p" * i, "c" * (2 * i), "r" * (3 if i < 8 else 30)) for i in range(1, 11)])
    measured = measure_characters("pairs", examples)
    lengths = summarize("characters", measured)
    assert (lengths.texts["prompt"].median, lengths.texts["prompt"].p90, lengths.texts["prompt"].max) == (5, 9, 10)
    assert lengths.texts["row"].max == 40
    wins = compare_lengths(measured)
    assert (wins.interval.estimate, wins.rows, wins.ties, wins.biased) == (0.6, 10, 0, "")
    assert summarize("tokens", measured, 30).over_max_length == 3
    assert compare_lengths([{"prompt": 1, "chosen": 2, "rejected": 2}]) is None
    assert compare_lengths([{"prompt": 1, "completion": 2}]) is None


@pytest.mark.parametrize(("low", "biased"), [(True, "shorter"), (False, "longer")])
def test_a_bias_is_named(low, biased):
    row = {"prompt": 1, "chosen": 2 if low else 9, "rejected": 5}
    assert compare_lengths([row] * 50).biased == biased


def test_ranked_lists_compare_their_ends():
    measured = [{"prompt": 1, "answer 1": 9, "answer 2": 1, "answer 3": 5}] * 4
    assert compare_lengths(measured).interval.estimate == 1
    assert list(summarize("characters", measured).texts) == ["prompt", "answers", "row"]


@pytest.mark.parametrize(("text", "width"), [("abc", 3), ("가나", 4), ("e\u0301", 1), ("漢😀", 4), ("", 0)])
def test_display_width(text, width):
    assert measure_width(text) == width
    assert measure_width(pad(text, 8)) == 8


def test_folding_keeps_every_character():
    text = "가나다abc漢字" * 5
    lines = list(fold(text, 9))
    assert "".join(lines) == text
    assert max(map(measure_width, lines)) <= 9


def test_a_long_text_is_shown_by_its_ends():
    assert quote_ends("a\u202eb", 20) == (r"a\u202eb", "")
    head, tail = quote_ends("시작" + "x" * 1000 + "끝", 20)
    assert (head, tail) == ("시작xxxxxx", "xxxxxxxx끝")


def test_pairs_of_messages_are_read():
    user, assistant = ({"role": role, "content": f"I am the {role} here"} for role in ("user", "assistant"))
    copy = {"role": "assistant", "content": "I am the user here, indeed"}
    pair = PairExample(Origin("rows", 1), (user,), ((copy,), (assistant,)))
    assert find_copied_prompts([pair]).places == ["rows:1"]
    assert measure_characters("pairs", [pair])[0]["rejected"] == len("I am the assistant here")
