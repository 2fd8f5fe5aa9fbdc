"""`WorkFolder`: what an interrupted evaluation has computed, a line for each row, so that it can go on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.special_files import check_not_special

INPUTS = "inputs.json"
LOCK = ".lock"


class WorkFolder:
    """The folder beside an output that keeps finished rows until all are there; each process writes its own file."""

    def __init__(self, output: Path, rank: int = 0) -> None:
        """Name the folder and this process's file; nothing is created yet."""
        self._output = output
        self._lock: int | None = None
        self.path = output.with_name(f".{output.name}.work")
        self._file = self.path / f"{rank}.jsonl"

    def holds(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the folder keeps rows of an evaluation with these inputs."""
        try:
            check_not_special(self.path / INPUTS)
            return (self.path / INPUTS).read_text(encoding="utf-8") == to_text(inputs)
        except (OSError, UnicodeDecodeError):
            return False

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Create the folder and lock it until `release`; rows of an evaluation with other inputs are removed.

        Args:
            inputs: everything that a row's results depend on, as JSON.

        Raises:
            UserError: 73, the folder cannot be written, or another process has locked it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._error("another process evaluates into this file") from None
            if not self.holds(inputs):
                for path in self.path.iterdir():
                    if path.name != LOCK:
                        path.unlink()
                with open_atomic(self.path / INPUTS) as file:
                    file.write(to_text(inputs))
        except OSError as error:
            raise self._error(f"the folder cannot be written: {error.strerror}") from None

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _error(self, what: str) -> UserError:
        return UserError(
            ExitCode.OUTPUT,
            Problem(what, "--output", str(self._output)),
            fix="choose another --output",
        )

    def load(self, name: str) -> dict[int, dict[str, Any]]:
        """Return the finished rows of a pass by their numbers, from the files of all processes.

        A line that was being written when a process was killed is left out, and so is one that was changed since.
        """
        found: dict[int, dict[str, Any]] = {}
        for path in sorted(self.path.glob("*.jsonl")):
            for line in path.read_bytes().split(b"\n") if path.is_file() else ():
                try:
                    entry = json.loads(line)
                    if entry["pass"] == name and entry["checksum"] == checksum(name, entry["row"], entry["values"]):
                        found[int(entry["row"])] = dict(entry["values"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
        return found

    def append(self, name: str, rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Write the rows of a batch and force them to the disk.

        Raises:
            UserError: 74, they cannot be written.
        """
        lines = [
            json.dumps(
                {"pass": name, "row": row, "values": values, "checksum": checksum(name, row, values)},
                ensure_ascii=False,
            )
            for row, values in rows.items()
        ]
        try:
            with self._file.open("ab") as file:
                # A line that a killed process left unfinished is ended first.
                file.write(("\n" + "\n".join(lines) + "\n").encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                ExitCode.IO,
                Problem(f"a batch cannot be kept: {error.strerror}", where=str(self._file)),
                fix="free some space, let one evaluation at a time write to an --output, and run the command again",
            ) from None

    def remove(self) -> None:
        """Remove the folder, once the output is complete."""
        shutil.rmtree(self.path, ignore_errors=True)


def checksum(name: str, row: int, values: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a row of a pass."""
    return zlib.crc32(to_text({"pass": name, "row": row, "values": values}).encode("utf-8", "surrogatepass"))


def to_text(inputs: Mapping[str, Any]) -> str:
    """Return inputs as the text of their file."""
    return json.dumps(inputs, sort_keys=True, ensure_ascii=False)
