"""Judges: what they see, how verdicts become outcomes, and what is kept of an interrupted one."""

import pytest
from support.language_judges import BAD, GOOD, PROMPTS, TEMPLATE, for_good, judge
from support.refusals import refused

from dpo_lightning.comparison.judges.base import Duel, ScoreJudge
from dpo_lightning.comparison.judges.llm import parse_verdict, read_template
from dpo_lightning.comparison.judges.verdict_file import VerdictFile
from dpo_lightning.errors import ExitCode


class ByLength(ScoreJudge):
    """Scores by length, and writes down what it scores."""

    def __init__(self):
        self.seen = []

    def describe(self):
        return {"judge": "length"}

    def score(self, prompts, answers, origins):
        self.seen += zip(prompts, answers, strict=True)
        return [len(answer) for answer in answers]


class Scripted:
    """A language model whose replies a function decides; it stops after `most` of them."""

    name = "scripted"

    def __init__(self, reply, most=None):
        self.decide, self.most, self.seen, self.samplings = reply, most, [], []

    def reply(self, chats, sampling):
        self.samplings.append(sampling)
        for number, chat in enumerate(chats):
            if self.most == len(self.seen):
                raise KeyboardInterrupt
            self.seen.append(chat[0]["content"])
            yield number, self.decide(chat[0]["content"])


def test_scores_become_outcomes():
    found = ByLength().decide(PROMPTS, [["aa", "b", "c"], ["a", "bb", "d"]])
    assert found.outcomes == {(0, 1): [1, 0, 0.5]}
    assert found.scores == [[2, 1, 1], [1, 2, 1]]


def test_each_different_answer_is_scored_once():
    length = ByLength()
    length.decide(["p", "p"], [["a", "b"], ["a", "c"], ["a", "b"]])
    assert sorted(length.seen) == [("p", "a"), ("p", "b"), ("p", "c")]


def test_the_same_answer_to_another_prompt_is_another_one():
    length = ByLength()
    length.decide(["p", "q"], [["a", "a"], ["a", "a"]])
    assert length.seen == [("p", "a"), ("q", "a")]


def test_three_models_meet_each_other():
    assert set(ByLength().decide(["p"], [["a"], ["b"], ["c"]]).outcomes) == {(0, 1), (0, 2), (1, 2)}


def test_a_fair_judge_finds_the_better_model(tmp_path):
    found = judge(tmp_path, Scripted(for_good)).decide(PROMPTS, [GOOD, BAD])
    assert found.outcomes[0, 1] == [1, 1, 1]
    assert judge(tmp_path, Scripted(for_good)).decide(PROMPTS, [BAD, GOOD]).outcomes[0, 1] == [0, 0, 0]
    assert found.counts[0, 1] == {
        "without a verdict": 0,
        "replies without a verdict": 0,
        "orders disagree": 0,
        "for the first answer": 3,
        "for the second answer": 3,
        "refused by the judge": 0,
    }


def test_both_orders_are_shown(tmp_path):
    speaker = Scripted(for_good)
    judge(tmp_path, speaker).decide(["p"], [["good"], ["bad"]])
    assert speaker.seen == ["P p 1 good 2 bad V", "P p 1 bad 2 good V"]


@pytest.mark.parametrize(("reply", "name"), [("[[1]]", "first"), ("[[2]]", "second")])
def test_a_judge_that_always_takes_one_place_sees_ties_only(tmp_path, reply, name):
    found = judge(tmp_path, Scripted(lambda _: reply)).decide(PROMPTS, [GOOD, BAD])
    assert found.outcomes[0, 1] == [0.5, 0.5, 0.5]
    assert found.counts[0, 1]["orders disagree"] == 3
    assert found.counts[0, 1][f"for the {name} answer"] == 6


def test_a_tie_in_one_order_is_no_win(tmp_path):
    replies = iter(["[[1]]", "[[tie]]"])
    found = judge(tmp_path, Scripted(lambda _: next(replies))).decide(["p"], [["good"], ["bad"]])
    assert found.outcomes[0, 1] == [0.5]
    assert found.counts[0, 1]["orders disagree"] == 1


def test_equal_answers_are_a_tie_without_a_judge(tmp_path):
    speaker = Scripted(for_good)
    found = judge(tmp_path, speaker).decide(PROMPTS, [GOOD, GOOD])
    assert (found.outcomes[0, 1], speaker.seen) == ([0.5, 0.5, 0.5], [])


def test_nonsense_is_tried_again_and_then_never_a_win(tmp_path):
    speaker = Scripted(lambda text: for_good(text) if " q " in text else "I like both")
    found = judge(tmp_path, speaker, seed=5).decide(PROMPTS, [GOOD, BAD])
    assert found.outcomes[0, 1] == [0.5, 1, 0.5]
    assert found.counts[0, 1]["without a verdict"] == 2
    assert found.counts[0, 1]["replies without a verdict"] == 12
    assert len(speaker.seen) == 6 + 4 + 4
    assert [(each.seed, each.temperature) for each in speaker.samplings] == [(5, 0), (6, 0.7), (7, 0.7)]


def test_a_verdict_in_one_order_alone_is_a_tie(tmp_path):
    speaker = Scripted(lambda text: "[[1]]" if "1 good" in text else "?")
    found = judge(tmp_path, speaker).decide(["p"], [["good"], ["bad"]])
    assert (found.outcomes[0, 1], found.counts[0, 1]["without a verdict"]) == ([0.5], 1)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[1]]", "1"),
        ("Answer 2 is better.\n[[2]]", "2"),
        ("[[ TIE ]]", "tie"),
        ("[[1]] I repeat: [[1]]", "1"),
        ("[[1]] or [[2]]", None),
        ("[[1]] [[tie]]", None),
        ("[[3]]", None),
        ("[[A]]", None),
        ("1", None),
        ("[1]", None),
        ("[[1]] [[good]]", None),
        ("The better answer is 1", None),
        ("[[1", None),
        ("[[\n1]]", None),
        ("[[１]]", None),
        ("", None),
    ],
)
def test_verdicts_are_read_strictly(reply, verdict):
    assert parse_verdict(reply) == verdict


def test_what_is_put_into_the_prompt_is_not_filled_in_again(tmp_path):
    speaker = Scripted(lambda _: "[[1]]")
    judge(tmp_path, speaker).decide(["{answer_2} {0} {prompt.x}"], [[r"\1 {answer_2}"], ["{prompt} %s"]])
    assert speaker.seen[0] == r"P {answer_2} {0} {prompt.x} 1 \1 {answer_2} 2 {prompt} %s V"


def test_the_prompt_of_the_package_has_all_fields(tmp_path):
    judge(tmp_path, Scripted(for_good), read_template(None))


def test_a_prompt_of_the_user_is_read(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("어느 것? {prompt} {answer_1} {answer_2}", "utf-8")
    assert read_template(str(path)).startswith("어느 것?")
    refused(read_template, str(tmp_path / "none.txt"), code=ExitCode.INPUT_MISSING)
    said = refused(lambda: judge(tmp_path, Scripted(for_good), "{prompt} {answer_1}"), code=ExitCode.CONFIG)
    assert "{answer_2}" in said


def test_a_second_start_continues(tmp_path):
    """Whatever moment the first one is stopped at, each verdict is given once."""
    for most in range(6):
        folder = tmp_path / str(most)
        folder.mkdir()
        first, second = Scripted(for_good, most), Scripted(for_good)
        with pytest.raises(KeyboardInterrupt):
            judge(folder, first).decide(PROMPTS, [GOOD, BAD])
        assert judge(folder, second).decide(PROMPTS, [GOOD, BAD]).outcomes[0, 1] == [1, 1, 1]
        assert len(first.seen) + len(second.seen) == 6
        assert not set(first.seen) & set(second.seen)


def test_verdicts_of_another_judge_are_not_taken(tmp_path):
    judge(tmp_path, Scripted(for_good)).decide(PROMPTS, [GOOD, BAD])
    other = Scripted(lambda _: "[[tie]]")
    assert judge(tmp_path, other, "New: " + TEMPLATE).decide(PROMPTS, [GOOD, BAD]).outcomes[0, 1] == [0.5, 0.5, 0.5]
    assert len(other.seen) == 6


def test_a_line_that_is_cut_is_left_out(tmp_path):
    path, duel = tmp_path / "v.jsonl", Duel("p", "a", "b")
    VerdictFile(path, "j").add(duel, "1", "한글")
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert VerdictFile(path, "j").find(duel).verdict is None
    VerdictFile(path, "j").add(duel.turn(), "2")
    assert VerdictFile(path, "j").find(duel.turn()).verdict == "2"


@pytest.mark.parametrize(
    "line", ["1", "[]", "{}", '{"key": "k", "verdict": "3"}', '{"key": 1, "verdict": []}', "[" * 9999]
)
def test_lines_of_another_kind_are_left_out(tmp_path, line):
    path, duel = tmp_path / "v.jsonl", Duel("p", "a", "b")
    VerdictFile(path, "j").add(duel, "1")
    path.write_bytes(path.read_bytes() + line.encode() + b"\n\xff\n")
    assert VerdictFile(path, "j").find(duel) == ("1", 1)
