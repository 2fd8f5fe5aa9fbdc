"""Rows are right every time: after damage, interruptions, on full disks, and with several processes at once."""

import errno
import json
import os
import signal
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import pytest
from support.prepared_rows import copy_rows, entries, in_child, same

from dpo_lightning.data import preparation, text_datamodule
from dpo_lightning.data.cache import build_lock, cache_folder, row_writer
from dpo_lightning.data.cache.build_lock import BuildLock
from dpo_lightning.data.cache.cache_folder import StorageError
from dpo_lightning.data.cache.row_cache import RowCache
from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.dpo import DPOModule
from dpo_lightning.errors import UserError
from dpo_lightning.models.causal_lm import CausalLM

DAMAGE = {
    "cut": lambda folder: os.truncate(folder / "train/rows.arrow", 900),
    "byte": lambda folder: flip(folder / "train/rows.arrow", -600),
    "sizes": lambda folder: flip(folder / "eval/sizes.npy", -3),
    "zeros": lambda folder: (folder / "train/rows.arrow").write_bytes(bytes(4000)),
    "missing": lambda folder: (folder / "eval/digests.npy").unlink(),
    "manifest": lambda folder: (folder / "manifest.json").write_text("{"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "another key": lambda folder: flip(folder / "manifest.json", 40, (folder / "manifest.json").read_bytes()[40] ^ 1),
}


def flip(path, place, value=255):
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_encoded_again_with_a_line(damage, prepare, tmp_path):
    first = copy_rows(prepare()[0])
    (name,) = entries(tmp_path)
    time.sleep(0.02)  # a write within the same tick of the kernel's clock would have the same time
    DAMAGE[damage](tmp_path / "cache" / name)
    again, lines = prepare()
    assert same(first, again)
    assert sum("are damaged (" in line for line in lines) == 1
    assert entries(tmp_path) == [name]
    assert not any("are damaged (" in line for line in prepare()[1])


def test_a_file_of_digests_that_is_nonsense_is_ignored(prepare, tmp_path):
    first, _ = prepare()
    for content in ("{", "[1]", '{"a": 1}', '{"a": [1, 2, 3]}', "\xff"):
        (tmp_path / "cache/files.json").write_text(content, encoding="latin-1")
        assert same(first, prepare()[0])


# Folders that cannot be written


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("places", [1, 2])
def test_a_full_disk_leaves_right_rows(first, places, prepare, tmp_path, monkeypatch):
    """The disk of the cache is full, then that of temporary files too."""
    expected, _ = prepare(cache="none")
    append, calls = row_writer.RowWriter.append, count()

    def fail(writer, row, prompt=None):
        full = writer._folder is not None or (places == 2 and writer._file is not None)
        if full and next(calls) >= first:
            raise StorageError("No space left on device")
        append(writer, row, prompt)

    monkeypatch.setattr(row_writer, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(row_writer.RowWriter, "append", fail)
    data, lines = prepare()
    assert same(data, expected)
    assert sum("No space left" in line for line in lines) == places
    assert entries(tmp_path) == []


def test_a_real_write_error_is_one_too(prepare, tmp_path):
    """By the limit of a file's size, in a process of its own."""
    expected, _ = prepare(cache="none")
    child = os.fork()
    if not child:
        import resource

        code = 1
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - pytest's file for the output has the limit too
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
            data, lines = prepare()
            code = 0 if same(data, expected) and any("cannot be used" in line for line in lines) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Several processes


def test_a_killed_run_without_a_cache_leaves_no_temporary_files(prepare, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(row_writer, "ROWS_PER_BATCH", 4)

    def stop(rows, *_):
        for number, row in enumerate(rows):
            if number == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "track", stop)
        child = in_child(lambda: prepare(cache="none")[1], tmp_path / "out.json")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list((tmp_path / "tmp").iterdir()) == []
    data, _ = prepare(cache="none")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert same(data, prepare()[0])


def test_of_processes_that_start_at_once_one_encodes(prepare, tmp_path, monkeypatch):
    expected, _ = prepare(cache="none")
    slow = preparation.track
    monkeypatch.setattr(preparation, "track", lambda rows, *_: (time.sleep(0.02) or row for row in slow(rows, "x")))
    monkeypatch.setattr(build_lock, "POLL_SECONDS", 0.01)

    def work():
        data, lines = prepare()
        return [same(data, expected), lines[-1]]

    results = [tmp_path / f"{n}.json" for n in range(4)]
    children = [in_child(work, result) for result in results]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    found = [json.loads(result.read_text()) for result in results]
    assert all(right for right, _ in found)
    assert sum("encoded into" in line for _, line in found) == 1
    assert sum("encoded before" in line for _, line in found) == 3
    assert len(entries(tmp_path)) == 1
    assert not list((tmp_path / "cache").glob("*.lock"))


def test_killed_at_any_moment_the_next_run_is_right(prepare, tmp_path, monkeypatch):
    expected, _ = prepare(cache="none")
    slow = preparation.track
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "track", lambda rows, *_: (time.sleep(0.002) or row for row in slow(rows, "x")))
        for moment in range(10):
            child = in_child(lambda: prepare()[1], tmp_path / "out.json")
            time.sleep(0.01 + 0.012 * moment)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if moment % 3 == 2:
                assert same(prepare()[0], expected)
                cache_folder.clear_folder(tmp_path / "cache")
    data, lines = prepare()
    assert same(data, expected)
    assert not any("are damaged (" in line for line in lines)
    assert not list((tmp_path / "cache").glob(".*.partial"))
    assert not list((tmp_path / "cache").glob("*.lock*"))


def test_the_lock_of_a_process_that_ended_is_taken_over_with_a_line(prepare, tmp_path, monkeypatch):
    prepare()
    (name,) = entries(tmp_path)
    cache_folder.clear_folder(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    child = os.fork()
    if not child:
        BuildLock(tmp_path / "cache" / f"{name.partition('-')[0]}.lock").acquire(lambda: False)
        os._exit(0)
    os.waitpid(child, 0)
    (tmp_path / "cache" / f".{name}.1234.partial").mkdir()
    _, lines = prepare()
    assert sum("ended before the rows were encoded" in line for line in lines) == 1
    assert entries(tmp_path) == [name]


def test_a_folder_in_the_place_of_a_lock_leaves_the_rows_to_the_run(prepare, tmp_path):
    prepare()
    (name,) = entries(tmp_path)
    cache_folder.clear_folder(tmp_path / "cache")
    (tmp_path / "cache" / f"{name[:24]}.lock").mkdir(parents=True)
    data, lines = prepare()
    assert same(data, prepare(cache="none")[0])
    assert (
        sum(".lock in it is a folder, and not a lock): the rows are encoded for this run" in line for line in lines)
        == 1
    )


def test_a_file_that_changes_while_it_is_read_is_not_put_under_its_old_content(prepare, files, tmp_path, monkeypatch):
    path, before = Path(files["train"]), Path(files["train"]).read_text()
    load = text_datamodule.load_examples

    def change(kind, paths, **options):
        if paths == files["train"]:
            path.write_text(before.replace("It is 12.", "It is 99."))
        return load(kind, paths, **options)

    with monkeypatch.context() as patch:
        patch.setattr(text_datamodule, "load_examples", change)
        data, lines = prepare()
    assert sum("changed while it was read" in line for line in lines) == 1
    assert entries(tmp_path) == []
    assert same(data, prepare(cache="none")[0])
    path.write_text(before)
    assert not same(data, prepare()[0])


def test_the_texts_are_dropped_once_they_are_encoded(prepare):
    data, _ = prepare()
    assert data.examples == {}


def test_an_entry_that_cannot_be_opened_for_now_is_kept(prepare, tmp_path, monkeypatch):
    expected, _ = prepare()
    kept = entries(tmp_path)

    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(RowCache, "_open", fail)
        data, lines = prepare()
    assert same(data, expected)
    assert sum("cannot be used (Too many open files)" in line for line in lines) == 1
    assert entries(tmp_path) == kept
    assert "encoded before" in prepare()[1][-1]


def test_an_error_of_the_rows_file_is_not_one_of_the_cache(prepare, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(text_datamodule, "load_examples", fail)
    with pytest.raises(OSError, match="Input/output error"):
        prepare()


def test_rows_that_were_read_before_a_change_are_not_put_under_the_new_content(prepare, files, tiny_llama, tmp_path):
    data = PreferenceDataModule(**files, max_length=256, cache=str(tmp_path / "cache"))
    data.read_rows(["train"])
    path = Path(files["train"])
    path.write_text(path.read_text().replace("It is 12.", "It is 99."))
    data.prepare("fit", DPOModule(CausalLM(str(tiny_llama))))
    expected, _ = prepare(cache="none")
    assert same(data, expected)
    assert same(prepare()[0], expected)


@pytest.mark.parametrize("cache", ["none", "cache"])
def test_a_file_that_is_corrected_after_an_error_is_read_again(cache, prepare, files, tiny_llama, tmp_path):
    cache = cache if cache == "none" else str(tmp_path / cache)
    data = PreferenceDataModule(**files, max_length=4, cache=cache)
    module = DPOModule(CausalLM(str(tiny_llama)))
    with pytest.raises(UserError):
        data.prepare("fit", module)
    path = Path(files["train"])
    path.write_text(path.read_text().replace("It is 12.", "It is 99."))
    data.max_length = 256
    data.prepare("fit", module)
    assert same(data, prepare(cache="none")[0])


class Reversed(PreferenceDataModule):
    """Encodes the rows in another order."""

    def encode(self, encoder, examples):
        return reversed(list(super().encode(encoder, examples)))


def test_rows_of_a_users_class_are_not_kept(prepare, tmp_path):
    plain, _ = prepare(cache="none")
    data, lines = prepare(kind=Reversed)
    assert list(data.encoded["eval"]) == list(plain.encoded["eval"])[::-1]
    assert data.encoded["eval"].read_prompt(0) == "Count to 39."
    assert not (tmp_path / "cache").exists()
    assert "note: Reversed is not of dpo_lightning: its rows are encoded for each run" in lines
