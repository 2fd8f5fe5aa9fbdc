"""Headers of safetensors files: whether what they say of each tensor fits the format and the size of the file."""

from __future__ import annotations

import json
import math
import re
from typing import Any

BITS = re.compile(r"(?:B?F|I|U|C)(\d+)(?:_\w+)?|(BOOL)")
"""Names of data types, with their sizes in bits."""


def describe_fault(header: bytes, size: int) -> str:
    """Return what is wrong with a header, or an empty text.

    Args:
        header: the JSON text.
        size: the bytes of the file after the header.
    """
    try:
        content = json.loads(header)
        ends = [check_tensor(entry) for name, entry in content.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "its header is not one of safetensors"
    place = 0
    for begin, end in sorted(ends):
        if begin != place:
            return "its header has tensors that overlap, or gaps between them"
        place = end
    return "" if place == size else f"it has {size} bytes of tensors, its header gives {place}"


def check_tensor(entry: dict[str, Any]) -> tuple[int, int]:
    """Return where the bytes of a tensor begin and end.

    Args:
        entry: of the header.

    Raises:
        ValueError, KeyError, TypeError: it does not describe a tensor.
    """
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    known = BITS.fullmatch(entry["dtype"])
    numbers = [*shape, begin, end]
    if known is None or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError
    if math.prod(shape) * int(known[1] or 8) != 8 * (end - begin):
        raise ValueError
    return begin, end
