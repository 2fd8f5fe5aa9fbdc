"""Values that no config or command line may have: paths of pipes or devices, and control characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.special_files import special_kind

FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control and text direction characters: values become names of files, curves and columns."""

LARGEST_INTEGER = 2**64
"""Larger integers overflow in libraries; Python refuses to print those of thousands of digits."""


def check_values(value: Any, key: str) -> None:
    """Check every string of a config.

    Args:
        value: of a key; also a list or a mapping.
        key: dotted, or the path of a config file.

    Raises:
        UserError: 66, a string is the path of a pipe or device, which the parser would open; 64, it has control
            characters.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            check_values(str(name), "a key")
            # Keys of a config file are reported without the path of the file.
            check_values(part, str(name) if "/" in key or key.endswith((".yaml", ".yml")) else f"{key}.{name}")
    elif isinstance(value, list):
        for part in value:
            check_values(part, key)
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise UserError(ExitCode.CONFIG, Problem("the number is too large", key), fix="write a smaller number")
    elif isinstance(value, str) and FORBIDDEN.search(value):
        raise UserError(ExitCode.CONFIG, Problem("the value has control characters", key, value), fix="remove them")
    elif isinstance(value, str) and key != "output_dir" and (kind := kind_at(value)):
        what = Problem(f"expected a file, found {kind}", key, value)
        raise UserError(ExitCode.INPUT_MISSING, what, fix="write its content to a file first")


def kind_at(text: str) -> str:
    """`special_kind` of a text that may be no path: what is too long for one, or cannot be looked at, is no file."""
    try:
        return special_kind(text)
    except OSError:
        return ""


def check_arguments(args: Sequence[str]) -> None:
    """Check every value of a command line.

    Raises:
        UserError: as `check_values`.
    """
    for flag, following in pairwise([*args, ""]):
        key, equals, value = flag.removeprefix("--").partition("=")
        if flag.startswith("--"):
            check_values(value if equals else following, key)
