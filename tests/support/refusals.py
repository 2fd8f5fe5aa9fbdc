"""The messages of calls that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_lightning.dpo import DPOModule
from dpo_lightning.errors import ExitCode, UserError
from support import short_runs


def refused(call: Callable[..., Any], *args: Any, code: int = ExitCode.MODEL) -> str:
    """The message of the `UserError` that a call raises; its exit code is `code`, and it has a remedy."""
    with pytest.raises(UserError) as raised:
        call(*args)
    assert raised.value.code == code
    assert raised.value.fix
    return str(raised.value)


def problems(made: DPOModule, file: Path, folder: Path, code: int, **options: Any) -> str:
    """What the self-check of a run says."""
    with pytest.raises(UserError) as raised:
        short_runs.fit(made, file, folder, steps=1, enable_checkpointing=False, **options)
    assert raised.value.code == code
    return str(raised.value)
