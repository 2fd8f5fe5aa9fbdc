"""`LogpFile`: a file of reference log-probabilities and the parts of it that a pass has written so far."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.references.provenance import DIGEST_CHARS, Provenance
from dpo_lightning.references.stored_values import KEY
from dpo_lightning.references.table_file import read, write
from dpo_lightning.references.token_table import TokenTable


class LogpFile:
    """One file, and beside it the parts that a pass has left so far. Each is written whole or not at all."""

    def __init__(self, path: Path, provenance: Provenance) -> None:
        """Set the path of the file and what its values must have been computed with.

        Raises:
            UserError: 64, the path has no name.
        """
        if not path.name:
            raise UserError(ExitCode.CONFIG, Problem("this is no file name", KEY, str(path)), fix=f"--{KEY} FILE")
        self.path, self.provenance = path, provenance
        self.parts = path.with_name(f"{path.name}.parts")
        self._known: dict[Path, tuple[tuple[int, ...], TokenTable]] = {}

    def load(self) -> tuple[TokenTable, list[TokenTable]]:
        """The tables of the file and of its parts; an empty one where there is no file.

        Raises:
            UserError: a file is damaged or of another kind (65), or was computed with something else (64).
        """
        with self._reported(), locked(self.path.parent, fcntl.LOCK_SH):
            whole = self._read(self.path) if self.path.exists() else TokenTable.of({})
            return whole, [self._read(part) for part in self._parts()]

    def add(self, answers: Mapping[bytes, Float[Tensor, " token"]]) -> None:
        """Write answers to a part, from which a pass that ended early resumes."""
        if not answers:
            return
        name = hashlib.sha256(b"".join(sorted(answers))).hexdigest()[:DIGEST_CHARS]
        with self._reported(), locked(self.path.parent):
            self.parts.mkdir(exist_ok=True)
            write(self.parts / f"{name}.safetensors", [TokenTable.of(answers)], self.provenance)

    def merge(self) -> None:
        """Write the file anew with the answers of its parts, copied one block at a time, and remove the parts.

        Raises:
            UserError: a file is damaged (65); nothing is changed.
        """
        with self._reported(), locked(self.path.parent):
            parts = list(self._parts())
            if not parts:
                return
            whole = [self._read(self.path)] if self.path.exists() else []
            write(self.path, [*whole, *(self._read(part) for part in parts)], self.provenance)
            self._known.clear()  # a mapped file that is removed still takes its place on the disk
            # Writing is done under the lock: what is unfinished now was left by a process that is gone.
            name = glob.escape(self.path.name)
            left = [*self.path.parent.glob(f".{name}.*.partial"), *self.parts.glob(".*.partial")]
            for file in [*parts, *left]:
                file.unlink()
            self.parts.rmdir()

    def check_writable(self) -> None:
        """Make the folder and write into it, before anything is computed for it."""
        with self._reported():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            trial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.trial")
            trial.touch()
            trial.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.parts.glob("[!.]*.safetensors"))

    def _read(self, path: Path) -> TokenTable:
        state = path.stat()
        stamp = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if self._known.get(path, ((), None))[0] == stamp:
            return self._known[path][1]
        stored, table = read(path)
        problems = list(self.provenance.differences(stored, str(path)))
        if problems:
            raise UserError(
                ExitCode.CONFIG,
                problems,
                fix=f"run with what the file was computed with, name another file, or leave --{KEY} out "
                "(the file is then found by these digests, and computed where there is none)",
            )
        self._known[path] = stamp, table
        return table

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            at = f" ({error.filename})" if error.filename else ""
            raise UserError(
                ExitCode.OUTPUT,
                Problem(f"the file cannot be written: {error.strerror}{at}", KEY, str(self.path)),
                fix=f"--{KEY} (precompute: --out) with a file in a folder of yours; or make room",
            ) from None


@contextmanager
def locked(folder: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Keep other processes from a folder's files for a moment, or from writing them (`LOCK_SH`)."""
    if not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: files are whole all the same
            fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)
