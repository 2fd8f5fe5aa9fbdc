"""A file of reference log-probabilities: a number per scored token, found by what an answer is and not by its row."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import uuid
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.data.examples import EncodedAnswer
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.references.provenance import DIGEST_CHARS, Provenance
from dpo_lightning.special_files import check_not_special

KEY = "model.reference.path"
HEADER = "dpo_lightning.reference"
VERSION = 1
KEY_BYTES = 32


class TokenTable(NamedTuple):
    """Log-probabilities of the scored tokens of many answers.

    Attributes:
        keys: the answers' digests, ascending.
        offsets: where the values of each answer begin, and the end of the last.
        values: natural logarithms, float32.
    """

    keys: tuple[bytes, ...]
    offsets: Int[Tensor, " answers+1"]
    values: Float[Tensor, " token"]

    @classmethod
    def of(cls, answers: Mapping[bytes, Float[Tensor, " token"]]) -> TokenTable:
        """Build a table from the token log-probabilities of each answer, by its digest."""
        keys = sorted(answers)
        lengths = torch.tensor([len(answers[key]) for key in keys], dtype=torch.int64)
        values = torch.cat([torch.zeros(0, dtype=torch.float32), *(answers[key] for key in keys)])
        return cls(tuple(keys), cumulative_ends(lengths), values)

    @classmethod
    def merged(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """Merge tables; of an answer that is in several, the values of the first table are kept."""
        at: dict[bytes, int] = {}
        for number, key in enumerate(key for table in tables for key in table.keys):
            at.setdefault(key, number)
        keys = sorted(at)
        order = torch.tensor([at[key] for key in keys], dtype=torch.int64)
        none = torch.zeros(0, dtype=torch.int64)
        firsts = cumulative_ends(torch.tensor([len(table.values) for table in tables], dtype=torch.int64)).tolist()
        starts = torch.cat([none, *(t.offsets[:-1] + first for t, first in zip(tables, firsts, strict=False))])
        lengths = torch.cat([none, *(table.offsets.diff() for table in tables)])[order]
        offsets = cumulative_ends(lengths)
        places = torch.arange(int(offsets[-1])) + (starts[order] - offsets[:-1]).repeat_interleave(lengths)
        values = torch.cat([torch.zeros(0, dtype=torch.float32), *(table.values for table in tables)])
        return cls(tuple(keys), offsets, values[places])

    def sums(self) -> tuple[Float[Tensor, " answer"], Float[Tensor, " answer"]]:
        """Sums in nats and numbers of scored tokens of each answer."""
        lengths = self.offsets.diff()
        owners = torch.arange(len(lengths)).repeat_interleave(lengths)
        sums = torch.zeros(len(lengths), dtype=torch.float64).index_add(0, owners, self.values.double())
        return sums.float(), lengths.float()


class LogpFile:
    """One file, and beside it the parts that a pass has left so far. Each is written whole or not at all."""

    def __init__(self, path: Path, provenance: Provenance) -> None:
        """Name the file and what its values have to come from.

        Raises:
            UserError: 64, the path has no name.
        """
        if not path.name:
            raise UserError(ExitCode.CONFIG, Problem("this is no file name", KEY, str(path)), fix=f"--{KEY} FILE")
        self.path, self.provenance = path, provenance
        self.parts = path.with_name(f"{path.name}.parts")
        self._known: dict[Path, tuple[tuple[int, int, int], TokenTable]] = {}

    def load(self) -> tuple[TokenTable, list[TokenTable]]:
        """What the file holds, and what the parts hold; nothing where there is none.

        Raises:
            UserError: a file is damaged (65), none of ours (65), or was computed with something else (64).
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
            write(self.parts / f"{name}.safetensors", TokenTable.of(answers), self.provenance)

    def merge(self) -> None:
        """Write the file with all that its parts hold, and remove them."""
        with self._reported(), locked(self.path.parent):
            parts = list(self._parts())
            if not parts:
                return
            whole = [self._read(self.path)] if self.path.exists() else []
            table = TokenTable.merged([*whole, *(self._read(part) for part in parts)])
            write(self.path, table, self.provenance)
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
        version = (state.st_ino, state.st_mtime_ns, state.st_size)
        if self._known.get(path, ((), None))[0] == version:
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
        self._known[path] = version, table
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


def answer_digest(prompt_ids: Sequence[int], answer: EncodedAnswer) -> bytes:
    """What an answer is to a model: its prompt, its tokens, and which of them are scored."""
    digest = hashlib.sha256(array("q", [len(prompt_ids), len(answer.ids), *prompt_ids, *answer.ids]).tobytes())
    digest.update(bytes(answer.scored))
    return digest.digest()


def write(path: Path, table: TokenTable, provenance: Provenance) -> None:
    """Write a table beside its place, force it to the disk, and rename it there.

    Args:
        path: the file; its folder exists.
        table: what is stored.
        provenance: what it was computed with.

    Raises:
        OSError: as writing does; nothing is left behind then.
    """
    keys = torch.frombuffer(bytearray(b"".join(table.keys)), dtype=torch.uint8) if table.keys else torch.zeros(0)
    tensors = {
        "keys": keys.to(torch.uint8).reshape(-1, KEY_BYTES),
        "offsets": table.offsets.contiguous(),
        "values": table.values.contiguous(),
    }
    header = {"version": VERSION, **asdict(provenance)}
    header["checksum"] = content_digest(header, tensors)
    # One entry: several would be written in an order of their own each time, and equal files would differ.
    content = save(tensors, {HEADER: json.dumps(header, sort_keys=True)})
    with open_atomic(path, "wb") as file:
        file.write(content)


def read(path: Path) -> tuple[Provenance, TokenTable]:
    """What a file holds and what it was computed with.

    Raises:
        UserError: it cannot be read (66), is damaged or none of ours (65).
    """
    try:
        check_not_special(path)
        with path.open("rb"), safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get(HEADER)
            if stored is None:
                raise damaged(path, "it holds no reference log-probabilities")
            header = json.loads(stored)
            tensors = {name: file.get_tensor(name) for name in ("keys", "offsets", "values")}
    except OSError as error:
        problem = Problem(f"the file cannot be read: {error.strerror or error}", KEY, str(path))
        raise UserError(ExitCode.INPUT_MISSING, problem, fix=f"--{KEY} with a file that can be read") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise damaged(path, str(error).partition("\n")[0]) from None
    version = header.get("version") if isinstance(header, dict) else None
    if version != VERSION:
        raise damaged(path, f"its format is {version!r}, known is {VERSION}")
    if header.pop("checksum", None) != content_digest(header, tensors):
        raise damaged(path, "its checksum does not fit its content")
    names = {field.name for field in fields(Provenance)}
    keys, offsets, values = tensors["keys"], tensors["offsets"], tensors["values"]
    plain = keys.reshape(-1).numpy().tobytes()
    cut = tuple(plain[start : start + KEY_BYTES] for start in range(0, len(plain), KEY_BYTES))
    return Provenance(**{name: str(header.get(name, "")) for name in names}), TokenTable(cut, offsets, values)


def content_digest(header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """A digest of all contents of a file: its provenance and values."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def damaged(path: Path, reason: str) -> UserError:
    """The error for a file that is not what it should be: it is never written over."""
    return UserError(
        ExitCode.DATA,
        Problem(f"this is no whole file of reference log-probabilities: {reason}", KEY, str(path)),
        fix=f"--{KEY} (or --out) with another name; if it was one of these, remove the file, and it is computed again",
    )


def cumulative_ends(lengths: Int[Tensor, " answer"]) -> Int[Tensor, " answers+1"]:
    """The offsets of consecutive stretches of these lengths: 0, then the end of each."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


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
