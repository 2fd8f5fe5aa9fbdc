"""Whatever is in the place of a JSON file of this package leads to one of two errors, and blocks nothing."""

import os

import pytest

from dpo_lightning import json_files
from dpo_lightning.json_files import read_json


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"1" * 5], ids=len)
def test_what_is_no_json_or_too_much_of_it(tmp_path, content, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES", 4 if content == b"1" * 5 else 1 << 28)
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_json(path)


def test_a_pipe_a_device_and_a_folder_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "device", "loop", ".", "missing"):
        with pytest.raises(OSError, match=r"."):
            read_json(tmp_path / name)
