"""Chat templates that do not end or grow without bound: an error that names them, in bounded time and memory."""

import contextlib
import json
import resource
import shutil
import signal
import threading

import numpy as np
import pytest
from support import tiny_models
from support.command_line import Bench, refused, run

from dpo_lightning import limits
from dpo_lightning.data.encoding import template_limits
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.limits import LimitError, limit_resources, prepare_limits

LOOP = "{% for i in range(99999) %}"
ENDLESS = {
    "nested loops": LOOP * 4 + "x" + "{% endfor %}" * 4,
    "silent loops": LOOP * 4 + "{% set x = i %}" + "{% endfor %}" * 4,
    "a loop over repeats": "{% for i in (messages * 100000000) %}{% for j in messages * 10 %}{% endfor %}{% endfor %}",
    "a huge power": "{% set x = 9 ** (9 ** 9) %}",
    "a folded power": "{{ 9 ** (9 ** 9) }}",
    "macros": "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{% macro g(n) %}{% if n %}"
    "{{ g(n - 1) }}{{ g(n - 1) }}{% endif %}{% endmacro %}{{ g(60) }}",
    "a recursive loop": "{% for m in [[1]] recursive %}" + LOOP * 3 + "{% endfor %}" * 3 + "{% endfor %}",
    "words": "{{ lipsum(100000000) }}",
    "slices": "{% for part in messages|slice(10000000000) %}{% endfor %}",
}
DOUBLED = "{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
GROWING = {
    "a string times a number": "{{ 'x' * 10 ** 10 }}",
    "a string times a variable": "{% set n = messages|length * 10 ** 10 %}{{ 'x' * n }}",
    "a doubled string": "{% set ns = namespace(s='x') %}" + DOUBLED,
    "a padded string": "{{ 'x'|center(10000000000) }}",
    "a format": "{{ '%010000000000d' % 1 }}",
    "an indent": "{{ messages|tojson(indent=10000000000) }}",
    "a list": "{% set x = [messages] * 10 ** 10 %}",
    "a range in a list": "{% set ns = namespace(s=[1]) %}" + DOUBLED,
    "a long text": "{{ 'x' * 10 ** 8 }}",
    "a replacement": "{{ ('x' * 100000)|replace('x', 'x' * 100000) }}",
}
FAILING = {
    "a range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a number beyond every index": "{{ 'x' * 10 ** 30 }}",
    "a division": "{{ 1 / 0 }}",
    "brackets": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "a loop in itself": "{% set ns = namespace() %}{% set ns.x = {'a': ns} %}{{ ns.x|tojson }}",
    "no text": "{{ messages[0].content.nothing.at.all }}",
    "syntax": "{% for %}",
}
USUAL = "{{ messages[0].content }}"


@pytest.fixture(autouse=True)
def shorter(monkeypatch):
    """A limit that is reached sooner."""
    monkeypatch.setattr(template_limits, "TEMPLATE_SECONDS", 0.5)


def messages():
    """A short conversation."""
    return ({"role": "user", "content": "hi"},)


def renderer(template):
    """A renderer whose tokenizer has a template."""
    tokenizer = tiny_models.make_chat_tokenizer(template=template)
    return Renderer(tokenizer)


@pytest.mark.parametrize("name", [*ENDLESS, *GROWING])
def test_a_template_without_bound_is_refused(name):
    before = (signal.getsignal(signal.SIGPROF), resource.getrlimit(resource.RLIMIT_AS))
    with pytest.raises(UserError, match=r"the chat template (takes|writes)") as raised:
        renderer((ENDLESS | GROWING)[name]).encode_prompt(messages())
    assert raised.value.code == ExitCode.MODEL
    assert before == (signal.getsignal(signal.SIGPROF), resource.getrlimit(resource.RLIMIT_AS))
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


@pytest.mark.parametrize("name", FAILING)
def test_a_template_that_fails_is_refused(name):
    with pytest.raises(UserError, match="the chat template") as raised:
        renderer(FAILING[name]).encode_prompt(messages())
    assert raised.value.code == ExitCode.MODEL


def test_a_template_that_is_endless_for_some_rows_only():
    hidden = renderer("{% if messages[0].content == 'go' %}" + ENDLESS["nested loops"] + "{% endif %}" + USUAL)
    hidden.encode_prompt(messages())
    with pytest.raises(UserError, match="takes more than"):
        hidden.encode_prompt(({"role": "user", "content": "go"},))


def test_many_slow_renderings_are_one_that_does_not_end():
    slow = renderer("{% for i in range(99999) %}{% for j in range(9) %}{% endfor %}{% endfor %}" + USUAL)
    with pytest.raises(UserError, match="takes more than"):
        [slow.encode_prompt(messages()) for _ in range(1000)]


def test_a_long_conversation_may_be_long(monkeypatch):
    """A template may write a text more than once, and something of its own."""
    monkeypatch.setattr(template_limits, "MAX_ADDED", 100)
    long = ({"role": "user", "content": "word " * 1000},)
    renderer("x" * 100 + USUAL * 4).encode_prompt(long)
    with pytest.raises(UserError, match="the chat template writes 30,000 characters"):
        renderer(USUAL * 6).encode_prompt(long)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"])
def test_the_file_of_the_template_is_named(tiny_llama, tmp_path, place):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    template = ENDLESS["nested loops"]
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if place == "tokenizer_config.json":
        config = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps(config | {"chat_template": template}))
    elif place == "additional_chat_templates":  # one that is chosen where there are tools
        (folder / place).mkdir()
        (folder / place / "tool_use.jinja").write_text(template)
        (folder / "chat_template.jinja").write_text(template)
    else:
        (folder / place).write_text(template)
    ran = run("infer", "--model", folder, "--instruction", "hi", "--max_new_tokens", 2)
    refused(ran, 67, "the chat template", str(folder), "tokenizer_config.json" if "json" in place else ".jinja")


@pytest.mark.parametrize("name", ["nested loops", "a string times a number"])
def test_a_template_of_a_run_leaves_no_folder(tiny_llama, tmp_path, name):
    bench = Bench(tmp_path, tiny_llama)
    (tmp_path / "own.jinja").write_text((ENDLESS | GROWING)[name])
    ran = bench.fit("--data.chat_template", tmp_path / "own.jinja", "--data.template", "chat")
    refused(ran, 67, "the chat template takes", "data.chat_template")
    assert not (tmp_path / "run").exists()


def test_what_a_library_catches_is_stopped_all_the_same():
    def stubborn():
        with contextlib.suppress(LimitError):
            while True:
                pass
        while True:
            pass

    with pytest.raises(LimitError), limit_resources(seconds=0.2):
        stubborn()


def run_without_end():
    while True:
        pass


def test_limits_that_were_prepared_hold_in_each_block():
    before = signal.getsignal(signal.SIGPROF), resource.getrlimit(resource.RLIMIT_AS)
    with prepare_limits():
        for _ in range(2):
            with limit_resources(seconds=100):
                assert signal.getitimer(signal.ITIMER_PROF)[0] > 0
            assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
            with pytest.raises(LimitError), limit_resources(seconds=0.1):
                run_without_end()
            with pytest.raises(MemoryError), limit_resources(seconds=100):
                np.empty(1 << 33, dtype=np.uint8)
    assert (signal.getsignal(signal.SIGPROF), resource.getrlimit(resource.RLIMIT_AS)) == before
    with pytest.raises(LimitError), limit_resources(seconds=0.1):
        run_without_end()


def test_a_limit_that_is_not_reached_changes_nothing():
    with limit_resources(seconds=100):
        made = bytearray(1 << 20)
    assert len(made) == 1 << 20
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_a_limit_of_memory():
    """More than other tests may have left behind; without the limit no page of it would be touched."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), limit_resources(seconds=100, room=1 << 26):
        np.empty(1 << 33, dtype=np.uint8)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize(("soft", "lowered"), [(resource.RLIM_INFINITY, True), (1 << 60, True), (1 << 20, False)])
def test_a_lower_limit_of_memory_stays(monkeypatch, soft, lowered):
    made = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits[0]))
    with limit_resources(seconds=100, room=1 << 30):
        inside = list(made)
    assert len(inside) == lowered
    assert all(1 << 30 < limit < 1 << 60 for limit in inside)
    assert made == [*inside, soft]


def test_a_system_that_tells_no_memory_has_no_limit_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "MEMORY_PAGES", tmp_path / "nothing")
    before = resource.getrlimit(resource.RLIMIT_AS)
    with limit_resources(seconds=100, room=1 << 20):
        assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, None])
def test_the_handler_that_was_there_comes_back(monkeypatch, handler):
    """None: one that a profiler set before Python began, which cannot be set again."""
    made = []
    monkeypatch.setattr(signal, "signal", lambda _, new: made.append(new) or handler)
    with limit_resources(seconds=100):
        pass
    assert made == [limits.raise_limit_error, handler or signal.SIG_DFL]


def test_another_thread_has_no_limit_of_time():
    ended = []

    def call():
        with limit_resources(seconds=100):
            ended.append(signal.getitimer(signal.ITIMER_PROF))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert ended == [(0, 0)]
