"""JSON files that this package writes for itself, read with two kinds of errors whatever is in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo_lightning.special_files import check_not_special

MAX_BYTES = 1 << 28
"""The longest file that is read."""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which are not opened.
        ValueError: it is not JSON, is nested too deeply, or has more than `MAX_BYTES`.
    """
    check_not_special(path)
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
