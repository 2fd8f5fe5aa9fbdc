"""A template writes the same at every rendering: the day is given, chance is refused."""

import datetime

import pytest
from support import tiny_models
from support.chat_templates import LLAMA, LLAMA_FIXED
from support.tiny_models import CHATML, turns
from transformers.utils import chat_template_utils

from dpo_lightning.data.encoding import chat_templates
from dpo_lightning.data.encoding.chat_templates import RunDate, build_date_options, check_repeatable, parse_date
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.errors import ExitCode, UserError

DAY = datetime.date(2026, 3, 5)
HELLO = turns(("user", "Hello"))


def set_clock(monkeypatch, *time):
    """Let the clock that transformers reads stand at a time."""

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(*time)

    monkeypatch.setattr(chat_template_utils, "datetime", Stopped)


@pytest.mark.parametrize(
    "template",
    [
        LLAMA,
        "{{ strftime_now('%d %b %Y') }}",
        "\n{{ strftime_now('%-d/%-m/%y') }}\n\n  {% if true %}x{% endif %}\n y",
        "  {% if strftime_now is defined %}\n  {%- set day = strftime_now(format='%Y-%m-%d') %}{{ day }}{% endif %}",
        "{{ strftime_now('100%% on %A, %d %B; week %V, day %j, at %H:%M:%S or %I %p') }}",
        "{% set form = '%' + 'Y' %}{% macro year() %}{{ strftime_now(form) }}{% endmacro %}{{ (year() | int) - 1 }}",
        "{% for m in messages %}{{ strftime_now('%e %h %F %T') + m.content + strftime_now('') }}{% endfor %}",
        CHATML.replace("{% for", "{{ strftime_now('%B %d, %Y') }}{% for", 1),
    ],
)
def test_a_given_day_is_written_as_the_clock_would_write_it_then(template, monkeypatch):
    made = tiny_models.make_chat_tokenizer(template=template)
    set_clock(monkeypatch, 2026, 3, 5)
    expected = render(made)
    set_clock(monkeypatch, 2031, 12, 31)
    assert render(made) != expected
    assert render(made, **build_date_options(template, DAY)) == expected


def render(made, **options):
    return made.apply_chat_template(list(HELLO), tokenize=False, add_generation_prompt=True, **options)


def test_the_renderer_writes_the_day_and_the_tokenizers_template_stays_as_it_is(monkeypatch):
    made = tiny_models.make_chat_tokenizer(template=LLAMA)
    renderer = Renderer(made, day=DAY)
    assert not renderer.wrote_date
    first = renderer.encode_prompt("Hello")
    assert "Today Date: 05 Mar 2026\n" in made.decode(first)
    assert renderer.wrote_date
    set_clock(monkeypatch, 2031, 12, 31)
    assert renderer.encode_prompt("Hello") == first
    assert Renderer(made, day=DAY).encode_prompt("Hello") == first
    assert "31 Dec 2031" in made.decode(Renderer(made).encode_prompt("Hello"))
    assert made.chat_template == LLAMA


def test_a_template_of_several_is_the_one_for_tools(monkeypatch):
    plain = LLAMA.replace("Today Date", "Date")
    made = tiny_models.make_chat_tokenizer(template={"default": plain, "tool_use": LLAMA + "{{ tools | tojson }}"})
    renderer = Renderer(made, day=DAY)
    assert "\nDate: 05 Mar 2026" in made.decode(renderer.encode_prompt("Hello"))
    tools = ({"name": "weather", "parameters": {}},)
    assert "Today Date: 05 Mar 2026" in made.decode(renderer.encode_prompt("Hello", tools))


def test_a_day_that_is_given_reaches_templates_with_a_day_of_their_own():
    made = tiny_models.make_chat_tokenizer(template=LLAMA_FIXED)
    assert "26 Jul 2024" in made.decode(Renderer(made).encode_prompt("Hello"))
    assert "05 Mar 2026" in made.decode(Renderer(made, day=DAY).encode_prompt("Hello"))


def test_the_day_is_todays_only_where_the_template_writes_that():
    for template in (LLAMA, {"default": CHATML, "tool_use": LLAMA}):
        assert RunDate(None).choose_day(template) == datetime.date.today()
    for template in (LLAMA, CHATML):
        assert RunDate("2026-03-05").choose_day(template) == DAY
    for template in (CHATML, LLAMA_FIXED, None):
        assert RunDate(None).choose_day(template) is None


def test_a_day_stays_as_it_was_settled(monkeypatch):
    day = RunDate(None)
    first = day.choose_day(LLAMA)
    monkeypatch.setattr(chat_templates, "date", type("Later", (datetime.date,), {"today": lambda: DAY}))
    assert day.choose_day(LLAMA) == first != DAY
    assert RunDate(None).choose_day(LLAMA) == DAY


def test_ranks_take_the_first_ones_day(capsys):
    day = RunDate("2026-03-06")
    assert not day.adopt(lambda _: pytest.fail("no date is written"))
    day.choose_day(LLAMA)
    day.log(written=True)
    assert day.adopt(lambda _: DAY)
    assert day.choose_day(LLAMA) == DAY
    assert not day.adopt(lambda own: own)


@pytest.mark.parametrize("template", [CHATML, None])
def test_a_day_changes_no_other_template(template):
    made = tiny_models.make_tokenizer(template=template)
    renderer = Renderer(made, day=DAY)
    assert renderer.encode_prompt("Hello") == Renderer(made).encode_prompt("Hello")
    assert not renderer.wrote_date


def test_what_is_no_date_is_refused():
    assert parse_date("2026-03-05") == DAY
    assert parse_date(None) is None
    for text in ("tomorrow", "2026-02-30", "5 Mar 2026", ""):
        with pytest.raises(UserError, match=r"not a date at data\.template_date") as told:
            parse_date(text)
        assert told.value.code == ExitCode.CONFIG


@pytest.mark.parametrize(
    ("template", "drawn"),
    [
        ("{{ ['a', 'b'] | random }}", "|random"),
        ("{% set x = ['a', 'b']|random %}{{ x }}", "|random"),
        ("{{ lipsum(n=1) }}", "lipsum("),
    ],
)
def test_a_template_that_draws_at_random_is_refused(template, drawn):
    with pytest.raises(UserError) as told:
        check_repeatable(template)
    assert told.value.code == ExitCode.MODEL
    assert f"makes a random choice (`{drawn}`)" in str(told.value)


@pytest.mark.parametrize("template", [CHATML, LLAMA, None, "random | lipsum {{ m.random }} {{ 'a | random' }}", "{{ ("])
def test_a_template_that_does_not_is_let_be(template):
    check_repeatable(template)
