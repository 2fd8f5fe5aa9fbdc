"""Token log-probabilities in a memory-mapped file, whose blocks are verified when they are first read."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from dpo_lightning.errors import ExitCode, Problem, UserError

KEY = "model.reference.path"

BLOCK = 2**14
"""Values per checksum, 64 KiB: the shortest stretch that is read and verified at once."""

ON_DEVICE_BYTES = 2**28
"""Up to this size, all values are copied to the device of a batch: looking them up there never waits for the device.

Larger ones would take memory from the model for the sake of the few losses that need token values. Those of a batch are
then read on the CPU, which waits once per step for the device to hand over the indices.
"""


class StoredValues:
    """The token values of a table, in memory or in a mapped file.

    The pages of a mapped file belong to the page cache: processes of one machine share them, and only what is read is
    loaded. No value is returned before the checksum of its block was compared.
    """

    def __init__(
        self, values: Float[Tensor, " token"], checksums: Int[Tensor, " block"] | None = None, path: Path = Path()
    ) -> None:
        """Wrap values.

        Args:
            values: natural logarithms, float32, on the CPU.
            checksums: of each block, as `block_checksum` computes it; None where the values are verified already.
            path: the file, for errors.
        """
        self._values, self._checksums, self._path = values, checksums, path
        self._unchecked = np.full(0 if checksums is None else len(checksums), True)
        self._copy = values

    def __len__(self) -> int:
        return len(self._values)

    def whole(self) -> Float[Tensor, " token"]:
        """Return all values, verified.

        Raises:
            UserError: the file is damaged.
        """
        self._check(np.arange(len(self._unchecked)))
        return self._values

    def gather(self, places: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the values at some places, on the device of `places`.

        Raises:
            UserError: the file is damaged there.
        """
        device = places.device
        if device.type != "cpu" and self._values.nbytes <= ON_DEVICE_BYTES:
            if self._copy.device != device:
                self._copy = self.whole().to(device)
            return self._copy[places]
        here = places.cpu()
        if len(self._unchecked):
            self._check(np.unique(here.numpy() // BLOCK))
        return self._values[here].to(device)

    def _check(self, blocks: np.ndarray) -> None:
        for block in blocks[self._unchecked[blocks]].tolist():
            assert self._checksums is not None
            values = self._values[block * BLOCK : (block + 1) * BLOCK].numpy()
            if block_checksum(values) != int(self._checksums[block]):
                raise damaged(self._path, "a checksum does not fit its values")
            self._unchecked[block] = False


def block_checksum(values: np.ndarray) -> int:
    """Return the CRC-32 of a block of values, as a signed number of 32 bits."""
    return int(np.uint32(zlib.crc32(values.data)).astype(np.int32))


def cut_blocks(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Join consecutive float32 arrays and yield them as blocks of `BLOCK` values, the last one shorter.

    Each block is valid until the next one is taken.
    """
    block, filled = np.empty(BLOCK, dtype=np.float32), 0
    for piece in pieces:
        start = 0
        while start < len(piece):
            count = min(BLOCK - filled, len(piece) - start)
            block[filled : filled + count] = piece[start : start + count]
            start, filled = start + count, filled + count
            if filled == BLOCK:
                yield block
                filled = 0
    if filled:
        yield block[:filled]


def damaged(path: Path, reason: str) -> UserError:
    """Return the error for a file that is incomplete, changed or of another kind; such a file is never overwritten."""
    return UserError(
        ExitCode.DATA,
        Problem(f"this is no whole file of reference log-probabilities: {reason}", KEY, str(path)),
        fix=f"--{KEY} (or --out) with another name; if it was one of these, remove the file, and it is computed again",
    )
