"""Encoded rows are made once and are right every time: after changes, damage, interruptions, and on full disks."""

import contextlib
import errno
import json
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

import pytest
from support import whole_runs

from dpo_lightning.data import preparation, text_datamodule
from dpo_lightning.data.cache import build_lock, cache_folder, file_digests, row_writer
from dpo_lightning.data.cache.build_lock import BuildLock
from dpo_lightning.data.cache.encoded_rows import EncodedRows
from dpo_lightning.data.datamodules import PreferenceDataModule, UnpairedDataModule
from dpo_lightning.dpo import DPOModule
from dpo_lightning.errors import UserError
from dpo_lightning.kto import KTOModule
from dpo_lightning.losses import APOZeroUnpairedLoss
from dpo_lightning.models.causal_lm import CausalLM

ROWS = [{"prompt": f"Count to {n}.", "chosen": f"It is {n}.", "rejected": f"No {n}?"} for n in range(10, 40)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return {"train": write(tmp_path / "train.jsonl", ROWS[:25]), "eval": write(tmp_path / "eval.jsonl", ROWS[25:])}


@pytest.fixture
def prepare(tiny_llama, files, tmp_path, caplog):
    """Prepare rows; return the data module and the lines that were logged."""
    caplog.set_level("INFO", "dpo_lightning")

    def run(module=None, stage="fit", kind=PreferenceDataModule, **options):
        caplog.clear()
        data = kind(**{**files, "max_length": 256, "cache": str(tmp_path / "cache"), **options})
        data.prepare(stage, module or DPOModule(CausalLM(str(tiny_llama))))
        return data, [record.message for record in caplog.records]

    return run


@contextlib.contextmanager
def no_reading(monkeypatch):
    """Within the block, rows may only come from the cache."""
    with monkeypatch.context() as patch:
        patch.setattr(text_datamodule, "load_examples", None)
        yield


def entries(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.is_dir())


def same(one, other):
    return one.encoded == other.encoded and set(one.encoded) == {"train", "eval"}


def copy_rows(data):
    """Replace the rows, which a file that is cut would take away, by a copy."""
    data.encoded = {name: list(rows) for name, rows in data.encoded.items()}
    return data


def test_the_second_run_reads_nothing_and_says_the_same(prepare, files, tmp_path, monkeypatch):
    write(Path(files["train"]), [{**row, "score": 1} for row in [*ROWS[:25], ROWS[3]]])
    plain, _ = prepare(cache="none")
    assert not (tmp_path / "cache").exists()
    first, lines = prepare()
    assert same(plain, first)
    with no_reading(monkeypatch):
        again, later = prepare()
    assert same(first, again)
    notes = [line for line in lines if line.startswith("note: ")]
    assert any("repeated rows: 1" in line for line in notes)
    assert any("not used: score" in line for line in notes)
    assert [line for line in later if line.startswith("note: ")] == notes
    assert lines[-1].startswith(f"rows: encoded into {tmp_path / 'cache'} for further runs, which has 1 set of rows, ")
    assert later[-1] == f"rows: 26 train, 5 eval, encoded before, from {tmp_path / 'cache'}"
    assert isinstance(again.encoded["train"], EncodedRows)
    assert again.encoded["eval"].read_prompt(4) == "Count to 39."


def test_held_out_rows_alone_are_another_entry(prepare, tmp_path):
    prepare()
    data, _ = prepare(stage="validate")
    assert set(data.encoded) == {"eval"}
    assert len(entries(tmp_path)) == 2


def test_a_changed_file_is_read_again(prepare, files):
    path = Path(files["train"])
    first, _ = prepare()
    stat = path.stat()
    changed = path.read_text().replace("It is 12.", "It is 99.")
    path.write_text(changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    again, _ = prepare()
    assert not same(first, again)
    assert same(again, prepare(cache="none")[0])


def test_a_file_whose_digest_is_known_is_read_once(prepare, files, monkeypatch):
    """Later starts take the same time for any number of rows."""
    monkeypatch.setattr(file_digests, "SETTLED", -1)
    hashed = []
    hash_file = file_digests.hash_file
    monkeypatch.setattr(file_digests, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    prepare()
    assert set(map(str, hashed)) >= set(files.values())
    hashed.clear()
    prepare()
    assert hashed == []
    path = Path(files["train"])
    stat = path.stat()
    path.write_text(path.read_text().replace("It is 12.", "It is 99."))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    prepare()
    assert str(path) in map(str, hashed)


CHANGES = {
    "max_length": 255,
    "overlong": "drop",
    "special_tokens": "neutralize",
    "template": "raw",
    "limit_rows": 20,
    "strict": True,
    "allow": "leak",
    "format": "pairs",
    "columns": {"prompt": "prompt"},
    "ignore_columns": ["other"],
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_option_is_another_entry(name, prepare, files, tmp_path):
    for path in files.values():
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        write(Path(path), [{**row, "other": 1} for row in rows])
    prepare()
    with contextlib.suppress(UserError):
        prepare(**{name: CHANGES[name]})
        assert len(entries(tmp_path)) == 2
        return
    assert name == "strict"  # the column `other` is an error then, as without a cache


def test_a_changed_tokenizer_or_template_is_another_entry(prepare, tiny_llama, tmp_path):
    module = DPOModule(CausalLM(str(tiny_llama)))
    first, _ = prepare(module)
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    other, _ = prepare(DPOModule(CausalLM(str(tiny_llama))), chat_template=str(template), template="chat")
    assert len(entries(tmp_path)) == 2
    assert not same(first, other)
    third = DPOModule(CausalLM(str(tiny_llama)))
    third.tokenizer.add_tokens(["Count"])
    changed, _ = prepare(third)
    assert len(entries(tmp_path)) == 3
    assert not same(first, changed)


def test_changed_code_is_another_entry(prepare, tmp_path, monkeypatch):
    prepare()
    from dpo_lightning.data.cache import keys

    keys.digest_code.cache_clear()
    monkeypatch.setattr(keys, "hash_files", lambda paths: "another version of the package")
    prepare()
    monkeypatch.undo()
    keys.digest_code.cache_clear()
    assert len(entries(tmp_path)) == 2


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
def test_a_damaged_entry_is_made_anew_with_a_line(damage, prepare, tmp_path):
    first = copy_rows(prepare()[0])
    (name,) = entries(tmp_path)
    time.sleep(0.02)  # a write within the same tick of the kernel's clock would have the same time
    DAMAGE[damage](tmp_path / "cache" / name)
    again, lines = prepare()
    assert same(first, again)
    assert sum("are damaged (" in line for line in lines) == 1
    assert entries(tmp_path) == [name]
    assert not any("are damaged (" in line for line in prepare()[1])


def test_a_memo_of_nonsense_is_ignored(prepare, tmp_path):
    first, _ = prepare()
    for content in ("{", "[1]", '{"a": 1}', '{"a": [1, 2, 3]}', "\xff"):
        (tmp_path / "cache/files.json").write_text(content, encoding="latin-1")
        assert same(first, prepare()[0])


# Folders that cannot be written


def test_without_a_folder_that_can_be_written_the_rows_are_encoded_for_the_run(prepare, files, tmp_path):
    (tmp_path / "cache").write_text("a file")
    data, lines = prepare()
    assert same(data, prepare(cache="none")[0])
    (line,) = [line for line in lines if "cannot be written" in line]
    assert (
        line == f"note: {tmp_path / 'cache'} cannot be written (File exists): the rows are encoded for this run alone"
    )


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("places", [1, 2])
def test_a_full_disk_leaves_right_rows(first, places, prepare, tmp_path, monkeypatch):
    """The disk of the cache is full, then that of temporary files too."""
    expected, _ = prepare(cache="none")
    append, calls = row_writer.RowWriter.append, count()

    def fail(writer, row, prompt=None):
        folder = writer._folder
        of_cache = folder is not None and str(tmp_path) in str(folder)
        full = of_cache or (places == 2 and folder is not None)
        if full and next(calls) >= first:
            raise OSError(errno.ENOSPC, "No space left on device")
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
            code = 0 if same(data, expected) and any("cannot be written" in line for line in lines) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Several processes


def in_child(work, result):
    """Run `work` in a forked process, which writes what it returns as JSON."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        result.write_text(json.dumps(work()))
        code = 0
    finally:
        os._exit(code)


def test_of_processes_that_start_at_once_one_encodes(prepare, tmp_path, monkeypatch):
    expected, _ = prepare(cache="none")
    slow = preparation.track
    monkeypatch.setattr(preparation, "track", lambda rows, *_: (time.sleep(0.02) or row for row in slow(rows, "x")))
    monkeypatch.setattr(build_lock, "POLL", 0.01)

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


def test_a_lock_without_signs_of_life_is_taken_over(tmp_path, monkeypatch):
    """Of another machine, whose processes are not seen from here."""
    monkeypatch.setattr(build_lock, "STALE", 0.2)
    monkeypatch.setattr(build_lock, "POLL", 0.01)
    lock = tmp_path / "x.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "t"}))
    mine = BuildLock(lock)
    assert mine.acquire(lambda: False)
    assert "elsewhere" not in lock.read_text()
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_with_signs_of_life_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(build_lock, "STALE", 0.4)
    monkeypatch.setattr(build_lock, "POLL", 0.01)
    monkeypatch.setattr(build_lock, "BEAT", 0.05)
    held = BuildLock(tmp_path / "x.lock")
    assert held.acquire(lambda: False)
    began = time.monotonic()
    assert not BuildLock(tmp_path / "x.lock").acquire(lambda: time.monotonic() - began > 1)
    assert "token" in (tmp_path / "x.lock").read_text()
    held.release()


def test_other_ranks_let_the_first_begin(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(build_lock, "PATIENCE", 0.3)
    monkeypatch.setattr(build_lock, "POLL", 0.01)
    began = time.monotonic()
    lock = BuildLock(tmp_path / "x.lock")
    assert lock.acquire(lambda: False)
    assert time.monotonic() - began > 0.3
    lock.release()


# The kinds of rows, and what depends on more than the rows


def test_mismatched_answers_are_part_of_the_key(prepare, tiny_llama, tmp_path):
    made = KTOModule(CausalLM(str(tiny_llama)))
    with_other, _ = prepare(made, kind=UnpairedDataModule)
    without, _ = prepare(KTOModule(CausalLM(str(tiny_llama)), loss=APOZeroUnpairedLoss()), kind=UnpairedDataModule)
    assert {len(row.answers) for row in with_other.encoded["train"]} == {2}
    assert {len(row.answers) for row in without.encoded["train"]} == {1}
    assert same(prepare(made, kind=UnpairedDataModule)[0], with_other)
    assert len(entries(tmp_path)) == 2


def test_a_date_in_the_template_is_part_of_the_key(prepare, tmp_path):
    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    (tmp_path / "dated.jinja").write_text(template)
    options = {"chat_template": str(tmp_path / "dated.jinja"), "template": "chat"}
    one, lines = prepare(template_date="2026-01-02", **options)
    other, _ = prepare(template_date="2025-01-02", **options)
    assert not same(one, other)
    again, later = prepare(template_date="2026-01-02", **options)
    assert same(one, again)
    assert again.template_date.written == "2026-01-02"
    dated = [line for line in lines if "writes the date" in line]
    assert len(dated) == 1
    assert [line for line in later if "writes the date" in line] == dated


def test_training_is_the_same_from_the_cache(tiny_llama, files, tmp_path):
    ends = []
    for cache in ("none", str(tmp_path / "cache"), str(tmp_path / "cache")):
        data = PreferenceDataModule(**files, batch_size=4, max_length=256, cache=cache)
        module = DPOModule(CausalLM(str(tiny_llama)))
        whole_runs.fit(module, data, tmp_path / "run", max_epochs=1)
        ends.append(whole_runs.weights(module))
    for other in ends[1:]:
        assert all((value == other[name]).all() for name, value in ends[0].items())


# limit_rows


def test_a_limit_draws_rows_by_the_seed_in_the_order_of_the_file(prepare, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    data, lines = prepare(limit_rows=10)
    drawn = [row.origin.line for row in data.encoded["train"]]
    assert len(drawn) == 10
    assert drawn == sorted(drawn)
    assert len(data.encoded["eval"]) == 5
    assert "note: 10 of 25 rows are used, drawn by the seed 7" in lines
    assert [row.origin.line for row in prepare(limit_rows=10)[0].encoded["train"]] == drawn
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    assert [row.origin.line for row in prepare(limit_rows=10)[0].encoded["train"]] != drawn
    assert prepare(limit_rows=25)[0].encoded == prepare()[0].encoded


def test_clearing_leaves_what_is_not_of_the_cache(prepare, tmp_path):
    prepare()
    (tmp_path / "cache/other-run").mkdir()
    (tmp_path / "cache/mine.txt").write_text("x")
    assert cache_folder.measure_folder(tmp_path / "cache")[0] == 1
    cache_folder.clear_folder(tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["mine.txt", "other-run"]
    assert cache_folder.measure_folder(tmp_path / "nothing") == (0, 0)
