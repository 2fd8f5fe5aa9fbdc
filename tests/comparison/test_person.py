"""A person at the terminal: blind, in a drawn order, and kept after each verdict."""

import pytest
from support.refusals import refused

from dpo_lightning.comparison.judges.person import PersonJudge
from dpo_lightning.errors import ExitCode

PROMPTS = [f"prompt {n}" for n in range(12)]
ANSWERS = [[f"good {n}" for n in range(12)], [f"bad {n}" for n in range(12)]]


class Terminal:
    """Someone who types; `typed` gives what, by the two answers as they were shown last."""

    def __init__(self, typed):
        self.typed, self.shown, self.questions = typed, [], 0

    def write(self, text):
        self.shown.append(text)

    def read(self, question):
        self.questions += 1
        return self.typed(*self.shown[-2:])


def judge(folder, typed, seed=0):
    terminal = Terminal(typed)
    return PersonJudge(folder / "c.verdicts.jsonl", seed, terminal.read, terminal.write), terminal


def prefer_good(first, second):
    return "1" if "good" in first else "2"


def test_the_better_answer_wins_wherever_it_is_shown(tmp_path):
    person, terminal = judge(tmp_path, prefer_good)
    assert person.decide(PROMPTS, ANSWERS).outcomes[0, 1] == [1] * 12
    assert PersonJudge(tmp_path / "c.verdicts.jsonl").decide(PROMPTS, ANSWERS[::-1]).outcomes[0, 1] == [0] * 12
    places = {"good" in text for text in terminal.shown[1::3]}
    assert places == {True, False}, "the order has to be drawn"


def test_the_first_answer_is_no_model(tmp_path):
    """Someone who always takes the first answer prefers neither model much."""
    person, _ = judge(tmp_path, lambda *_: "1")
    assert set(person.decide(PROMPTS, ANSWERS).outcomes[0, 1]) == {0, 1}


def test_names_of_models_are_not_shown(tmp_path):
    person, terminal = judge(tmp_path, lambda *_: "1")
    person.decide(["p"], [["x"], ["y"]])
    assert sorted(terminal.shown) == sorted(["===== 1 of 1: prompt\np\n", *terminal.shown[1:]])
    assert {text.splitlines()[1] for text in terminal.shown[1:]} == {"x", "y"}
    assert [text.splitlines()[0] for text in terminal.shown[1:]] == ["----- answer 1", "----- answer 2"]


def test_ties_skips_and_typing_errors(tmp_path):
    typed = iter(["x", "", " T ", "s", "11", "1", "s"])
    person, terminal = judge(tmp_path, lambda *_: next(typed))
    found = person.decide(["p", "q", "r", "s"], [["a", "b", "c", "d"], ["e", "f", "g", "h"]])
    assert found.outcomes[0, 1][:2] == [0.5, None]
    assert found.outcomes[0, 1][2] in (0, 1)
    assert found.outcomes[0, 1][3] is None
    assert (found.counts[0, 1], terminal.questions) == ({"skipped": 2}, 7)


def test_control_characters_are_escaped(tmp_path):
    person, terminal = judge(tmp_path, lambda *_: "1")
    person.decide(["p"], [["\x1b[2J\u202eevil"], ["안녕\n\tcode"]])
    shown = "".join(terminal.shown)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "안녕\n\tcode" in shown


@pytest.mark.parametrize("end", ["q", EOFError])
def test_it_continues_where_it_stopped(tmp_path, end):
    typed = iter(["1", "2", end])

    def stop(*_):
        key = next(typed)
        if key is EOFError:
            raise EOFError
        return key

    person, _ = judge(tmp_path, stop)
    said = refused(person.decide, PROMPTS, ANSWERS, code=ExitCode.RESUMABLE)
    assert "before comparison 3 of 12" in said
    person, terminal = judge(tmp_path, prefer_good)
    person.decide(PROMPTS, ANSWERS)
    assert terminal.questions == 10
    assert terminal.shown[0] == "===== 3 of 12: prompt\nprompt 2\n"
