"""Checks of a model folder that take a moment and load no weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError, excerpt, lacks_memory
from dpo_lightning.models.folder_files import (
    ADAPTER_CONFIG,
    check_description,
    damaged_file_error,
    is_adapter_folder,
    read_json,
)
from dpo_lightning.models.foreign_code import READ_BESIDE
from dpo_lightning.models.missing_folders import EMBEDDED, KEY, missing_folder_error
from dpo_lightning.models.weight_headers import describe_fault

HUB_ID = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""`name` or `org/name`."""

PICKLED = ("pytorch_model*.bin", "adapter_model.bin")
"""Names of weight files that may run code when they are loaded, and are never read."""

LARGEST_HEADER = 100 << 20
"""Bytes of a safetensors header, the limit that the format sets."""


def check_folder(path: str) -> Path | None:
    """Return the folder at `path`, or None if it is the id of a model on a hub.

    Raises:
        UserError: the folder is missing, names code of its own, has only pickled weights, or its weights are damaged.
    """
    folder = Path(path)
    if not os.path.isdir(path):  # noqa: PTH112 - false for a name that is too long
        if looks_like_hub_id(path):
            return None
        raise missing_folder_error(path)
    if is_adapter_folder(folder):
        check_description(folder, ADAPTER_CONFIG)
        return folder
    check_description(folder, "config.json")
    check_weights(folder)
    return folder


def adapter_base(adapter: Path) -> str:
    """Return the path or hub id of the whole model that an adapter belongs to.

    Raises:
        UserError: the adapter names no base, the base is missing or is an adapter itself, or the adapter was
            initialized by a random decomposition of the base, which would be drawn differently on loading.
    """
    path = adapter / ADAPTER_CONFIG
    config = read_json(path)
    base, start = config.get("base_model_name_or_path"), config.get("init_lora_weights")
    if not isinstance(base, str) or not base:
        raise UserError(
            ExitCode.MODEL,
            Problem("the adapter does not name its base model", str(path)),
            fix="write the base model's folder into base_model_name_or_path",
        )
    if isinstance(start, str) and start.startswith("pissa_niter"):
        raise UserError(
            ExitCode.MODEL,
            Problem(
                "the adapter was initialized by a random decomposition, which cannot be repeated", str(path), start
            ),
            fix="convert it where it was trained, by `path_initial_model_for_weight_conversion` of peft's "
            "save_pretrained, or train with `pissa`, which is exact",
        )
    try:
        below = check_folder(base)
    except UserError as error:
        if error.code != ExitCode.INPUT_MISSING:
            raise
        what = Problem("the adapter's base model does not exist", str(path), base)
        fix = "write the base model's folder into base_model_name_or_path"
        raise UserError(ExitCode.INPUT_MISSING, what, fix) from None
    if below is not None and is_adapter_folder(below):
        raise UserError(
            ExitCode.MODEL,
            Problem("the adapter's base is an adapter itself, which peft cannot load", str(path), base),
            fix=f"python -m dpo_lightning export --model {shlex.quote(base)} --out MERGED, "
            "then write MERGED into base_model_name_or_path",
        )
    return base


def check_hub_model(path: str) -> None:
    """Download the files that describe a model of a hub and check them as a folder's, before anything else is loaded.

    Raises:
        UserError: they cannot be fetched, or name code or other files.
    """
    from transformers.utils import cached_file

    config, *_ = [
        call_loader(cached_file, path, filename=name, _raise_exceptions_for_missing_entries=name == "config.json")
        for name in ("config.json", *READ_BESIDE)
    ]
    check_description(Path(config).parent, "config.json")


def looks_like_hub_id(path: str) -> bool:
    """Whether a path has the form `name` or `org/name` and cannot mean a local folder."""
    if Path(path) == Path(EMBEDDED) or not HUB_ID.fullmatch(path) or path.endswith(".ckpt") or os.path.lexists(path):
        return False
    parts = Path(path).parts
    # Two parts that start with a folder of this project, or any existing one, are a misspelt path.
    ours = len(parts) == 2 and (parts[0] in ("models", "outputs") or Path(parts[0]).is_dir())
    local = path.startswith((".", "/", "~")) or len(parts) > 2 or ours
    return bool(parts) and not local


def call_loader(load: Any, path: str, **options: Any) -> Any:
    """Call a loader of transformers or peft, and turn its exceptions into errors about `path`.

    Args:
        load: the loader.
        path: its first argument, a folder or hub id.
        **options: its other arguments.

    Raises:
        UserError: the loader failed for another reason than lack of memory.
    """
    try:
        return load(path, **options)
    except BaseException as error:  # files of others may cause anything, even a panic of the Rust tokenizer
        panic = type(error).__name__ == "PanicException"
        if isinstance(error, UserError) or lacks_memory(error) or not (isinstance(error, Exception) or panic):
            raise
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()[:30]])
        if isinstance(error, ImportError):
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"the model cannot be loaded: {reason}", KEY, path),
                fix="install the missing package, or --model.policy.attention sdpa",
            ) from error
        local = Path(path).is_dir()
        raise UserError(
            ExitCode.MODEL if local else ExitCode.INPUT_MISSING,
            Problem(f"the model cannot be loaded: {reason}", KEY, path),
            fix="give a folder that `save_pretrained` wrote"
            if local
            else "check the hub id and the connection, or give a local folder (HF_HUB_OFFLINE=1 uses the cache)",
        ) from error


def check_weights(folder: Path) -> None:
    """Check that every safetensors file that the model needs is present, complete, and inside the folder.

    Raises:
        UserError: one is not.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise damaged_file_error(index, "no weight_map")
        shards = sorted({str(name) for name in weight_map.values()})
    else:
        shards = ["model.safetensors"]
    for shard in shards:
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise damaged_file_error(index, f"names a file outside the folder: {excerpt(shard)}")
        if not os.path.isfile(folder / shard):  # noqa: PTH113 - false for a name that is too long or has a NUL
            raise missing_weights_error(folder, shard)
        read_header(folder / shard)


def missing_weights_error(folder: Path, shard: str) -> UserError:
    """Make the error for a missing weight file, with advice if there are pickled weights instead."""
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        return UserError(
            ExitCode.MODEL,
            Problem(f"the weights are pickled ({pickled[0]}), which may run code when loaded", str(folder)),
            fix="if you trust them, convert them: AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(NEW_FOLDER)",
        )
    return UserError(
        ExitCode.MODEL, Problem("a weight file is missing", f"{folder}/{excerpt(shard)}"), fix="copy the folder again"
    )


def read_header(path: Path) -> bytes:
    """Read the header of a safetensors file, and check that the file has the size that the header gives.

    Raises:
        UserError: the file is damaged.
    """
    # The format: 8 bytes with the length of the header, the header in JSON, then the tensors.
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise damaged_file_error(path, "the file is truncated")
        if length > LARGEST_HEADER:
            raise damaged_file_error(path, "its header is not one of safetensors")
        header = file.read(length)
    if fault := describe_fault(header, size - 8 - length):
        raise damaged_file_error(path, fault)
    return header


def check_loaded(info: Mapping[str, Collection[Any]], path: str, where: str, fix: str) -> None:
    """Check that all weights of a folder belong to the model that was made of its config.json.

    Args:
        info: what `from_pretrained` returns with `output_loading_info`.
        path: the folder.
        where: the option that names it.
        fix: the remedy.

    Raises:
        UserError: weights are missing, unknown or of another shape.
    """
    problems = [
        Problem(f"{len(keys)} {kind} weights, first: {sorted(map(str, keys))[0]}", where, path)
        for kind, keys in (
            ("missing", info["missing_keys"]),
            ("unknown", info["unexpected_keys"]),
            ("misshapen", info["mismatched_keys"]),
        )
        if keys
    ]
    if problems:
        raise UserError(ExitCode.MODEL, problems, fix=fix)


def count_values(folder: Path) -> int:
    """Count the weights in a folder's safetensors files."""
    entries = [
        entry
        for path in folder.glob("model*.safetensors")
        for name, entry in json.loads(read_header(path)).items()
        if name != "__metadata__"
    ]
    return sum(math.prod(entry["shape"]) for entry in entries)


def weights_digest(folder: Path, files: str = "model*.safetensors") -> str:
    """Return a digest of a folder's weights: header, size and 64 samples of 4 KiB of every safetensors file.

    It distinguishes base models without reading gigabytes; it does not protect against forgery.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob(files)):
        size = path.stat().st_size
        digest.update(read_header(path))
        with path.open("rb") as file:
            # Evenly spaced samples of 4 KiB.
            for k in range(64):
                file.seek(k * max(1, size - 4096) // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()
