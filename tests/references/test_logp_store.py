"""The file of reference log-probabilities: whole or refused, the same bytes for the same content, joined from parts."""

import hashlib
import json
import multiprocessing
import pickle
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file

from dpo_lightning.data.encoding.digests import DIGEST_BYTES, answer_digest
from dpo_lightning.data.examples import EncodedAnswer
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.references import table_file as module
from dpo_lightning.references.logp_store import LogpFile
from dpo_lightning.references.provenance import Provenance
from dpo_lightning.references.stored_values import StoredValues
from dpo_lightning.references.table_file import read, write
from dpo_lightning.references.token_table import TokenTable

SOURCE = Provenance(**{field.name: hashlib.sha256(field.name.encode()).hexdigest() for field in fields(Provenance)})


def key(number):
    return hashlib.sha256(str(number).encode()).digest()


def answers(*numbers):
    """An answer of `number` tokens for each number."""
    return {key(number): -torch.arange(number, dtype=torch.float32) - number for number in numbers}


def as_dict(table):
    """Values by key."""
    pieces = table.values.split(table.offsets.diff().tolist())
    return dict(zip(map(bytes, table.keys), pieces, strict=True))


def assert_holds(table, expected):
    found = as_dict(table)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    assert list(found) == sorted(found)


def stored(folder, *numbers):
    """A file of these answers."""
    path = folder / "ref.safetensors"
    write(path, [TokenTable.of(answers(*numbers))], SOURCE)
    return path


def refused(path, code, *said):
    """What reading the file says."""
    with pytest.raises(UserError) as raised:
        LogpFile(path, SOURCE).load()
    assert raised.value.code == code
    for words in (*said, str(path)):
        assert words in str(raised.value)
    return str(raised.value)


# What is written is read


@pytest.mark.parametrize("numbers", [(), (3,), (5, 1, 0, 2)])
def test_a_file_holds_what_was_written(numbers, tmp_path):
    provenance, table = read(stored(tmp_path, *numbers))
    assert provenance == SOURCE
    assert_holds(table, answers(*numbers))
    assert [entry.name for entry in tmp_path.iterdir()] == ["ref.safetensors"]


def test_equal_content_is_equal_bytes(tmp_path):
    """Whatever the order in which it was computed, and in how many parts."""
    straight = stored(tmp_path, 1, 2, 3).read_bytes()
    assert stored(tmp_path, 3, 1, 2).read_bytes() == straight
    other = LogpFile(tmp_path / "other.safetensors", SOURCE)
    for numbers in ((3,), (1, 2)):
        other.add(answers(*numbers))
    other.merge()
    assert other.path.read_bytes() == straight


def test_tables_are_merged_and_the_first_counts(tmp_path):
    path = tmp_path / "ref.safetensors"
    first, second = TokenTable.of(answers(4, 1)), TokenTable.of({key(1): torch.zeros(1), **answers(2, 0)})
    for tables, expected in (([first, second], (0, 1, 2, 4)), ([], ()), ([TokenTable.of({}), first], (1, 4))):
        write(path, tables, SOURCE)
        assert_holds(read(path)[1], answers(*expected))


def test_sums_and_lengths_of_answers():
    table = TokenTable.of(answers(3, 0, 1))
    sums, lengths = table.sums()
    expected = as_dict(table)
    assert sums.tolist() == [float(values.sum()) for values in expected.values()]
    assert lengths.tolist() == [len(values) for values in expected.values()]
    assert sums.dtype == lengths.dtype == torch.float32


def test_a_key_is_the_content():
    """Border, tokens and flags; not the type of the list that holds them."""
    base = answer_digest([1, 2], EncodedAnswer([3, 4], [True, True]))
    assert len(base) == DIGEST_BYTES
    assert base == answer_digest((1, 2), EncodedAnswer((3, 4), (True, True), cut=True))
    others = [
        answer_digest([1], EncodedAnswer([2, 3, 4], [True, True, True])),
        answer_digest([1, 2], EncodedAnswer([3, 4], [False, True])),
        answer_digest([1, 2], EncodedAnswer([3, 5], [True, True])),
        answer_digest([2, 1], EncodedAnswer([3, 4], [True, True])),
        answer_digest([1, 2], EncodedAnswer([3], [True])),
    ]
    assert len({base, *others}) == 6


# What is not whole is refused


def test_a_truncated_file_is_refused(tmp_path):
    path = stored(tmp_path, 3, 2)
    content = path.read_bytes()
    for size in (0, 4, 8, 20, len(content) // 2, len(content) - 4, len(content) - 1):
        path.write_bytes(content[:size])
        refused(path, ExitCode.DATA, "no whole file of reference log-probabilities", "remove the file")
    path.write_bytes(content + b"\0")
    refused(path, ExitCode.DATA)


def read_or_code(path):
    """What a file holds, its values included, or the exit code of its refusal."""
    try:
        provenance, table = read(path)
        return provenance, TokenTable(table.keys, table.offsets, StoredValues(table.values.clone()), table.sums()[0])
    except UserError as error:
        return error.code


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    path = stored(tmp_path, 3, 2)
    content = path.read_bytes()
    outcomes = []
    for place in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        outcomes.append(read_or_code(path))
    harmless = [outcome for outcome in outcomes if outcome != ExitCode.DATA]
    assert len(harmless) < 10  # blanks between the words of a header mean nothing
    for provenance, table in harmless:
        assert provenance == SOURCE
        assert_holds(table, answers(3, 2))


FOREIGN = {
    "text": lambda path: path.write_text("log-probabilities"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"values": [1.0]})),
    "torch": lambda path: torch.save({"values": torch.ones(2)}, path),
    "other safetensors": lambda path: save_file({"values": torch.ones(2)}, path),
    "no tensors": lambda path: save_file({"x": torch.ones(1)}, path, {module.HEADER: json.dumps({"version": 1})}),
    "header of text": lambda path: save_file(
        {name: torch.ones(1) for name in ("keys", "offsets", "values")}, path, {module.HEADER: '"text"'}
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused(kind, tmp_path):
    path = tmp_path / "ref.safetensors"
    FOREIGN[kind](path)
    before = path.read_bytes()
    refused(path, ExitCode.DATA)
    assert path.read_bytes() == before


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "VERSION", 3)
    monkeypatch.setitem(module.PARTS, 3, module.PARTS[2])
    path = stored(tmp_path, 1)
    monkeypatch.undo()
    refused(path, ExitCode.DATA, "its format is 3, known are 1 and 2")


def test_a_folder_is_no_file(tmp_path):
    path = tmp_path / "ref.safetensors"
    path.mkdir()
    refused(path, ExitCode.INPUT_MISSING, "cannot be read: Is a directory")


def test_a_damaged_part_is_refused(tmp_path):
    held = LogpFile(tmp_path / "ref.safetensors", SOURCE)
    held.add(answers(1, 2))
    (part,) = held.parts.iterdir()
    part.write_bytes(part.read_bytes()[:-1])
    for act in (held.load, held.merge):
        with pytest.raises(UserError, match="no whole file"):
            act()
    assert not held.path.exists()


@pytest.mark.parametrize("name", [field.name for field in fields(Provenance)])
@pytest.mark.parametrize("where", ["file", "part"])
def test_what_was_computed_with_something_else_is_refused_by_name(name, where, tmp_path):
    path = tmp_path / "ref.safetensors"
    old, new = getattr(SOURCE, name), "0" * 64
    other = replace(SOURCE, **{name: new})
    LogpFile(path, other).add(answers(1))
    if where == "file":
        LogpFile(path, other).merge()
    message = refused(path, ExitCode.CONFIG, f"error: {name}: the file has {new[:16]}…, this run has {old[:16]}…")
    assert message.count("error:") == 1
    assert "leave --model.reference.path out" in message


# Parts, and who writes them


def test_parts_are_joined_and_removed(tmp_path):
    held = LogpFile(tmp_path / "ref.safetensors", SOURCE)
    held.add({})
    assert held.load()[1] == []
    held.merge()
    assert list(tmp_path.iterdir()) == []
    held.add(answers(1, 2))
    held.add(answers(3))
    held.add(answers(3))  # the same again
    whole, parts = held.load()
    assert_holds(whole, {})
    assert sorted(len(part.keys) for part in parts) == [1, 2]
    (held.parts / ".x.safetensors.1.partial").write_bytes(b"left by a process that was killed")
    (tmp_path / ".ref.safetensors.1.partial").write_bytes(b"the same")
    (tmp_path / ".other.safetensors.1.partial").write_bytes(b"of another file")
    held.merge()
    held.add(answers(4))
    held.merge()
    whole, parts = held.load()
    assert_holds(whole, answers(1, 2, 3, 4))
    assert parts == []
    assert {entry.name for entry in tmp_path.iterdir()} == {"ref.safetensors", ".other.safetensors.1.partial"}


def test_nothing_is_left_where_writing_fails(tmp_path, monkeypatch):
    held = LogpFile(stored(tmp_path, 1), SOURCE)
    before = held.path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device") as raised:
        held.add(answers(2))
    assert raised.value.code == ExitCode.OUTPUT
    assert "--model.reference.path (precompute: --out)" in str(raised.value)
    monkeypatch.undo()
    assert list(held.parts.iterdir()) == []
    assert held.path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file" / "ref.safetensors", tmp_path / "file" / "deeper" / "ref.safetensors"):
        held = LogpFile(path, SOURCE)
        assert held.load()[1] == []
        with pytest.raises(UserError, match="cannot be written") as raised:
            held.check_writable()
        assert raised.value.code == ExitCode.OUTPUT


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    LogpFile(tmp_path / "new" / "ref.safetensors", SOURCE).check_writable()
    assert list((tmp_path / "new").iterdir()) == []


def add_and_merge(path, first):
    held = LogpFile(path, SOURCE)
    for number in range(first, first + 10):
        held.add(answers(number))
        held.load()
        held.merge()


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "ref.safetensors"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add_and_merge, args=(path, first)) for first in (0, 5, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert_holds(read(path)[1], answers(*range(20)))
    assert list(tmp_path.iterdir()) == [path]
