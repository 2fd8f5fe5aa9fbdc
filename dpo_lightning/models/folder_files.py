"""Checks of the files that describe a model: regular, of limited size, JSON where it is expected, naming no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.foreign_code import ANYWHERE, OF_ADAPTERS, READ_BESIDE, refuse, refuse_other_keys
from dpo_lightning.special_files import special_kind

READ_WHOLE = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".safetensors")
"""Suffixes of what is read of a model folder."""

LARGEST_TEXT = 512 << 20
LARGEST_JSON = 64 << 20
"""Bytes of a tokenizer's files, and of a configuration or an index."""


def check_description(folder: Path, config: str) -> None:
    """Check that a folder's files can be read, and that none names code or files outside of the folder.

    Args:
        folder: of a model or an adapter; its weights are not looked at.
        config: the name of its configuration file.

    Raises:
        UserError: by the name of the file and of the key.
    """
    content = read_json(folder / config)
    check_entries(folder)
    rules = ANYWHERE + (OF_ADAPTERS if config.startswith("adapter") else ())
    refuse(content, rules, folder / config)
    for name in READ_BESIDE:
        path = folder / name
        if path.exists():
            content = read_json(path)
            refuse(content, ANYWHERE, path)
            if name.startswith("special_tokens"):
                refuse_other_keys(content, path)


def check_entries(folder: Path) -> None:
    """Check that whatever is read of a folder is a file of limited size; links to files are followed.

    Raises:
        UserError: one is a pipe, a socket, a device or a folder, or far too large.
    """
    for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")]):
        try:
            kind = special_kind(path)
            if path.suffix in READ_WHOLE:
                kind = kind or ("a folder" if path.is_dir() else "")
                too_large = path.suffix != ".safetensors" and path.exists() and path.stat().st_size > LARGEST_TEXT
                kind = kind or (f"a file of more than {LARGEST_TEXT >> 20} MiB" if too_large else "")
        except OSError as error:  # a link that leads back to itself, a folder that may not be entered
            kind = f"what cannot be read ({error.strerror})"
        if kind:
            what = f"{kind} where a file of the model is due"
            raise UserError(
                ExitCode.MODEL, Problem(what, str(path)), fix="copy the folder again, as `save_pretrained` wrote it"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder."""
    try:
        if kind := special_kind(path) or ("a folder" if path.is_dir() else ""):
            raise damaged(path, f"{kind} where a file is due")
        if path.stat().st_size > LARGEST_JSON:
            raise damaged(path, f"more than {LARGEST_JSON >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            ExitCode.MODEL,
            Problem(f"the model folder has no {path.name}", where=str(path.parent)),
            fix="give the folder that `save_pretrained` wrote (for a run: its final_model/)",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise damaged(path, "not a JSON object")
    return content


def damaged(path: Path, reason: str) -> UserError:
    """The error for a file that is not in the format of its name."""
    return UserError(
        ExitCode.MODEL,
        Problem(f"the model file is damaged: {reason}", str(path)),
        fix="copy or download it again",
    )
