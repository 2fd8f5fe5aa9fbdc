"""Result files are matched by prompt, or refused with what differs between them."""

import copy
from pathlib import Path

import pytest
from support.refusals import refused

from dpo_lightning.comparison.pairing import match_results, name_models
from dpo_lightning.errors import ExitCode
from dpo_lightning.evaluation.result_file import Result

MADE = {
    "template": "1" * 64,
    "sampling": {"max_new_tokens": 128, "temperature": 0.7, "top_p": 0.95, "seed": 0},
    "model": {"path": "m"},
}


def result(name, *answers, summary=True, **changes):
    """A result file of (prompt, answer)."""
    items = [
        {"prompt": prompt, "generated": answer, "file": "rows.jsonl", "line": line}
        for line, (prompt, answer) in enumerate(answers, 1)
    ]
    made = copy.deepcopy(MADE)
    made["sampling"] |= {key: value for key, value in changes.items() if key in made["sampling"]}
    made |= {key: value for key, value in changes.items() if key not in made["sampling"]}
    return Result(items, {"made_by": made} if summary else None, Path(name))


def refuse(*results, allowed=()):
    return refused(match_results, results, allowed, code=ExitCode.DATA)


def test_the_same_prompts_in_another_order_are_matched():
    one = result("a.json", ("p", "p of a"), ("q", "q of a"), ("r", "r of a"))
    other = result("b.json", ("r", "r of b"), ("p", "p of b"), ([{"role": "user", "content": "q"}], "q of b"))
    matched = match_results([one, other])
    assert matched.prompts == ["p", "q", "r"]
    assert matched.answers == [["p of a", "q of a", "r of a"], ["p of b", "q of b", "r of b"]]
    assert matched.notes == []


def test_equal_prompts_are_matched_in_their_order():
    one = result("a.json", ("p", "1"), ("q", "2"), ("p", "3"))
    other = result("b.json", ("p", "4"), ("p", "5"), ("q", "6"))
    assert match_results([one, other]).answers == [["1", "2", "3"], ["4", "6", "5"]]


def test_other_prompts_are_refused():
    one = result("a.json", ("p", ""), ("q", ""), ("s", ""))
    other = result("b.json", ("p", ""), ("p", ""))
    said = refuse(one, other)
    assert "2 of the 3 prompts of a.json are missing; first: rows.jsonl:2 at b.json\n  | q" in said
    assert "1 of the 2 prompts of b.json are missing; first: rows.jsonl:2 at a.json\n  | p" in said


def test_a_third_file_is_compared_as_well():
    one, other = (result(name, ("p", "")) for name in ("a.json", "b.json"))
    assert "c.json" in refuse(one, other, result("c.json", ("q", "")))


def test_an_item_without_a_line_is_counted():
    one = result("a.json", ("p", ""), ("q", ""))
    for item in one.items:
        del item["line"]
    assert "first: a.json, item:2" in refuse(one, result("b.json", ("p", "")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7}, "seed: a.json has 0, b.json has 7"),
        ({"temperature": 1.0}, "temperature: a.json has 0.7, b.json has 1.0"),
        ({"max_new_tokens": 64}, "max_new_tokens: a.json has 128, b.json has 64"),
        ({"top_p": 1.0}, "top_p: a.json has 0.95, b.json has 1.0"),
        ({"template": "2" * 64}, f"template: a.json has {'1' * 39}…, b.json has {'2' * 39}…"),
    ],
)
def test_another_way_of_sampling_is_refused(changes, said):
    kind = "template" if "template" in changes else "sampling"
    one, other = result("a.json", ("p", "")), result("b.json", ("p", ""), **changes)
    assert said in refuse(one, other)
    assert "--allow" in refuse(one, other)
    assert match_results([one, other], [kind]).notes == [said]


def test_all_differences_are_listed():
    said = refuse(result("a.json", ("p", "")), result("b.json", ("p", ""), seed=1, temperature=0.0))
    assert "seed" in said
    assert "temperature" in said


def test_another_model_is_no_difference():
    one, other = result("a.json", ("p", "")), result("b.json", ("p", ""), model={"path": "n"}, generator="http://h")
    assert match_results([one, other]).notes == []


def test_sampling_of_another_kind_does_not_crash():
    """A summary may hold anything under its keys."""
    one, other = result("a.json", ("p", "")), result("b.json", ("p", ""), sampling=3)
    assert "temperature: a.json has 0.7, b.json has None" in refuse(one, other)


def test_without_a_summary_the_seeds_are_not_known():
    one, other = result("a.json", ("p", ""), summary=False), result("b.json", ("p", ""))
    assert match_results([one, other]).notes == ["a.json has no summary: seed and sampling are not known"]


def test_without_a_summary_the_seeds_of_items_are_compared():
    one, other = result("a.json", ("p", ""), summary=False), result("b.json", ("p", ""), summary=False)
    one.items[0]["seed"], other.items[0]["seed"] = 1, 2
    assert "1 prompts have another one than in a.json, first 1 and 2" in refuse(one, other)
    assert len(match_results([one, other], ["sampling"]).notes) == 2


def test_a_model_may_be_compared_with_itself():
    one = result("a.json", ("p", "x"))
    assert match_results([one, one]).answers == [["x"], ["x"]]
    assert name_models([one, one]) == ["A a.json", "B a.json"]
