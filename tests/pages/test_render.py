"""Pages: values are shown as text, nothing is requested, and figures are formatted alike."""

import re

import jinja2
import pytest

from dpo_lightning.intervals import Interval
from dpo_lightning.pages import render as module
from dpo_lightning.pages.render import format_interval, format_number, render


@pytest.fixture
def shown(monkeypatch):
    """Render the content of a page."""
    templates = module.load_templates()

    def show(content, **values):
        head = "{% extends 'base.html.j2' %}{% block title %}T{% endblock %}"
        page = f"{head}{{% block content %}}{content}{{% endblock %}}"
        found = templates.overlay(loader=jinja2.ChoiceLoader([jinja2.DictLoader({"p": page}), templates.loader]))
        monkeypatch.setattr(module, "load_templates", lambda: found)
        return render("p", **values)

    return show


def test_markup_in_values_is_text(shown):
    text = "</div><script>alert(1)</script> \" ' &"
    page = shown("<p title='{{ text }}'>{{ text }}</p>", text=text)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &#34; &#39; &amp;") == 2


def test_a_page_requests_nothing(shown):
    page = shown("")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert not re.search(r"https?://|<script|<link|src=|@import|url\(", page)
    assert page.index("charset") < page.index("<title>")


def test_a_missing_value_is_an_error(shown):
    with pytest.raises(jinja2.UndefinedError, match="measure"):
        shown("{{ measure }}")


def test_a_page_is_utf8(shown):
    assert "<p>한?</p>" in shown("<p>{{ text }}</p>", text="한\ud83d")


def test_texts_have_the_direction_of_their_script(shown):
    """Each line that of its first letter: Arabic from the right, code within it from the left."""
    style = re.search(r"\.text \{([^}]*)\}", shown("")).group(1)
    assert "unicode-bidi: plaintext; text-align: start" in style


@pytest.mark.parametrize(
    ("value", "text"), [(0.71254, "0.7125"), (12, "12"), (1.23e-5, "1.23e-05"), (None, "–"), (-0.5, "-0.5")]
)
def test_numbers(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Interval(0.7, 0.61, 0.78), "0.7 [0.61, 0.78]"),
        ({"estimate": 0.7, "low": 0.61, "high": 0.78, "count": 9}, "0.7 [0.61, 0.78]"),
        ({"estimate": 0.7, "low": None, "high": None, "count": 1}, "0.7"),
        (None, "–"),
    ],
)
def test_intervals(value, text):
    assert format_interval(value) == text
