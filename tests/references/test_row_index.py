"""Digests and lengths of rows as arrays: stored or computed, and the order of rows that follows from them."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dpo_lightning.data.examples import Encoded, EncodedAnswer, Origin
from dpo_lightning.errors import UserError
from dpo_lightning.references import reference_pass
from dpo_lightning.references.reference_pass import ScoringContext, check_independence, plan_pass
from dpo_lightning.references.row_index import RowIndex, list_digests, row_digests
from dpo_lightning.references.token_table import TokenTable


def draw_rows(count, seed, most=4):
    """Rows of few different tokens, so that answers, first answers and whole rows occur several times."""
    draw = random.Random(seed)

    def answer():
        ids = [draw.randrange(2) for _ in range(draw.randint(1, 3))]
        return EncodedAnswer(ids, [True] * len(ids))

    return [
        Encoded(Origin("rows", number), [draw.randrange(2)], tuple(answer() for _ in range(draw.randint(1, most))))
        for number in range(count)
    ]


class StoredRows:
    """Rows whose digests and lengths are stored; no row is made."""

    def __init__(self, rows):
        digests = [digest for row in rows for digest in row_digests(row)]
        self.answer_digests = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)
        self.answer_counts = np.array([len(row.answers) for row in rows], dtype=np.int32)
        self.lengths = np.array([row.length for row in rows], dtype=np.int32)

    def __len__(self):
        return len(self.lengths)


@pytest.mark.parametrize("count", [0, 1, 30])
def test_digests_are_stored_or_computed(count):
    rows = draw_rows(count, 0)
    for given in (rows, StoredRows(rows)):
        digests, counts = list_digests(given)
        assert digests.shape == (sum(counts), 32)
        assert list(map(bytes, digests)) == [digest for row in rows for digest in row_digests(row)]
        assert counts.tolist() == [len(row.answers) for row in rows]
        assert counts.dtype == np.int64


def index_of(sets):
    return RowIndex(sets, {name: list_digests(rows) for name, rows in sets.items()})


def order_by_tuples(sets, written=frozenset()):
    """The order of distinct rows as Python sorts tuples of digests; the last of equal rows."""
    rows = {row_digests(row): row for several in sets.values() for row in several}
    missing = (own for own in rows if not written.issuperset(own))
    return [rows[own] for own in sorted(missing, key=lambda own: (-rows[own].length, own))]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("most", [1, 2, 5])
def test_rows_are_ordered_by_length_and_then_by_digests(seed, most):
    sets = {"train": draw_rows(60, seed, most), "eval": draw_rows(20, seed + 100, most)}
    expected = order_by_tuples(sets)
    found = index_of(sets).order()
    assert list(found) == expected
    assert found.sizes.lengths.tolist() == [row.length for row in expected]
    assert most == 5 or len(expected) < 80  # rows of few answers repeat


def test_there_may_be_no_rows():
    assert list(index_of({"train": [], "eval": []}).order()) == []


def test_rows_of_which_an_answer_is_missing():
    sets = {"train": draw_rows(60, 0), "eval": draw_rows(20, 1)}
    index = index_of(sets)
    every = [row for rows in sets.values() for row in rows]
    tables = [TokenTable.of({digest: torch.zeros(1) for digest in row_digests(row)}) for row in every[:9:2]]
    tables.append(TokenTable.of({bytes(32): torch.zeros(1)}))
    written = {bytes(key) for table in tables for key in table.keys}
    numbers = np.array([70, 3, 0, 60, 59, 8])
    lacking = index.lacking(numbers, index.contained(tables))
    assert lacking.tolist() == [not written.issuperset(row_digests(every[number])) for number in numbers]
    assert set(lacking.tolist()) == {True, False}
    assert list(index.order().choose(np.array([0, 2]))) == [order_by_tuples(sets)[place] for place in (0, 2)]


@pytest.mark.parametrize("share", [(0, 1), (0, 2), (1, 2)])
def test_a_plan_is_that_of_sets_of_digests(share):
    """Batches of rows that are not in the file, every n-th of them, without the rows of its parts."""
    sets = {"train": draw_rows(40, 5), "eval": draw_rows(10, 6)}
    whole, part = (
        {digest for row in rows for digest in row_digests(row)} for rows in (sets["train"][:4], sets["eval"][:3])
    )
    tables = [TokenTable.of({digest: torch.zeros(1) for digest in digests}) for digests in (whole, part)]
    logp_file = SimpleNamespace(load=lambda: (tables[0], tables[1:]))
    run = SimpleNamespace(
        rows=sets, batches=lambda rows, _: [[*range(len(rows))][at : at + 3] for at in range(0, len(rows), 3)]
    )
    plan = plan_pass(logp_file, {name: list_digests(rows) for name, rows in sets.items()}, run, None, share)
    ordered, known = order_by_tuples(sets, whole), whole | part
    batches = [ordered[at : at + 3] for at in range(3 * share[0], len(ordered), 3 * share[1])]
    expected = [[row for row in batch if not known.issuperset(row_digests(row))] for batch in batches]
    assert [[plan.rows[place] for place in batch] for batch in plan.batches] == [batch for batch in expected if batch]
    assert plan.distinct == len(order_by_tuples(sets))
    for batch in plan.batches:
        own = {digest for place in batch for digest in row_digests(plan.rows[place])}
        assert plan.claim_answers(batch) == sorted(own - known)
        known |= own


def test_nothing_is_planned_where_the_file_has_all():
    rows = draw_rows(5, 0)
    table = TokenTable.of({digest: torch.zeros(1) for row in rows for digest in row_digests(row)})
    logp_file = SimpleNamespace(load=lambda: (table, []))
    sets = {"train": StoredRows(rows)}  # of which no row is made
    assert (
        plan_pass(logp_file, {"train": list_digests(sets["train"])}, SimpleNamespace(rows=sets), None, (0, 1)) is None
    )


def test_the_first_of_the_longest_rows_is_named(monkeypatch):
    monkeypatch.setattr(reference_pass, "independent_length", lambda _: (3, "a cause"))
    rows = sorted((row for row in draw_rows(60, 0) if row.length <= 4), key=lambda row: row.length)
    place, first = next((place, row) for place, row in enumerate(rows) if row.length == 4)
    context = ScoringContext(
        {"train": rows[: place + 2], "eval": rows[place + 2 :]}, None, None, "", lambda _: _, lambda: None
    )
    with pytest.raises(UserError, match="a row has 4 tokens; beyond 3") as raised:
        check_independence(SimpleNamespace(model_type="x"), context)
    assert f"| {first.origin}\n" in str(raised.value)
    check_independence(SimpleNamespace(model_type="x"), ScoringContext({}, None, None, "", lambda _: _, lambda: None))
