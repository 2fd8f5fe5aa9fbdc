"""`CheckpointFiles`: checkpoints that are whole or absent, and known by their checksums."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dpo_lightning.activity import activity
from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.data.cache.file_digests import hash_file
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.json_files import read_json
from dpo_lightning.log import logger
from dpo_lightning.runs.checkpoint_shards import (
    find_not_finite,
    find_shard_damage,
    not_finite_error,
    read_shards,
    remove_unused,
)
from dpo_lightning.runs.hashed_files import save_hashed

MANIFEST = "manifest.json"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The newest checkpoint of a run and the one before, to which a run falls back if the newest is damaged."""

FORMAT = 1

MOST_KNOWN = 8
"""Entries that a name has at most: of processes that ended between an entry and the file's name, no more than these."""


class Entry(NamedTuple):
    """What the manifest says of a checkpoint."""

    sha256: str
    step: int


Entries = dict[str, list[Entry]]
"""Name of a file -> what it may hold: the newest checkpoint last, before it those that it may not have replaced yet."""


class Found(NamedTuple):
    """A checkpoint from which a run can go on.

    Attributes:
        path: the file.
        damaged: newer ones that cannot be used.
    """

    path: Path
    damaged: list[Path]


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's plugin for checkpoints, with files that cannot be torn.

    A checkpoint is written beside its place, synced and renamed. Lightning's own plugin writes into the folder for
    temporary files and copies from there, where that is on another file system: what ends the process meanwhile leaves
    half a file in place of the checkpoint that was there.
    """

    @activity("writing a checkpoint")
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; the last one before it is kept as `previous.ckpt`.

        Raises:
            UserError: 76, a trained weight is not finite; what was there stays.
            OSError: the file cannot be written; what was there stays.
        """
        path, step = Path(path), int(checkpoint["global_step"])
        check_finite(checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(path, "wb") as file:
            new = Entry(save_hashed(checkpoint, file), step)  # on the disk before the older checkpoints are renamed
            if "optimizer_states" in checkpoint:  # from weights alone, no run goes on
                before = self._record(path, new)
                if path.name == LAST and path.exists() and before is not None and before.step != step:
                    path.replace(path.with_name(PREVIOUS))
        remove_unused(path.parent)

    @activity("reading a checkpoint")
    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint; tensors that its run has split over ranks are put together."""
        return read_shards(super().load_checkpoint(path, *args, **options), Path(path).parent)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its entry."""
        super().remove_checkpoint(path)
        forget(Path(path))
        remove_unused(Path(path).parent)

    def _record(self, path: Path, new: Entry) -> Entry | None:
        """Add a checkpoint to the manifest, before it gets its name; return the entry of the one that is replaced."""
        entries = read_manifest(path.parent) or {}
        known = entries.get(path.name, [])
        before = known[-1] if known else None
        entries[path.name] = add_entry(known, new)
        if path.name == LAST and before is not None:
            entries[PREVIOUS] = add_entry(entries.get(PREVIOUS, []), before)
        write_manifest(path.parent, entries)
        return before


def check_finite(checkpoint: Mapping[str, Any]) -> None:
    """Check that all trained weights are numbers.

    Raises:
        UserError: 76, one is not.
    """
    for name in find_not_finite(checkpoint["state_dict"]):
        raise not_finite_error(name, int(checkpoint["global_step"]))


def read_manifest(folder: Path) -> Entries | None:
    """Read which checkpoints were written into a folder; None if there is no manifest, or a damaged one."""
    try:
        content = read_json(folder / MANIFEST)
        files = content["files"] if content["format"] == FORMAT else {}
        return {
            str(name): [Entry(str(one["sha256"]), int(one["step"])) for one in several]
            for name, several in files.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def write_manifest(folder: Path, entries: Entries) -> None:
    """Write which checkpoints a folder has."""
    files = {name: [each._asdict() for each in several] for name, several in sorted(entries.items())}
    with open_atomic(folder / MANIFEST) as file:
        json.dump({"format": FORMAT, "files": files}, file, indent=1)


@activity("checking the checkpoints")
def find_checkpoint_of_run(folder: Path) -> Found | None:
    """Find the newest whole checkpoint of a run, with a warning for each newer one that is damaged.

    Args:
        folder: `checkpoints/` of the run.

    Returns:
        None if the run has written no checkpoint.

    Raises:
        UserError: 66, it has written some and none of them is whole.
    """
    if not folder.is_dir():
        return None
    entries = read_manifest(folder)
    candidates = list_candidates(folder, entries)
    if entries is None and candidates:
        logger.warning(f"{folder / MANIFEST} is missing or damaged: the checkpoints' own checksums are compared")
    damaged: dict[Path, str] = {}
    for path in candidates:
        reason = find_damage(path, entries)
        if not reason:
            for other, why in damaged.items():
                logger.warning(f"{other} {why}: going on from {path.name}")
            return Found(path, list(damaged))
        damaged[path] = reason
    if not damaged and not entries:
        return None
    problems = [Problem(f"{path} {why}") for path, why in damaged.items()]
    raise UserError(
        ExitCode.INPUT_MISSING,
        problems or [Problem("the run's checkpoints were removed", str(folder))],
        fix="--fresh to move the run aside and begin again",
    )


def list_candidates(folder: Path, entries: Entries | None) -> list[Path]:
    """Return the checkpoints of a folder from the newest on; `last.ckpt` first of equal ones.

    They are those of the manifest, the missing ones included. Without a manifest they are all files, and the time at
    which a file was written counts.
    """
    names = {path.name for path in folder.glob("*.ckpt")} if entries is None else entries.keys()
    found = []
    for path in (folder / name for name in names):
        known = (entries or {}).get(path.name)
        written = path.lstat().st_mtime if path.exists() else 0.0
        found.append((known[-1].step if known else -1, path.name == LAST, written, path))
    return [path for *_, path in sorted(found, reverse=True)]


def set_aside(damaged: Sequence[Path]) -> None:
    """Rename damaged checkpoints to `NAME.damaged`, so that the next one does not replace the whole one by them."""
    for path in damaged:
        aside = path.with_name(f"{path.name}.damaged")
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        if path.exists() or path.is_symlink():
            path.rename(aside)
        forget(path)


def find_later(folder: Path, step: int) -> list[str]:
    """Return the names of checkpoints that were written into a folder at a step or after it."""
    entries = read_manifest(folder) or {}
    return [name for name, known in entries.items() if known and known[-1].step >= step and (folder / name).is_file()]


def remove_checkpoint(path: Path) -> None:
    """Remove the file of a checkpoint and its entry."""
    path.unlink()
    forget(path)
    remove_unused(path.parent)


def add_entry(known: Sequence[Entry], new: Entry) -> list[Entry]:
    """Append what a file is to hold."""
    return [*(entry for entry in known if entry != new), new][-MOST_KNOWN:]


def forget(path: Path) -> None:
    """Remove a checkpoint from the manifest of its folder."""
    entries = read_manifest(path.parent) or {}
    if entries.pop(path.name, None) is not None:
        write_manifest(path.parent, entries)


def find_damage(path: Path, entries: Entries | None) -> str:
    """Return why a checkpoint cannot be used, in a few words; empty if it can."""
    if path.is_symlink() or not path.is_file():
        return "is no file" if path.exists() or path.is_symlink() else "is missing"
    try:
        if entries is None:
            return find_shard_damage(path) if is_whole_archive(path) else "is damaged"
        digest = hash_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    known = [entry.sha256 for several in entries.values() for entry in several]
    return find_shard_damage(path) if digest in known else "is damaged, or of another run"


def is_whole_archive(path: Path) -> bool:
    """Whether the checksums inside a checkpoint, which is a zip archive, are those of its content.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch compresses nothing; what is compressed could fill the memory.
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
            return stored and archive.testzip() is None
    except OSError:
        raise
    except Exception:  # damaged bytes lead zipfile to errors of many kinds
        return False
