"""Figures, table and page of a comparison."""

import json
from pathlib import Path

import pytest
from support.answers import make_result
from support.browser import needs_browser, read_page
from support.chat_servers import serve

from dpo_lightning.comparison.judges.base import ScoreJudge, Verdicts
from dpo_lightning.comparison.pairing import match_results
from dpo_lightning.comparison.report import format_lines, make_report, write_report

KOREAN = "대한민국의 수도는 서울입니다."
CODE = "```python\ndef f(x):\n    if x:\n\t\treturn x  # two\n```\n"


class ByLength(ScoreJudge):
    """The longer answer wins."""

    def describe(self):
        return {"judge": "length"}

    def score(self, prompts, answers, origins):
        return [len(answer) for answer in answers]


@pytest.fixture(autouse=True)
def at_home(place):
    """Files are named without their folder."""


def compare(*models):
    """The report on models whose answers are given."""
    results = [
        make_result(Path(f"{nth}.json"), [(f"prompt {n}", answer) for n, answer in enumerate(answers)])
        for nth, answers in enumerate(models)
    ]
    matched = match_results(results)
    judge = ByLength()
    return make_report(matched, judge.decide(matched.prompts, matched.answers), judge.describe())


def page(*models):
    return write_report(compare(*models), Path("c.json"))[1].read_text("utf-8")


def test_the_figures_of_two_models():
    """Worked by hand: 4 wins, 1 tie, 1 loss."""
    report = compare(["aa", "aa", "aa", "aa", "a", "a"], ["b", "b", "b", "b", "b", "bb"])
    (found,) = report["comparisons"]
    assert (found["wins"], found["ties"], found["losses"], found["prompts"], found["equal"]) == (4, 1, 1, 6, 0)
    assert found["rate"]["estimate"] == pytest.approx(4.5 / 6)
    assert found["rate"]["low"] < 4.5 / 6 < found["rate"]["high"]
    assert found["p_value"] == pytest.approx(2 * 6 / 32)
    assert found["mean_length"] == [pytest.approx(10 / 6), pytest.approx(7 / 6)]
    assert found["slices"]["group"]["code"]["wins"] == 2
    assert {name: sum(part["wins"] for part in own.values()) for name, own in found["slices"].items()} == {
        "group": 4,
        "language": 4,
    }
    assert report["strengths"] is None
    assert [row["outcomes"] for row in report["rows"]] == [[1], [1], [1], [1], [0.5], [0]]
    assert report["rows"][5]["scores"] == [1, 2]


def test_json_and_page_are_written_whatever_the_suffix():
    report = compare(["a"], ["bb"])
    assert write_report(report, Path("x.html")) == (Path("x.json"), Path("x.html"))
    assert json.loads(Path("x.json").read_text("utf-8")) == report


def test_a_model_against_itself():
    report = compare(["a", "b"], ["a", "b"])
    assert (report["equal"], report["comparisons"][0]["ties"]) == (2, 2)
    assert "all answers are equal" in "\n".join(format_lines(report))
    assert "All answers of the models are equal" in page(["a", "b"], ["a", "b"])
    assert "answers of the models are equal" not in page(["a", "b"], ["a", "c"])


def test_three_models_are_ranked():
    report = compare(["a"] * 9, ["bbb"] * 9, ["cc"] * 9)
    assert [each["name"] for each in report["strengths"]] == ["B 1.json", "C 2.json", "A 0.json"]
    assert all(each["low"] < each["estimate"] < each["high"] for each in report["strengths"])
    lines = format_lines(report)
    assert "B 1.json" in lines[-3]
    text = page(["a"] * 9, ["bbb"] * 9, ["cc"] * 9)
    assert "Bradley-Terry" in text
    assert "row against column" in text


def test_prompts_that_were_skipped_are_left_out():
    results = [make_result(Path(f"{k}.json"), [("p", "a"), ("q", f"b{k}")]) for k in range(2)]
    report = make_report(
        match_results(results), Verdicts({(0, 1): [1.0, None]}, None, {(0, 1): {"skipped": 1}}), {"judge": "j"}
    )
    assert (report["comparisons"][0]["prompts"], report["comparisons"][0]["wins"]) == (1, 1)
    report = make_report(
        match_results(results), Verdicts({(0, 1): [None, None]}, None, {(0, 1): {"skipped": 2}}), {"judge": "j"}
    )
    assert "no prompt has a verdict" in "\n".join(format_lines(report))
    assert "no verdict" in write_report(report, Path("c.json"))[1].read_text("utf-8")


def test_the_table_fits_a_terminal():
    lines = format_lines(compare(["a", "bb", "c"], ["bb", "c", "ddd"]))
    assert max(map(len, lines)) <= 100
    assert lines[0] == "3 prompts, judge: length"


def test_what_differs_is_marked_and_space_is_kept():
    text = page([KOREAN, CODE], [KOREAN.replace("서울", "부산"), CODE.replace("two", "2")])
    assert "대한민국의 수도는 <del>서울입니다</del>." in text
    assert "대한민국의 수도는 <ins>부산입니다</ins>." in text
    assert "def f(x):\n    if x:\n\t\treturn x  # <del>two</del>\n```\n</div>" in text
    assert "white-space: pre-wrap" in text


def test_markup_of_answers_is_text():
    text = page(["<script>alert(1)</script>"], ["</div><img src=x onerror=alert(1)>{{ 7 * 1111 }}"])
    assert "<script" not in text
    assert "<img" not in text
    assert "7777" not in text


def test_calls_of_tools_are_shown():
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"name": "날씨"}]}]
    results = [make_result(Path(f"{name}.json"), [(prompt, name)]) for name in "ab"]
    report = make_report(match_results(results), Verdicts({(0, 1): [1.0]}, None, {(0, 1): {}}), {"judge": "j"})
    text = write_report(report, Path("c.json"))[1].read_text("utf-8")
    assert '<div class="text">[{&#34;name&#34;: &#34;날씨&#34;}]</div>' in text


def test_only_the_first_prompts_are_shown(monkeypatch):
    monkeypatch.setattr("dpo_lightning.comparison.report.MOST_SHOWN", 2)
    text = page(["a", "b", "c"], ["d", "e", "f"])
    assert "The first 2 prompts" in text
    assert "Prompt 3" not in text


@needs_browser
def test_a_browser_runs_and_requests_nothing(tmp_path):
    """Markup is put in past the escaping as well, so that the page's own policy is what stops it."""
    with serve(lambda payload: (200, b"")) as server:
        evil = f"<script>document.title = 'changed'</script><img src='{server.url}/x.png' onerror='document.title = 1'>"
        evil += f"<link rel=stylesheet href='{server.url}/x.css'><iframe src='{server.url}/f'></iframe>"
        path = write_report(compare([evil, KOREAN, CODE], ["b", "서울", "c"]), Path("c.json"))[1].absolute()
        seen = read_page(path, tmp_path / "profile")
        assert "&lt;script&gt;document.title" in seen
        assert KOREAN.split()[0] in seen
        path.write_text(path.read_text("utf-8").replace("<h1>", f"{evil}<h1>"), "utf-8")
        seen = read_page(path, tmp_path / "profile")
        assert "<script>document.title" in seen
        assert "<title>Comparison of A" in seen
        assert server.asked == []
