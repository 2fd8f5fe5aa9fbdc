"""The values of `--data.cache`: a folder, the default one, none, or an error that says what to write."""

from pathlib import Path

import pytest
from support.command_line import Bench, refused
from support.prepared_rows import same

from dpo_lightning.data.cache.cache_choice import choose_folder
from dpo_lightning.errors import UserError

RUN = Path("outputs/run")


@pytest.fixture
def bench(tiny_llama, tmp_path):
    return Bench(tmp_path, tiny_llama)


@pytest.mark.parametrize("value", [None, False, "none", "None", "null", "false", "False"])
def test_the_cache_is_switched_off(value, prepare, tmp_path):
    assert choose_folder(value, RUN, []) is None
    _, lines = prepare(cache=value)
    assert not any("rows: " in line for line in lines)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_default_is_beside_the_run():
    assert choose_folder("auto", RUN, []) == Path("outputs/encoded")
    assert choose_folder("auto", None, []) is None
    assert choose_folder("mine", RUN, []) == Path("mine")


@pytest.mark.parametrize("value", ["", " ", "~", "~/x", "$HOME/x", "a\0b", "s3://bucket/x"])
def test_a_name_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"at data\.cache") as caught:
        choose_folder(value, RUN, [])
    assert "fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("value", "run"), [("auto", "x/encoded"), ("x", "x"), ("x/../y", "y"), ("link", "target")], ids=str
)
def test_the_runs_own_folder_is_refused(value, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("target").mkdir()
    Path("x").mkdir()
    Path("link").symlink_to("target")
    with pytest.raises(UserError, match=r"is that of the run \(output_dir\) at data\.cache"):
        choose_folder(value, Path(run), [])


@pytest.mark.parametrize(("value", "inside"), [("rows/x", True), ("rows", True), ("rows2", False), ("x", False)])
def test_a_folder_inside_that_of_the_rows_is_refused(value, inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    sources = ["hf://rows", "missing", "rows"]
    if not inside:
        assert choose_folder(value, RUN, sources) == Path(value)
        return
    with pytest.raises(UserError, match=r"is inside that of the rows, rows at data\.cache"):
        choose_folder(value, RUN, sources)


UNUSABLE = {
    "a file": "it is not a folder",
    "a file/below": "Not a directory",
    "a loop": "Too many levels of symbolic links",
}


@pytest.mark.parametrize("name", UNUSABLE, ids=lambda name: name[:12])
def test_where_there_can_be_no_folder_the_rows_are_encoded_for_the_run(name, prepare, tmp_path):
    (tmp_path / "a file").write_text("x")
    (tmp_path / "a loop").symlink_to("a loop")
    data, lines = prepare(cache=str(tmp_path / name))
    assert same(data, prepare(cache="none")[0])
    assert sum(f"cannot be used ({UNUSABLE[name]}): the rows are encoded for this run" in line for line in lines) == 1


def test_the_command_line_names_the_key(bench):
    rows = bench.folder / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text(bench.train.read_text())
    refused(bench.fit("--data.cache="), 64, "not the name of a file or folder at data.cache", "--data.cache none")
    refused(bench.fit(out="encoded"), 64, "is that of the run (output_dir) at data.cache", "--output_dir")
    assert not (bench.folder / "encoded").exists()
    inside = [f"--data.train={rows}", f"--data.cache={rows / 'x'}"]
    refused(bench.fit(*inside), 64, "is inside that of the rows", "--data.cache DIR with another folder")
    assert [path.name for path in rows.iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize("value", ["null", "false", "none", "~"])
def test_a_config_switches_the_cache_off(value, bench):
    ran = bench.run("validate", *bench.overlay(f"data:\n  cache: {value}\n"))
    assert ran.code == 0, ran.err
    assert "rows: " not in ran.out
    assert not (bench.folder / "encoded").exists()
