"""The file format of reference log-probabilities: mapped and not loaded, verified where it is read, and older files."""

import hashlib
import json
import resource
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.references import stored_values, token_table
from dpo_lightning.references.logp_store import LogpFile
from dpo_lightning.references.provenance import Provenance
from dpo_lightning.references.stored_values import StoredValues
from dpo_lightning.references.table_file import HEADER, read, write
from dpo_lightning.references.token_table import TokenTable, as_strings, cumulative_ends, find_keys, sum_answers

SOURCE = Provenance(**{field.name: hashlib.sha256(field.name.encode()).hexdigest() for field in fields(Provenance)})


def draw_answers(lengths, seed=0):
    """Random values of answers of these lengths, by digest."""
    generator = torch.Generator().manual_seed(seed)
    return {
        hashlib.sha256(f"{seed} {number}".encode()).digest(): -5 * torch.rand(length, generator=generator)
        for number, length in enumerate(lengths)
    }


def write_version_1(path, answers):
    """A file as version 1 of the format was written."""
    keys = sorted(answers)
    tensors = {
        "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(-1, 32),
        "offsets": cumulative_ends(torch.tensor([len(answers[key]) for key in keys])),
        "values": torch.cat([answers[key] for key in keys]),
    }
    header = {"version": 1, **asdict(SOURCE)}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().data)
    header["checksum"] = digest.hexdigest()
    path.write_bytes(save(tensors, {HEADER: json.dumps(header, sort_keys=True)}))


def begin_of_values(path):
    """Where the token values begin in a file, in bytes."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return 8 + size + json.loads(content[8 : 8 + size])["values"]["data_offsets"][0]


def flip(path, place):
    """Change a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.unlink()  # the old content stays mapped
    path.write_bytes(content)


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of four values."""
    monkeypatch.setattr(stored_values, "BLOCK", 4)
    monkeypatch.setattr("dpo_lightning.references.table_file.BLOCK", 4)


# Reading no more than is used


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("lengths", [(3, 1), (4, 4), (1, 0, 10), (0,), (17,)])
def test_values_are_cut_into_blocks_wherever_answers_end(lengths, tmp_path):
    path, answers = tmp_path / "ref.safetensors", draw_answers(lengths)
    write(path, [TokenTable.of(answers)], SOURCE)
    table = read(path)[1]
    expected = torch.cat([answers[key] for key in sorted(answers)])
    assert torch.equal(table.values, expected)
    places = torch.arange(len(expected)).flip(0)[None]
    assert torch.equal(read(path)[1].stored.gather(places), expected[places])


@pytest.mark.usefixtures("short_blocks")
def test_damage_is_found_when_it_is_read_and_not_before(tmp_path):
    """Keys and sums are sound, as are the blocks beside the damaged one."""
    path, answers = tmp_path / "ref.safetensors", draw_answers((4, 4, 4))
    write(path, [TokenTable.of(answers)], SOURCE)
    before = read(path)[1]
    flip(path, begin_of_values(path) + 4 * 4)
    table = read(path)[1]
    assert torch.equal(table.sums()[0], before.sums()[0])
    expected = before.values
    for sound in ([0, 3], [8, 11, 0]):
        assert torch.equal(table.stored.gather(torch.tensor(sound)), expected[sound])
    with pytest.raises(UserError, match="a checksum does not fit its values") as raised:
        table.stored.gather(torch.tensor([0, 7]))
    assert raised.value.code == ExitCode.DATA
    assert str(path) in str(raised.value)
    with pytest.raises(UserError, match="does not fit"):
        table.stored.gather(torch.tensor([4]))  # again: it was not taken for sound
    with pytest.raises(UserError, match="does not fit"):
        table.stored.gather(torch.tensor([0], device="meta"))  # all of them are copied to another device


@pytest.mark.parametrize("where", ["file", "part"])
def test_damaged_values_are_not_merged(where, tmp_path):
    """Nothing is written, and the parts stay."""
    logp_file = LogpFile(tmp_path / "ref.safetensors", SOURCE)
    logp_file.add(draw_answers((3, 2)))
    if where == "file":
        logp_file.merge()
        logp_file.add(draw_answers((2,), seed=1))
    (part,) = logp_file.parts.iterdir()
    path = logp_file.path if where == "file" else part
    flip(path, begin_of_values(path))
    content = path.read_bytes()
    with pytest.raises(UserError, match="a checksum does not fit its values"):
        logp_file.merge()
    assert path.read_bytes() == content
    assert part.exists()
    assert logp_file.path.exists() == (where == "file")


@pytest.mark.parametrize("name", ["offsets", "sums", "checksums", "keys"])
def test_damage_beside_the_values_is_found_at_once(name, tmp_path):
    path = tmp_path / "ref.safetensors"
    write(path, [TokenTable.of(draw_answers((3, 2)))], SOURCE)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    flip(path, 8 + size + json.loads(content[8 : 8 + size])[name]["data_offsets"][1] - 1)
    with pytest.raises(UserError, match="its checksum does not fit its content"):
        read(path)


def anonymous_kib():
    """Memory of this process that is no page of a file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux counts pages by their kind")
def test_values_are_mapped_and_not_loaded(tmp_path):
    """64 MiB: opening takes no page of them, and reading all of them no memory of the process."""
    path = tmp_path / "ref.safetensors"
    write(path, [TokenTable.of({bytes(32): torch.zeros(2**24)})], SOURCE)
    before, faults = anonymous_kib(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    table = read(path)[1]
    assert table.find(np.zeros((1, 32), dtype=np.uint8)).tolist() == [0]
    assert table.sums()[0].tolist() == [0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 2**24 * 4 / 4096 / 16
    assert table.values.sum() == 0
    assert anonymous_kib() - before < 16 * 1024


@pytest.mark.parametrize("whole", [True, False])
def test_a_device_gets_all_values_of_a_small_file_and_those_of_the_batch_of_a_large_one(whole, monkeypatch):
    """On the device without values, whose indices are made up where the CPU reads them."""
    monkeypatch.setattr(stored_values, "ON_DEVICE_BYTES", 40 if whole else 39)
    read_by_cpu = []
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda part: read_by_cpu.append(part.shape) or torch.zeros(part.shape, dtype=part.dtype)
    )
    stored = StoredValues(torch.zeros(10))
    found = stored.gather(torch.zeros(2, 3, dtype=torch.int64, device="meta"))
    assert (found.device.type, found.shape) == ("meta", (2, 3))
    assert read_by_cpu == ([] if whole else [(2, 3)])


# Version 1


def test_a_file_of_version_1_is_read_and_extended(tmp_path):
    logp_file, answers = LogpFile(tmp_path / "ref.safetensors", SOURCE), draw_answers((5, 0, 3))
    write_version_1(logp_file.path, answers)
    before = logp_file.path.read_bytes()
    provenance, old = read(logp_file.path)
    assert provenance == SOURCE
    write(tmp_path / "new.safetensors", [TokenTable.of(answers)], SOURCE)
    new = read(tmp_path / "new.safetensors")[1]
    assert np.array_equal(old.keys, new.keys)
    for left, right in zip((old.values, old.offsets, *old.sums()), (new.values, new.offsets, *new.sums()), strict=True):
        assert torch.equal(left, right)
    logp_file.merge()
    assert logp_file.path.read_bytes() == before  # without parts there is no reason to write
    more = draw_answers((2,), seed=1)
    logp_file.add(more)
    logp_file.merge()
    write(tmp_path / "new.safetensors", [TokenTable.of(answers | more)], SOURCE)
    assert logp_file.path.read_bytes() == (tmp_path / "new.safetensors").read_bytes()


def test_a_damaged_file_of_version_1_is_found_at_once(tmp_path):
    path = tmp_path / "ref.safetensors"
    write_version_1(path, draw_answers((5, 3)))
    flip(path, begin_of_values(path) + 9)
    with pytest.raises(UserError, match="its checksum does not fit its content"):
        read(path)


# Sums and places


@pytest.mark.parametrize("summed", [1, 7, 50, 10**6])
def test_sums_do_not_depend_on_how_many_values_are_summed_at_a_time(summed, monkeypatch):
    """Those of one pass over all values, to the bit."""
    monkeypatch.setattr(token_table, "SUMMED", summed)
    lengths = torch.randint(0, 30, (200,), generator=torch.Generator().manual_seed(0))
    offsets = cumulative_ends(lengths)
    values = torch.randn(int(offsets[-1]), generator=torch.Generator().manual_seed(1)) * 100
    owners = torch.arange(200).repeat_interleave(lengths)
    expected = torch.zeros(200, dtype=torch.float64).index_add(0, owners, values.double()).float()
    assert torch.equal(sum_answers(offsets, values), expected)


def test_digests_are_found_byte_by_byte():
    """Bytes of 0 and above 127, common beginnings, and ends of zeros."""
    draw = np.random.default_rng(0).choice(np.array([0, 1, 127, 128, 255], dtype=np.uint8), size=(3000, 32))
    draw[:1000, :30] = 0
    draw[1000:2000, 2:] = 0
    known = sorted({bytes(key) for key in draw[::2]})
    keys = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(-1, 32)
    places = {key: place for place, key in enumerate(known)}
    expected = [places.get(bytes(key), -1) for key in draw]
    assert {-1, 0, len(known) - 1} <= set(expected)
    assert TokenTable(keys, torch.zeros(1), StoredValues(torch.zeros(0))).find(draw).tolist() == expected
    assert find_keys(as_strings(keys[:0]), as_strings(draw[:2])).tolist() == [-1, -1]
