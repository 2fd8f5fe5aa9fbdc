"""Sequences on the disk: the same items, whatever is read of them, in another process and on a full disk."""

import errno
import json
import os
import pickle
import tempfile
from dataclasses import dataclass, field, fields, replace
from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import whole_runs

from dpo_lightning.data.cache import row_writer
from dpo_lightning.data.cache.row_writer import RowWriter
from dpo_lightning.data.cache.spilled_list import SpilledList
from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix, TokenSequence
from dpo_lightning.data.encoding.digests import answer_digest
from dpo_lightning.data.examples import Encoded, EncodedAnswer, Origin
from dpo_lightning.data.kinds.pairs import EncodedPair
from dpo_lightning.data.kinds.ranked import EncodedRanked
from dpo_lightning.data.kinds.sft import EncodedSFT
from dpo_lightning.data.kinds.unpaired import EncodedUnpaired
from dpo_lightning.data.row_sizes import RowSizes

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=5)


@st.composite
def answers(draw):
    ids = draw(IDS.filter(len))
    scored = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return EncodedAnswer(ids, scored, draw(st.booleans()))


@st.composite
def encoded_rows(draw, kind, count, **own):
    origin = st.builds(
        Origin, st.sampled_from(["a.jsonl", "한글.json", "\udce9"]), st.integers(1, 10**9), st.integers(1, 3)
    )
    weight = st.floats(0, 1e30)
    made = st.builds(
        kind, origin, IDS, st.lists(answers(), min_size=count[0], max_size=count[1]).map(tuple), weight, **own
    )
    return draw(st.lists(made, min_size=1, max_size=7))


SETS = {
    EncodedPair: encoded_rows(EncodedPair, (2, 2), margin=st.none() | st.floats(allow_nan=False)),
    EncodedUnpaired: encoded_rows(EncodedUnpaired, (1, 2), good=st.booleans()),
    EncodedRanked: encoded_rows(EncodedRanked, (2, 5)),
    EncodedSFT: encoded_rows(EncodedSFT, (1, 1)),
}


def store(rows, folder=None, **options):
    writer = RowWriter(folder, type(rows[0]), **options)
    for row in rows:
        writer.append(row)
    return writer.close()


@pytest.mark.parametrize("kind", SETS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("per_batch", [1, 3])
@given(data=st.data())
def test_rows_are_the_same_to_the_bit(kind, per_batch, data):
    rows = data.draw(SETS[kind])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_writer, "ROWS_PER_BATCH", per_batch)
        stored = store(rows)
    assert stored == rows
    assert list(stored) == rows
    assert [stored[place] for place in range(len(rows))] == rows
    assert stored[-1] == rows[-1]
    assert stored[1:-1] == rows[1:-1]
    for mine, other in zip(stored, rows, strict=True):
        assert type(mine) is kind
        assert repr(mine) == repr(other)  # floats to the last bit, no numpy types
    assert pickle.loads(pickle.dumps(stored)) == rows
    assert [value.tolist() for value in stored.sizes] == [value.tolist() for value in RowSizes.of(rows)]
    expected = [answer_digest(row.prompt_ids, answer) for row in rows for answer in row.answers]
    assert [bytes(digest) for digest in stored.answer_digests] == expected
    assert stored.answer_counts.tolist() == [len(row.answers) for row in rows]


@pytest.mark.parametrize("collator", [Padded(), Packed(), SharedPrefix(), PackedSharedPrefix()], ids=repr)
@given(data=st.data())
def test_tokens_are_counted_from_sizes_as_in_the_batch(collator, data):
    """The number of ids in the batch of a single row, where the last of each sequence is left out."""
    rows = data.draw(SETS[EncodedRanked])
    for tokens, row in zip(collator.count_tokens(RowSizes.of(rows)).tolist(), rows, strict=True):
        group = [TokenSequence.of(number, row.prompt_ids, answer) for number, answer in enumerate(row.answers)]
        columns = zip(*(sequence.ids[len(row.prompt_ids) : -1] for sequence in group), strict=False)
        shared = list(takewhile(lambda column: len(set(column)) == 1, columns))
        each = [len(sequence.ids) - (not isinstance(collator, Padded)) for sequence in group]
        trunk = len(row.prompt_ids) + len(shared)
        expected = {
            Padded: len(each) * max(each),
            Packed: sum(each),
            SharedPrefix: trunk + sum(length - trunk for length in each),
            PackedSharedPrefix: trunk + sum(length - trunk for length in each),
        }
        assert tokens == collator.tokens(row) == expected[type(collator)]


def test_rows_in_a_folder_are_mapped_and_open_in_another_process(tmp_path):
    rows = [
        EncodedPair(Origin("f", n), [n, 2], (EncodedAnswer([3], [True]), EncodedAnswer([4], [True])))
        for n in range(300)
    ]
    stored = store(rows, tmp_path / "set")
    assert stored == rows
    assert isinstance(stored.sizes.prompts.base, np.memmap)
    copied = pickle.loads(pickle.dumps(stored))
    assert copied.stored.folder == tmp_path / "set"
    assert copied == rows


def test_rows_in_a_file_without_a_name_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = [EncodedSFT(Origin("f", n), [n, 2], (EncodedAnswer([3], [True]),)) for n in range(1, 300)]
    writer = RowWriter(None, EncodedSFT, temporary=True)
    for row in rows:
        writer.append(row)
    assert list(tmp_path.iterdir()) == []
    stored = writer.close()
    assert list(tmp_path.iterdir()) == []
    assert stored == rows
    assert pickle.loads(pickle.dumps(stored)) == rows


def test_prompts_are_stored_on_demand():
    row = EncodedSFT(Origin("f", 1), [1], (EncodedAnswer([3], [True]),))
    writer = RowWriter(None, EncodedSFT, prompts=True)
    for prompt in ("하나", ({"role": "user", "content": "둘"},)):
        writer.append(row, prompt)
    stored = writer.close()
    assert [stored.read_prompt(place) for place in (0, 1)] == ["하나", [{"role": "user", "content": "둘"}]]
    assert store([row]).read_prompt(0) is None


@dataclass(frozen=True, slots=True)
class EncodedSet(Encoded):
    names: object = field(kw_only=True)


@pytest.mark.parametrize("value", [("a", ("b", 1.5)), None, "x", True])
def test_fields_of_other_kinds_are_plain_data(value):
    row = EncodedSet(Origin("f", 1), [1], (EncodedAnswer([3], [True]),), names=value)
    assert store([row]) == [row]
    with pytest.raises(TypeError):
        store([replace(row, names={"a"})])
    with pytest.raises(TypeError, match="field of EncodedSet"):
        store([replace(row, names=["a"])])  # would be a tuple when it is read


# SpilledList


@given(st.lists(st.text() | st.integers() | st.lists(st.integers())), st.sampled_from([0, 10, 1000]))
def test_a_spilled_list_has_the_items_that_were_appended(items, buffer):
    spilled = SpilledList(items, buffer)
    assert spilled == items
    assert [spilled[place] for place in range(-len(items), len(items))] == items * 2
    assert spilled[::2] == items[::2]
    with pytest.raises(IndexError):
        spilled[len(items)]


def test_two_iterations_do_not_disturb_each_other():
    spilled = SpilledList(range(2000), buffer=100)
    assert all(one == other for one, other in zip(spilled, spilled, strict=True))


def test_a_full_disk_leaves_the_items_in_memory(monkeypatch, caplog):
    caplog.set_level("INFO")
    spilled = SpilledList(range(500), buffer=200)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    for item in range(500, 1000):
        spilled.append(item)
    monkeypatch.undo()
    spilled.append(1000)
    assert spilled == range(1001)
    assert [record.message for record in caplog.records if "kept in memory" in record.message] == [
        f"note: rows are kept in memory: {spilled.folder} cannot be written (No space left on device)"
    ]


def test_every_field_of_an_example_survives():
    for make, rows in ((whole_runs.KINDS["dpo"][1], 3), (whole_runs.KINDS["listwise"][1], 3)):
        example = make.kind.example
        made = example(
            Origin("f", 3, 2), "p", ("a", ({"role": "assistant", "content": "b"},)), ({"name": "t"},), "g", 0.5
        )
        spilled = SpilledList([made] * rows, buffer=0)
        assert all(other == made for other in spilled)
        assert all(getattr(spilled[0], part.name) == getattr(made, part.name) for part in fields(made))
        assert json.dumps(spilled[0].tools) == '[{"name": "t"}]'
