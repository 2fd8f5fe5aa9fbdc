"""Folders for weights, which are removed also after a part that was killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "DPO_LIGHTNING_SCRATCH"
"""Variable with the beginning of the folders' names, which differs from check to check."""

MEMORY = Path("/dev/shm")


def list_places() -> list[Path]:
    """List the places for weights: memory, then the disk."""
    return [place for place in (MEMORY, Path(tempfile.gettempdir())) if os.access(place, os.W_OK)]


@contextmanager
def scratch_folder(needed: float = 0) -> Iterator[Path]:
    """Make a folder that is removed afterwards.

    Args:
        needed: bytes that will be written.

    Raises:
        OSError: no place has room.
    """
    roomy = [place for place in list_places() if shutil.disk_usage(place).free > 1.1 * needed + 2**28]
    if not roomy:
        raise OSError(f"{needed / 1e9:.0f} GB are needed in one of {', '.join(map(str, list_places()))}")
    with tempfile.TemporaryDirectory(prefix=os.environ.get(PREFIX), dir=roomy[0]) as folder:
        yield Path(folder)


def remove_scratch(prefix: str) -> None:
    """Remove the folders of this check that a killed process has left."""
    for place in list_places():
        for folder in place.glob(f"{prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)
