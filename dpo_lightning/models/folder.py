"""What a model folder holds, checked in a moment and before any weight is loaded."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import shlex
import struct
from pathlib import Path
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.folder_files import check_description, damaged, read_json
from dpo_lightning.models.foreign_code import READ_BESIDE

KEY = "model.policy.path"
EMBEDDED = "models/smollm2-135m-instruct"
"""Where `fetch-model` puts the embedded model."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

PICKLED = ("pytorch_model*.bin", "adapter_model.bin")

LARGEST_HEADER = 100 << 20
"""Bytes of a safetensors header, by the format's own limit."""


def check_folder(path: str) -> Path | None:
    """The folder that `path` names, or None where it is the id of a model on a hub.

    Raises:
        UserError: the folder is missing, holds code of its own, only pickled weights, or damaged weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        if looks_like_hub_id(path):
            return None
        raise missing_folder(path)
    if (folder / "adapter_config.json").exists():
        check_description(folder, "adapter_config.json")
        return folder
    check_description(folder, "config.json")
    check_weights(folder)
    return folder


def adapter_base(adapter: Path) -> str:
    """The path or hub id of the whole model that an adapter belongs to.

    Raises:
        UserError: it names none, the one that it names is not there or is an adapter itself, or the adapter began by a
            decomposition of the base that is drawn anew whenever it is loaded.
    """
    path = adapter / "adapter_config.json"
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
            Problem("the adapter began by a random decomposition, which no one can repeat", str(path), start),
            fix="convert it where it was trained, by `path_initial_model_for_weight_conversion` of peft's "
            "save_pretrained, or begin with `pissa`, which is exact",
        )
    try:
        below = check_folder(base)
    except UserError as error:
        if error.code != ExitCode.INPUT_MISSING:
            raise
        what = Problem("there is no such model folder: the adapter's base", str(path), base)
        fix = "write where the base model lies into base_model_name_or_path"
        raise UserError(ExitCode.INPUT_MISSING, what, fix) from None
    if below is not None and (below / "adapter_config.json").exists():
        raise UserError(
            ExitCode.MODEL,
            Problem("the adapter's base is an adapter itself, which peft cannot put together", str(path), base),
            fix=f"python -m dpo_lightning export --model {shlex.quote(base)} --out MERGED, "
            "then write MERGED into base_model_name_or_path",
        )
    return base


def check_hub_model(path: str) -> None:
    """Fetch what describes a model of a hub and look at it as at a folder's files, before anything else is loaded.

    Raises:
        UserError: it cannot be fetched, or names code or other files.
    """
    from transformers.utils import cached_file

    config, *_ = [
        loaded(cached_file, path, filename=name, _raise_exceptions_for_missing_entries=name == "config.json")
        for name in ("config.json", *READ_BESIDE)
    ]
    check_description(Path(config).parent, "config.json")


def looks_like_hub_id(path: str) -> bool:
    """`name` or `org/name`, and nothing on disk or of ours that the path could have meant."""
    if Path(path) == Path(EMBEDDED) or not HUB_ID.fullmatch(path):
        return False
    parts = Path(path).parts
    ours = len(parts) == 2 and (parts[0] in ("models", "outputs") or Path(parts[0]).is_dir())
    local = path.startswith((".", "/", "~")) or len(parts) > 2 or ours
    return bool(parts) and not local


def missing_folder(path: str) -> UserError:
    """The error for a folder that is not there, with the nearest names or the command that makes it."""
    if Path(path) == Path(EMBEDDED):
        fix = "python -m dpo_lightning fetch-model"
    else:
        parent = Path(path).parent
        try:
            names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
        except OSError:  # a folder that may not be read
            names = []
        near = difflib.get_close_matches(Path(path).name, names, n=3, cutoff=0.4)
        fix = (
            f"did you mean {', '.join(str(parent / name) for name in near)}?"
            if near
            else ("give a model folder, an adapter folder (both have a config file in them) or a hub id")
        )
    return UserError(ExitCode.INPUT_MISSING, Problem("there is no such model folder", KEY, path), fix=fix)


def loaded(load: Any, path: str, **options: Any) -> Any:
    """Call a transformers loader; what it raises becomes a message about `path`."""
    try:
        return load(path, **options)
    except BaseException as error:  # a folder from elsewhere may provoke anything, a panic of the tokenizer's Rust too
        panic = type(error).__name__ == "PanicException"
        if (
            isinstance(error, UserError)
            or "memory" in str(error).lower()
            or not (isinstance(error, Exception) or panic)
        ):
            raise
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()[:30]])
        if isinstance(error, ImportError):
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"the model cannot be loaded: {reason}", KEY, path),
                fix="install what it names, or --model.policy.attention sdpa",
            ) from error
        local = Path(path).is_dir()
        raise UserError(
            ExitCode.MODEL if local else ExitCode.INPUT_MISSING,
            Problem(f"the model cannot be loaded: {reason}", KEY, path),
            fix="give a folder that `save_pretrained` wrote"
            if local
            else "check the hub id and the connection, or give a local folder (HF_HUB_OFFLINE=1 uses what is cached)",
        ) from error


def check_weights(folder: Path) -> None:
    """Every safetensors file that the model needs is there, is whole, and lies inside the folder."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise damaged(index, "no weight_map")
        shards = sorted({str(name) for name in weight_map.values()})
    else:
        shards = ["model.safetensors"]
    for shard in shards:
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise damaged(index, f"names a file outside the folder: {shard}")
        if not (folder / shard).is_file():
            raise no_weights(folder, shard)
        read_header(folder / shard)


def no_weights(folder: Path, shard: str) -> UserError:
    """The error for a missing weight file; pickled weights could run code and are not read."""
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        return UserError(
            ExitCode.MODEL,
            Problem(f"the weights are pickled ({pickled[0]}), which may run code when loaded", str(folder)),
            fix="convert them where you trust them: AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(NEW_FOLDER)",
        )
    return UserError(
        ExitCode.MODEL, Problem("a weight file is missing", f"{folder}/{shard}"), fix="copy the folder again"
    )


def read_header(path: Path) -> bytes:
    """The header of a safetensors file whose length agrees with it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise damaged(path, "the file ends early")
        if length > LARGEST_HEADER:  # the limit of the format itself
            raise damaged(path, "its header is not that of a safetensors file")
        header = file.read(length)
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        promised = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise damaged(path, "its header is not that of a safetensors file") from None
    if size != promised:
        raise damaged(path, f"it has {size} bytes where its header promises {promised}")
    return header


def count_values(folder: Path) -> int:
    """The number of weights in a folder's safetensors files."""
    entries = [
        entry
        for path in folder.glob("model*.safetensors")
        for name, entry in json.loads(read_header(path)).items()
        if name != "__metadata__"
    ]
    return sum(math.prod(entry["shape"]) for entry in entries)


def weights_digest(folder: Path, files: str = "model*.safetensors") -> str:
    """A fingerprint of a folder's weights: headers, sizes and samples of every safetensors file.

    It tells one base model from another without reading gigabytes; it is no proof against forgery.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob(files)):
        size = path.stat().st_size
        digest.update(read_header(path))
        with path.open("rb") as file:
            for k in range(64):
                file.seek(k * max(1, size - 4096) // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()
