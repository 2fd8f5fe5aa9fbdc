"""`Manifest`: what is stored about an entry besides its rows; its shape is checked when it is read."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dpo_lightning.data.cache.cache_folder import MANIFEST, DamagedError
from dpo_lightning.data.cache.encoded_rows import PARTS
from dpo_lightning.data.readers.left_out import LeftOutRow

FORMAT = 2
"""Version of the layout of an entry; entries of other versions have other keys, and are not opened."""

KEY_CHARS = 24
"""Hexadecimal characters of each half of a key."""

MAX_BYTES = 64 << 20
"""The longest manifest: names of files and lines of the log are far shorter, and so are some 200,000 bad rows."""


@dataclass(frozen=True)
class Key:
    """What an entry depends on.

    Attributes:
        rows: a digest of the files and of how they are read.
        tokens: a digest of the tokenizer and of how rows are encoded.
    """

    rows: str
    tokens: str

    @property
    def name(self) -> str:
        """The name of the entry's folder."""
        return f"{self.rows[:KEY_CHARS]}-{self.tokens[:KEY_CHARS]}"


@dataclass
class Manifest:
    """What an entry has besides its rows.

    Attributes:
        files: name of a set -> the files that its rows come from.
        lines: what was logged when the rows were read and encoded; each use logs it again.
        wrote_date: whether prompts contain the date.
        left_out: name of a set -> its bad rows, where such rows are left out, as `LeftOutRow` has them.
        digests: path in the entry -> SHA-256 of the file.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    wrote_date: bool = False
    left_out: dict[str, list[LeftOutRow]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


def write_manifest(folder: Path, key: Key, manifest: Manifest) -> None:
    """Write the manifest of an entry.

    Raises:
        OSError: it cannot be written, or is longer than `MAX_BYTES`.
    """
    content = json.dumps({"format": FORMAT, "key": asdict(key), **asdict(manifest)}, indent=1).encode()
    if len(content) > MAX_BYTES:
        raise OSError(None, f"the names of the files and the notes about rows take more than {MAX_BYTES:,} bytes")
    (folder / MANIFEST).write_bytes(content)


def read_manifest(folder: Path, key: Key, names: Sequence[str]) -> Manifest:
    """Read the manifest of an entry, and check that its sets are the requested ones, each with the files of a set.

    Args:
        folder: the entry.
        key: what the entry depends on.
        names: the sets that it has.

    Raises:
        DamagedError: the manifest is missing or not such a one.
        OSError: it cannot be read.
    """
    check_regular(folder, MANIFEST)
    with (folder / MANIFEST).open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise DamagedError(f"{MANIFEST} has more than {MAX_BYTES:,} bytes")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedError(f"{MANIFEST} is not JSON") from None
    if not isinstance(content, dict) or content.get("key") != asdict(key):
        raise DamagedError("it has another key")
    values: dict[str, Any] = {part.name: content.get(part.name) for part in fields(Manifest)}
    manifest = Manifest(**values)
    files, digests = manifest.files, manifest.digests
    if (
        not (isinstance(files, dict) and files.keys() == set(names) and all(map(_is_texts, files.values())))
        or not (isinstance(digests, dict) and digests.keys() == set(list_parts(names)))
        or not (_is_texts(manifest.lines) and isinstance(manifest.wrote_date, bool))
        or not (isinstance(manifest.left_out, dict) and set(manifest.left_out) <= set(names))
        or not all(isinstance(rows, list) and all(map(_is_left_out, rows)) for rows in manifest.left_out.values())
    ):
        raise DamagedError(f"{MANIFEST} does not describe the sets {', '.join(names)}")
    manifest.left_out = {name: [LeftOutRow(*row) for row in rows] for name, rows in manifest.left_out.items()}
    return manifest


def list_parts(names: Sequence[str]) -> list[str]:
    """The paths of the files of sets within an entry."""
    return [f"{name}/{part}" for name in names for part in PARTS]


def check_regular(folder: Path, path: str) -> None:
    """Check that a path in an entry is that of a regular file of the entry itself: links could lead out of it.

    Raises:
        DamagedError: it is not.
        OSError: it cannot be examined.
    """
    place = folder
    for name in path.split("/"):
        place /= name
        try:
            mode = place.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise DamagedError(f"{path} is missing") from None
        if stat.S_ISLNK(mode):
            raise DamagedError(f"{path} is reached through a link")
    if not stat.S_ISREG(mode):
        raise DamagedError(f"{path} is not a file")


def _is_left_out(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != len(LeftOutRow._fields):
        return False
    file, line, nth, reasons, text = value
    return isinstance(file, str) and isinstance(text, str) and type(line) is type(nth) is int and _is_texts(reasons)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
