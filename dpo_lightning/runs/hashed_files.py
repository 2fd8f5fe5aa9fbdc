"""`save_hashed`: writes tensors to a file, and returns the SHA-256 of what was written."""

from __future__ import annotations

import hashlib
import os
from typing import IO, Any, cast

import torch


class HashingWriter:
    """A file that is written from its beginning to its end, and the SHA-256 of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self.failure: OSError | None = None
        """Why a write has failed."""

    def write(self, data: Any) -> int:
        """Write bytes."""
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()


def save_hashed(content: Any, file: IO[bytes]) -> str:
    """Write what `torch.save` writes, force it to the disk, and return its SHA-256.

    Raises:
        OSError: the file cannot be written.
    """
    hashing = HashingWriter(file)
    try:
        torch.save(content, cast(IO[bytes], hashing))
    except RuntimeError as error:  # of torch, which does not say why a write has failed
        raise hashing.failure or error from error
    file.flush()
    os.fsync(file.fileno())
    return hashing.digest.hexdigest()
