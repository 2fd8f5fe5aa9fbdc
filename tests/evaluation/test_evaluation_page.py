"""The page of an evaluation in a browser: what must be seen, markup of answers as text, and no request."""

import html

import pytest
from support.browser import needs_browser, read_page
from support.chat_servers import serve

from dpo_lightning.evaluation.report import MOST_SHOWN, write_page
from dpo_lightning.evaluation.result_file import write_result
from dpo_lightning.evaluation.summary import summarize

KOREAN = "비밀번호는 길고 서로 다르게 만드세요."
CODE = "```python\ndef f(x):\n\treturn x  # <b>two</b>\n```"


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": KOREAN}]


def make_result(path, generated, rows=3, prompt=CHAT):
    item = {
        "prompt": prompt,
        "chosen": CODE,
        "rejected": "no",
        "generated": generated,
        "file": "rows.jsonl",
        "group": "code",
        "language": "ko",
        "tokens": 5,
        "ended": False,
        "repetition": 0.0,
        "refusal": True,
        "kl": 0.25,
        "margin": 0.5,
        "logratio_margin": 5.0,
        "chosen_logps": -10.0,
        "rejected_logps": -4.0,
        "chosen_tokens": 10,
        "rejected_tokens": 3,
    }
    items = [item | {"line": line} for line in range(1, rows + 1)]
    measures, slices = summarize(items)
    made_by = {
        "model": {"path": "outputs/모델"},
        "reference": {"path": "models/start"},
        "data": {"rows.jsonl": "sha256:1"},
    }
    return write_result(path, items, {"made_by": made_by, "measures": measures, "slices": slices})


def test_only_the_first_rows_are_shown(tmp_path):
    page = write_page(make_result(tmp_path / "eval.json", "x", MOST_SHOWN + 1)).read_text("utf-8")
    assert f"The first {MOST_SHOWN} of {MOST_SHOWN + 1} rows" in page
    assert f"rows.jsonl:{MOST_SHOWN}," in page
    assert f"rows.jsonl:{MOST_SHOWN + 1}," not in page


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"role": "assistant", "tool_calls": [{"function": {"name": "날씨"}}]}, '[{"function": {"name": "날씨"}}]'),
        ({"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, '[{"name": "f"}]'),
        ({"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}, "one\ntwo"),
        ({"role": "user"}, ""),
    ],
    ids=["a call", "a call without text", "parts", "nothing"],
)
def test_a_message_whose_content_is_no_text(tmp_path, message, shown):
    """A prompt may hold the assistant's call of a tool and the tool's answer."""
    prompt = [CHAT[1], message, {"role": "tool", "content": "3 degrees"}]
    page = html.unescape(write_page(make_result(tmp_path / "eval.json", "x", 1, prompt)).read_text("utf-8"))
    assert f'<span class="soft">{message["role"]}</span>\n{shown}</div>' in page
    assert "3 degrees</div>" in page


@needs_browser
@pytest.mark.parametrize("marked_safe", [False, True])
def test_a_browser_shows_it_and_requests_nothing(tmp_path, marked_safe):
    """Also where the escaping is undone: then the page's policy stops scripts and requests."""
    with serve(lambda payload: (200, b"")) as server:
        evil = f"<script>document.title = 'changed'</script><img src='{server.url}/x.png' onerror='document.title = 1'>"
        path = write_page(make_result(tmp_path / "eval.json", evil))
        if marked_safe:
            path.write_text(path.read_text("utf-8").replace("<h1>", f"{evil}<h1>"), "utf-8")
        seen = read_page(path, tmp_path / "profile")
        assert server.asked == []
    for text in (
        "<title>Evaluation of outputs/모델</title>",
        KOREAN,
        "def f(x):\n\treturn x  # &lt;b&gt;two&lt;/b&gt;",
        "&lt;script&gt;document.title",
        "cut at the limit, refusal",
        "accuracy by implicit reward",
        "margin 5 nats",
    ):
        assert text in seen, text
