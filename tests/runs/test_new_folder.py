"""A folder that is made whole or not at all, and never over or inside what is there."""

import fcntl
import os

import pytest

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.runs import new_folder
from dpo_lightning.runs.new_folder import NewFolder


def contents(folder):
    """All paths below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(act, said, code=ExitCode.OUTPUT):
    with pytest.raises(UserError) as raised:
        act()
    assert raised.value.code == code
    assert said in str(raised.value)
    assert "--out" in raised.value.fix


def test_it_appears_whole(tmp_path):
    out = NewFolder(str(tmp_path / "a b/모델"), "out")
    out.check([tmp_path / "model"])
    with out.write() as folder:
        (folder / "sub").mkdir()
        (folder / "weights").write_text("x")
        assert not out.path.exists()
    assert contents(tmp_path) == ["a b", "a b/모델", "a b/모델/sub", "a b/모델/weights"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    out = NewFolder(str(tmp_path / "out"), "out")
    out.check([])
    with out.write() as folder:
        (folder / "weights").write_text("x")
    assert contents(tmp_path) == ["out", "out/weights"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt(), UserError(67, "x")])
def test_a_failure_leaves_nothing(error, tmp_path):
    out = NewFolder(str(tmp_path / "made/for/out"), "out")

    def write():
        with out.write() as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(type(error)):
        write()
    assert contents(tmp_path) == []


def test_a_failure_at_the_very_end_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("x")
    out = NewFolder(str(tmp_path / "out"), "out")

    def fail(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(new_folder, "sync", fail)
    with pytest.raises(OSError, match="No space"), out.write() as folder:
        (folder / "new").write_text("x")
    assert contents(tmp_path) == ["out", "out/old"]


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / ".out.partial/sub").mkdir(parents=True)
    (tmp_path / ".out.partial/half").write_text("x")
    (tmp_path / ".out.partial" / new_folder.MARK).touch()
    with NewFolder(str(tmp_path / "out"), "out").write() as folder:
        (folder / "weights").write_text("x")
    assert contents(tmp_path) == ["out", "out/weights"]


def test_a_folder_that_is_written_is_marked(tmp_path):
    """So that what a killed process leaves can be told from a folder of the user's."""
    with NewFolder(str(tmp_path / "out"), "out").write():
        assert contents(tmp_path) == [".out.partial", f".out.partial/{new_folder.MARK}"]
    assert contents(tmp_path) == ["out"]


def write_in(out):
    with out.write() as folder:
        (folder / "weights").write_text("x")


@pytest.mark.parametrize("act", [lambda out: out.check([]), write_in])
@pytest.mark.parametrize("kind", ["folder", "link", "broken", "file", "linked mark"])
def test_what_is_not_ours_is_left_alone(kind, act, tmp_path):
    partial, theirs = tmp_path / ".out.partial", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "letter").write_text("x")
    if kind == "folder":
        theirs.rename(partial)
    elif kind == "file":
        partial.write_text("x")
    elif kind == "linked mark":
        partial.mkdir()
        (partial / new_folder.MARK).symlink_to(theirs / "letter")
    else:
        (theirs / new_folder.MARK).touch()
        partial.symlink_to(theirs if kind == "link" else tmp_path / "nowhere")
    before = contents(tmp_path)
    refused(lambda: act(NewFolder(str(tmp_path / "out"), "out")), ".out.partial")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("length", "used", "good"), [(246, False, True), (247, False, False), (240, True, False)])
def test_a_name_whose_other_names_are_too_long(length, used, good, tmp_path):
    """Refused before the work, not after it."""
    out = NewFolder(str(tmp_path / "made" / ("x" * length)), "out")
    if used:
        (out.path / "old").mkdir(parents=True)
    if good:
        out.check([])
        write_in(out)
        return
    refused(lambda: out.check([], fresh=True), "the name is too long by 1 bytes")
    if not used:
        refused(lambda: write_in(out), "File name too long")
        assert contents(tmp_path) == []


def test_two_do_not_write_at_once(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    handle = os.open(tmp_path / ".out.partial", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    (tmp_path / ".out.partial/theirs").write_text("x")
    try:
        refused(lambda: NewFolder(str(tmp_path / "out"), "out").write().__enter__(), "another process is writing")
    finally:
        os.close(handle)
    assert contents(tmp_path) == [".out.partial", ".out.partial/theirs"]


def test_a_used_folder_is_refused_or_moved_aside(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("x")
    out = NewFolder(str(tmp_path / "out"), "out")
    refused(lambda: out.check([]), "already exists")
    out.check([], fresh=True)
    for _ in range(2):  # within one second
        with out.write() as folder:
            (folder / "new").write_text("x")
    assert sorted(path.name for path in out.path.iterdir()) == ["new"]
    aside = sorted(path for path in tmp_path.iterdir() if path.name != "out")
    assert [sorted(child.name for child in path.iterdir()) for path in aside] == [["old"], ["new"]]
    assert str(aside[0]) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model", "model/merged", "model/a/b", ".", "link/merged", "link"])
def test_what_is_read_is_not_written_in(name, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    out = NewFolder(str(tmp_path / name), "out")
    refused(lambda: out.check([tmp_path / "model"], fresh=True), "which is read")


def test_a_file_and_a_link_are_no_folders(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        refused(lambda name=name: NewFolder(str(tmp_path / name), "out").check([]), "a file or a link")
    refused(lambda: NewFolder(str(tmp_path / "file/out"), "out").check([]), "is not writable")


def test_a_name_that_is_too_long(tmp_path):
    refused(lambda: NewFolder(str(tmp_path / ("x" * 300)), "out").check([]), "File name too long")


@pytest.mark.parametrize("name", ["", " ", "..", "/", "a\0b"])
def test_what_is_no_name_is_refused(name):
    refused(lambda: NewFolder(name, "out"), "not a folder name", ExitCode.CONFIG)
