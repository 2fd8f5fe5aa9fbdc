"""A file under its name is complete, whatever happens while it is written."""

import pytest

from dpo_lightning.atomic_files import move_aside, open_atomic


@pytest.mark.parametrize(("mode", "content"), [("w", "한 줄\n"), ("wb", b"\xff\x00")])
def test_a_written_file_has_its_content_and_nothing_beside_it(tmp_path, mode, content):
    path = tmp_path / "a"
    path.write_text("before")
    with open_atomic(path, mode) as file:
        file.write(content)
        assert path.read_text() == "before"
    assert path.read_bytes() == (content if mode == "wb" else content.encode())
    assert list(tmp_path.iterdir()) == [path]


def interrupted_write(path):
    with open_atomic(path) as file:
        file.write("half")
        yield


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    interrupt = interrupted_write(path)
    next(interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupt.throw(KeyboardInterrupt())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_folders_moved_aside_in_one_second_keep_apart(tmp_path):
    names = []
    for content in ("first", "second"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/content").write_text(content)
        names.append(move_aside(tmp_path / "run"))
    assert [(name / "content").read_text() for name in names] == ["first", "second"]
    assert not (tmp_path / "run").exists()
