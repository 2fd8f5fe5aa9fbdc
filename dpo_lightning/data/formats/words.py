"""The words of a column name."""

from __future__ import annotations

import re
from functools import lru_cache

SPLIT = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


def split_name(name: str) -> tuple[str, ...]:
    """The words of a column name in lower case: `chosenResponse` and `chosen_response` give the same two."""
    return tuple(word.lower() for word in SPLIT.split(name) if word)


@lru_cache(1024)  # columns have the same few names in all rows
def normalize_name(name: str) -> str:
    """The words of a column name in lower case, joined by spaces."""
    return " ".join(split_name(name))
