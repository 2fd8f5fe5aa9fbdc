"""Encoded rows are made once, under a key of all that they depend on."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from support import whole_runs
from support.prepared_rows import ROWS, entries, same, write

from dpo_lightning.data import text_datamodule
from dpo_lightning.data.cache import cache_folder, file_digests
from dpo_lightning.data.cache.encoded_rows import EncodedRows
from dpo_lightning.data.datamodules import PreferenceDataModule, UnpairedDataModule
from dpo_lightning.dpo import DPOModule
from dpo_lightning.errors import UserError
from dpo_lightning.kto import KTOModule
from dpo_lightning.losses import APOZeroUnpairedLoss
from dpo_lightning.models.causal_lm import CausalLM


@contextlib.contextmanager
def no_reading(monkeypatch):
    """Within the block, rows may only come from the cache."""
    with monkeypatch.context() as patch:
        patch.setattr(text_datamodule, "load_examples", None)
        yield


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
    assert lines[-1].startswith(f"rows: encoded into {tmp_path / 'cache'} for further runs (1 entry there, 0.")
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
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", -1)
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
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["files.json", "mine.txt", "other-run"]
    assert cache_folder.measure_folder(tmp_path / "nothing") == (0, 0)


def test_clearing_removes_what_a_killed_run_left_and_nothing_of_others(prepare, tmp_path):
    prepare()
    folder = tmp_path / "cache"
    name = entries(tmp_path)[0]
    (folder / f".{name}.12345678.partial").mkdir()
    (folder / f"{name[:24]}.lock").write_text("{}")
    for other in ("my-run", ".x.partial"):
        (folder / other).mkdir()
        (folder / other / "manifest.json").write_text("{}")
    (folder / "uv.lock").write_text("x")
    cache_folder.clear_folder(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".x.partial", "files.json", "my-run", "uv.lock"]
