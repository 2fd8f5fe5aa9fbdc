"""Entries that somebody else wrote: each is encoded again with a line, and nothing outside of its folder is read."""

import io
import json
import os

import numpy as np
import pyarrow
import pytest
from support.prepared_rows import copy_rows, entries, same

from dpo_lightning.data.cache import file_digests
from dpo_lightning.data.cache.encoded_rows import PARTS
from dpo_lightning.data.cache.file_digests import hash_file

FOREVER = "[" * 200_000


def edit_manifest(**values):
    """Replace values of the manifest; a function gets the old value."""

    def damage(entry):
        path = entry / "manifest.json"
        content = json.loads(path.read_text())
        content |= {name: value(content[name]) if callable(value) else value for name, value in values.items()}
        path.write_text(json.dumps(content))

    return damage


def replace(path, make):
    """Write another content into a file, with its digest in the manifest."""

    def damage(entry):
        content = make((entry / path).read_bytes())
        (entry / path).write_bytes(content)
        digest = hash_file(entry / path)
        edit_manifest(digests=lambda digests: {**digests, path: digest})(entry)

    return damage


def array(change):
    """Write another array in the place of one."""

    def make(content):
        out = io.BytesIO()
        np.save(out, change(np.load(io.BytesIO(content))))
        return out.getvalue()

    return make


def table(change):
    """Write another table in the place of the rows."""

    def make(content):
        found = change(pyarrow.ipc.open_file(content).read_all())
        out = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_file(out, found.schema) as writer:
            writer.write_table(found, max_chunksize=128)
        return out.getvalue().to_pybytes()

    return make


def link(path):
    """Replace a file or folder of the entry by a link to the same outside of it."""

    def damage(entry):
        outside = entry.parent.parent / "outside"
        (entry / path).rename(outside)
        (entry / path).symlink_to(outside)

    return damage


def add_set(name):
    """Describe a set of a name, whose files are where the name leads."""

    def damage(entry):
        content = json.loads((entry / "manifest.json").read_text())
        parts = {f"{name}/{part}": content["digests"][f"train/{part}"] for part in PARTS}
        edit_manifest(
            files={**content["files"], name: content["files"]["train"]}, digests={**content["digests"], **parts}
        )(entry)

    return damage


def pipe(path):
    def damage(entry):
        (entry / path).unlink()
        os.mkfifo(entry / path)

    return damage


def rename_metadata(found):
    return found.replace_schema_metadata({"rows_per_batch": "many"})


MANIFESTS = {
    "no sets": edit_manifest(files={}),
    "null": edit_manifest(files=None),
    "names null": edit_manifest(files={"train": None, "eval": None}),
    "names 1": edit_manifest(files={"train": [1], "eval": []}),
    "one set": edit_manifest(files=lambda files: {"train": files["train"]}),
    "another set": add_set("test"),
    "outside": add_set("../outside"),
    "no digests": edit_manifest(digests={}),
    "digests of other files": edit_manifest(digests=lambda digests: {**digests, "../../secret": "0"}),
    "lines 1": edit_manifest(lines=1),
    "lines [1]": edit_manifest(lines=[1]),
    "date": edit_manifest(wrote_date="no"),
    "long": edit_manifest(lines=["x" * (65 << 20)]),
    "deep": lambda entry: (entry / "manifest.json").write_text(FOREVER),
    "a link": link("manifest.json"),
    "a pipe": pipe("manifest.json"),
    "a folder": lambda entry: ((entry / "manifest.json").unlink(), (entry / "manifest.json").mkdir()),
}
FILES = {
    "sizes cut": replace("train/sizes.npy", lambda content: content[:-4]),
    "sizes empty": replace("train/sizes.npy", lambda _: b""),
    "sizes of a deep header": replace(
        "train/sizes.npy", lambda _: b"\x93NUMPY\x01\x00" + (5000).to_bytes(2, "little") + b"(" * 4999 + b"\n"
    ),
    "sizes wide": replace("train/sizes.npy", array(lambda sizes: sizes.astype(np.int64))),
    "sizes of objects": replace("train/sizes.npy", array(lambda sizes: sizes.astype(object))),
    "sizes flat": replace("train/sizes.npy", array(lambda sizes: sizes[0])),
    "a field less": replace("train/sizes.npy", array(lambda sizes: sizes[:-1])),
    "a number": replace("train/sizes.npy", array(lambda _: np.int32(1))),
    "digests cut": replace("eval/digests.npy", lambda content: content[:-1]),
    "digests narrow": replace("eval/digests.npy", array(lambda digests: digests[:, :8])),
    "digests of floats": replace("eval/digests.npy", array(lambda digests: digests.astype(float))),
    "rows empty": replace("train/rows.arrow", lambda _: b""),
    "rows cut": replace("train/rows.arrow", lambda content: content[:-300]),
    "rows of nonsense": replace(
        "train/rows.arrow", lambda content: content[:99] + bytes(len(content) - 109) + content[-10:]
    ),
    "a column less": replace("train/rows.arrow", table(lambda found: found.drop_columns("nth"))),
    "a column more": replace("train/rows.arrow", table(lambda found: found.append_column("more", found["nth"]))),
    "a column of another type": replace(
        "train/rows.arrow", table(lambda found: found.set_column(8, "nth", found["nth"].cast(pyarrow.int64())))
    ),
    "no number of rows": replace("train/rows.arrow", table(lambda found: found.replace_schema_metadata(None))),
    "nonsense as number of rows": replace("train/rows.arrow", table(rename_metadata)),
    "a set is a link": link("train"),
    "a file is a link": link("train/rows.arrow"),
    "a pipe": pipe("train/rows.arrow"),
}


@pytest.fixture
def opened(monkeypatch):
    """The files whose digests were computed."""
    found = []
    compute = file_digests.FileDigests.compute
    monkeypatch.setattr(
        file_digests.FileDigests, "compute", lambda digests, path: found.append(path) or compute(digests, path)
    )
    return found


@pytest.mark.parametrize("damage", [*MANIFESTS.values(), *FILES.values()], ids=[*MANIFESTS, *FILES])
def test_an_entry_of_another_content_is_encoded_again_with_a_line(damage, prepare, files, tmp_path, opened):
    first = copy_rows(prepare()[0])
    (name,) = entries(tmp_path)
    damage(tmp_path / "cache" / name)
    opened.clear()
    again, lines = prepare()
    assert same(first, again)
    (line,) = [line for line in lines if "are damaged (" in line]
    assert line.endswith("): encoding them again")
    assert len(line) < 500
    inside = str(tmp_path / "cache" / name)
    assert {str(path) for path in opened if ".." in path.parts or not str(path).startswith(inside)} <= {*files.values()}
    assert entries(tmp_path) == [name]
    assert not any("are damaged (" in line for line in prepare()[1])


def test_notes_that_take_too_much_are_not_stored(prepare, tmp_path, monkeypatch):
    from dpo_lightning.data.cache import manifest

    expected, _ = prepare(cache="none")
    monkeypatch.setattr(manifest, "MAX_BYTES", 100)
    data, lines = prepare()
    assert same(data, expected)
    assert sum("cannot be used (the names of the files and the notes" in line for line in lines) == 1
    assert entries(tmp_path) == []


@pytest.mark.parametrize("content", [FOREVER, "pipe", "folder"])
def test_digests_of_files_that_cannot_be_read_are_computed_again(content, prepare, tmp_path):
    first, _ = prepare()
    path = tmp_path / "cache/files.json"
    path.unlink()
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir}.get(content, lambda: path.write_text(content))()
    assert same(first, prepare()[0])
