"""Digests of a run's data files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_lightning.data.readers.folders import list_files
from dpo_lightning.errors import UserError

BLOCK = 1 << 20
"""Bytes that are hashed at once."""


def data_digests(files: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return for each set the digest of each of its files or sources; sets without files are left out.

    Args:
        files: `train` and `eval` -> a path, several, or None, as a data module has them.
    """
    several = {name: [paths] if isinstance(paths, str) else list(paths) for name, paths in files.items() if paths}
    return {name: {str(path): file_hash(str(path)) for path in paths} for name, paths in several.items()}


def file_hash(path: str) -> str:
    """Return `sha256:...` of a local file, or of the files of a folder or pattern one after the other.

    Empty for a data set of the hub, and for files that are no longer there.
    """
    digest = hashlib.sha256()
    try:
        for file in list_files(path):
            with Path(file).open("rb") as opened:
                while block := opened.read(BLOCK):
                    digest.update(block)
    except (OSError, UserError):
        return ""
    return "sha256:" + digest.hexdigest()
