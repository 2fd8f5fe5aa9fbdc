"""Rows are selected by hashes before they are compared: what is found is the same as of all rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.kinds import duplicates
from dpo_lightning.data.kinds.duplicates import check_labels, check_leak, check_order, check_repeats
from dpo_lightning.data.kinds.ranked import RankedExample
from dpo_lightning.data.kinds.suspects import PRUNING_ROUNDS, find_cyclic, select_contradicting, select_repeated
from dpo_lightning.data.kinds.unpaired import UnpairedExample
from dpo_lightning.data.readers.bad_rows import BadRows, Notes
from dpo_lightning.errors import UserError

RANKED = st.lists(
    st.tuples(st.sampled_from("pq"), st.lists(st.sampled_from("abcde"), min_size=2, max_size=4)), max_size=9
)
JUDGED = st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("ab"), st.booleans()), max_size=9)


def ranked(rows, file="f"):
    return [RankedExample(Origin(file, n), prompt, tuple(answers)) for n, (prompt, answers) in enumerate(rows, 1)]


def judged(rows):
    return [
        UnpairedExample(Origin("f", n), prompt, (answer,), good=good)
        for n, (prompt, answer, good) in enumerate(rows, 1)
    ]


def run(check, examples, allow):
    """The errors and the notes of a check."""
    bad = BadRows()
    notes = Notes(bad, strict=False, most=None)
    check(examples, allow, bad, notes)
    return bad.found, notes.places, notes.counts


def compare_all(monkeypatch):
    """Compare all rows, as if there were no selection."""
    for name in ("select_contradicting", "select_repeated"):
        monkeypatch.setattr(duplicates, name, lambda examples, key: list(examples))
    monkeypatch.setattr(duplicates, "select_shared", lambda one, other, key: (list(one), list(other)))


KINDS = {"rankings": (RANKED, ranked, check_order), "labels": (JUDGED, judged, check_labels)}


@pytest.mark.parametrize("allow", [(), ("contradictions",)], ids=["refused", "allowed"])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_contradictions(kind, allow, data):
    strategy, make, check = KINDS[kind]
    examples = make(data.draw(strategy))
    found = run(check, examples, allow)
    with pytest.MonkeyPatch.context() as patch:
        compare_all(patch)
        assert run(check, examples, allow) == found


@given(rows=RANKED)
def test_repeats(rows):
    def check(examples, allow, bad, notes):
        check_repeats(examples, notes)

    found = run(check, ranked(rows), ())
    with pytest.MonkeyPatch.context() as patch:
        compare_all(patch)
        assert run(check, ranked(rows), ()) == found


@pytest.mark.parametrize("allow", [(), ("leak",), ("leak", "contradictions")], ids=["refused", "leak", "both"])
@given(train=RANKED, held_out=RANKED)
def test_leaks(allow, train, held_out):
    def find():
        try:
            return check_leak(ranked(train), ranked(held_out, "g"), check_order, allow=allow)
        except UserError as error:
            return str(error)

    found = find()
    with pytest.MonkeyPatch.context() as patch:
        compare_all(patch)
        assert find() == found


def test_rows_that_agree_are_not_compared():
    """Several rankings of one prompt that are consistent, and rows with prompts of their own."""
    order = [f"a{n}" for n in range(PRUNING_ROUNDS)]
    rows = ranked(
        [("p", order[first : first + 4]) for first in range(PRUNING_ROUNDS - 4)] + [(f"q{n}", "ab") for n in range(50)]
    )
    assert select_contradicting(rows, duplicates._ranking_key) == []
    assert select_repeated(rows, duplicates._answers_key) == []


def test_a_contradiction_selects_the_rows_of_its_prompt_alone():
    rows = ranked([("p", "ab"), ("q", "ab"), ("p", "cd"), ("q", "cb"), ("p", "ba")])
    found = select_contradicting(rows, duplicates._ranking_key)
    assert [row.origin.line for row in found] == [1, 3, 5]


@pytest.mark.parametrize("length", [2, 3, 50])
def test_a_cycle_of_any_length_remains(length):
    nodes = np.arange(length)
    assert sorted(find_cyclic(nodes, np.roll(nodes, -1))) == list(range(length))
    assert len(find_cyclic(nodes, nodes + 1)) == max(0, length - 2 * PRUNING_ROUNDS)
