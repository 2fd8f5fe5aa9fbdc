"""Settings of Python and of libraries in the environment with which a command cannot run."""

from __future__ import annotations

import os
import re
import sys

from dpo_lightning.errors import ExitCode, Problem, UserError

NAMES = re.compile(
    r"(PY)?TORCH|CUDA|NCCL|TRITON|HF_|HUGGINGFACE|TRANSFORMERS|TOKENIZERS|DATASETS|BITSANDBYTES|MPL|PL_|TF_"
)
"""How the variables begin that torch, transformers and other libraries of this package read."""

COMMON = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?|.|on|no|true|false|yes|off|none|null|auto", re.IGNORECASE)
"""Values that occur in many messages: they mean a variable only where the message names it as well."""

DOCSTRINGS_REMOVED = 2
"""The level of optimization at which Python has no docstrings."""


def check_docstrings() -> None:
    """Refuse a Python that removes docstrings, since transformers reads them while it loads a model.

    Raises:
        UserError: 64.
    """
    if sys.flags.optimize >= DOCSTRINGS_REMOVED:
        what = Problem("Python runs without docstrings, which transformers needs", "PYTHONOPTIMIZE or -OO")
        raise UserError(ExitCode.CONFIG, what, fix="unset PYTHONOPTIMIZE, and leave -OO out")


def translate_variable_error(error: Exception) -> UserError | None:
    """Translate a ValueError in which a library quotes the value of a variable; None if it quotes none.

    A common value, such as a number, counts only in a message that names the variable.
    """
    if not isinstance(error, ValueError):
        return None
    text = str(error).strip()
    for name, value in os.environ.items():
        meant = value and NAMES.match(name) and (name in text or not COMMON.fullmatch(value))
        if meant and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text):
            what = Problem(
                f"a library cannot use this value: {text.splitlines()[0]}", f"the environment's {name}", value
            )
            return UserError(ExitCode.CONFIG, what, fix=f"unset {name}")
    return None
