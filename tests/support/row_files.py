"""What the tests of the data path share: small files, and the form of every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from dpo_lightning.errors import ExitCode, UserError

PAIR = {"prompt": "Name a colour.", "chosen": "Blue, like the sea.", "rejected": "No."}
OTHER = {"prompt": "Name an animal.", "chosen": "A heron.", "rejected": "A chair."}
MOST_LINES = 25


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def jsonl(folder: Path, rows: Iterable[Any], name: str = "rows.jsonl") -> str:
    """JSON lines; a string is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    return written(folder, "".join(line + "\n" for line in lines), name)


def written(folder: Path, content: str | bytes, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refusal(call: Callable[[], Any], code: ExitCode, *parts: str) -> str:
    """The message of a refusal: its exit code, its form, and the `parts` that it must have."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert caught.value.code == code, message
    assert message.startswith("error: ")
    assert "\nfix: " in message, message
    assert "Traceback" not in message
    assert len(message.splitlines()) <= MOST_LINES
    message.encode()
    for part in parts:
        assert part in message, f"{part!r} is not in\n{message}"
    return message
