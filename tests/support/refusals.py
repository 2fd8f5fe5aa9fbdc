"""The messages of calls that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dpo_lightning.errors import ExitCode, UserError


def refused(call: Callable[..., Any], *args: Any, code: int = ExitCode.MODEL) -> str:
    """The message of the `UserError` that a call raises; its exit code is `code`, and it has a remedy."""
    with pytest.raises(UserError) as raised:
        call(*args)
    assert raised.value.code == code
    assert raised.value.fix
    return str(raised.value)
