"""Checks of the files that describe a model: regular files of limited size, valid JSON, and no code named in them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.foreign_code import ANYWHERE, OF_ADAPTERS, READ_BESIDE, check_rules, check_special_tokens
from dpo_lightning.special_files import special_kind

READ_WHOLE = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".safetensors")
"""Suffixes of the files that are read from a model folder."""

ADAPTER_CONFIG = "adapter_config.json"
"""The file of peft by which an adapter's folder is recognized."""

LARGEST_TEXT = 512 << 20
"""Largest size in bytes of a tokenizer's files."""
LARGEST_JSON = 64 << 20
"""Largest size in bytes of a configuration or an index."""


def check_description(folder: Path, config: str) -> None:
    """Check that a folder's files can be read, and that none names code or files outside of the folder.

    Args:
        folder: of a model or an adapter; its weights are not read.
        config: the name of its configuration file.

    Raises:
        UserError: a file is refused; the error names the file and the key.
    """
    check_entries(folder)
    content = read_json(folder / config)
    rules = ANYWHERE + (OF_ADAPTERS if config.startswith("adapter") else ())
    check_rules(content, rules, folder / config)
    for name in READ_BESIDE:
        path = folder / name
        if path.exists():
            content = read_json(path)
            check_rules(content, ANYWHERE, path)
            if name.startswith("special_tokens"):
                check_special_tokens(content, path)


def is_adapter_folder(path: str | Path) -> bool:
    """Whether a path is a folder of a peft adapter, complete or not."""
    return os.path.exists(os.path.join(path, ADAPTER_CONFIG))  # noqa: PTH110, PTH118 - false for a name that is too long


def check_entries(folder: Path) -> None:
    """Check that whatever is read from a folder is a file of limited size in this folder.

    Raises:
        UserError: an entry is a pipe, a socket, a device or a folder, too large, or a link that leaves the folder.
    """
    homes = list_homes(folder)
    for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")]):
        try:
            kind = special_kind(path)
            if path.suffix in READ_WHOLE:
                kind = kind or ("a folder" if path.is_dir() else "")
                too_large = path.suffix != ".safetensors" and path.exists() and path.stat().st_size > LARGEST_TEXT
                kind = kind or (f"a file of more than {LARGEST_TEXT >> 20} MiB" if too_large else "")
                leaves = path.is_symlink() and path.exists() and not any(map(path.resolve().is_relative_to, homes))
                kind = kind or ("a link that leaves the folder" if leaves else "")
        except OSError as error:  # a cycle of links, a folder without permission
            kind = f"an unreadable entry ({error.strerror})"
        if kind:
            what = f"expected a file of the model, found {kind}"
            fix = "copy the folder again as `save_pretrained` wrote it"
            fix = "if you trust it, copy its target in place of the link" if path.is_symlink() else fix
            raise UserError(ExitCode.MODEL, Problem(what, str(path)), fix=fix)


def list_homes(folder: Path) -> list[Path]:
    """Return the folders in which the targets of a model folder's links may be: its own, and the cache of a hub.

    The cache has the files as `models--ORG--NAME/blobs/DIGEST`, and links to them in `snapshots/REVISION`.
    """
    home = folder.resolve()
    cached = home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--")
    return [home, home.parent.parent / "blobs"] if cached else [home]


def list_values(value: Any) -> list[Any]:
    """Return the values of a list or of an object; none where something else is in its place."""
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a model folder.

    Raises:
        UserError: the file is missing, too large, or holds no JSON object.
    """
    try:
        if kind := special_kind(path) or ("a folder" if path.is_dir() else ""):
            raise damaged_file_error(path, f"expected a file, found {kind}")
        if path.stat().st_size > LARGEST_JSON:
            raise damaged_file_error(path, f"more than {LARGEST_JSON >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            ExitCode.MODEL,
            Problem(f"the model folder has no {path.name}", where=str(path.parent)),
            fix="give the folder that `save_pretrained` wrote (for a run: its final_model/)",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged_file_error(path, str(error)) from None
    if not isinstance(content, dict):
        raise damaged_file_error(path, "not a JSON object")
    return content


def damaged_file_error(path: Path, reason: str) -> UserError:
    """Make the error for a file whose content does not match the format of its name."""
    return UserError(
        ExitCode.MODEL,
        Problem(f"the model file is damaged: {reason}", str(path)),
        fix="copy or download it again",
    )
