"""What a model folder holds, checked in a moment and before any weight is loaded."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import shlex
import struct
from pathlib import Path
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError

KEY = "model.policy.path"
EMBEDDED = "models/smollm2-135m-instruct"
"""Where `fetch-model` puts the embedded model."""

PICKLED = ("pytorch_model*.bin", "adapter_model.bin")


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
        return folder
    config = read_json(folder / "config.json")
    if "auto_map" in config:
        raise UserError(
            ExitCode.MODEL,
            Problem("the model brings code of its own (`auto_map`), which is never run", f"{folder}/config.json"),
            fix="use a model whose architecture transformers knows",
        )
    if "quantization_config" in config:
        raise UserError(
            ExitCode.MODEL,
            Problem("the weights are stored quantized: what is trained on them fits no other", f"{folder}/config.json"),
            fix="give the whole weights; --model.policy.quantization.bits 4 quantizes them while they are loaded",
        )
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


def looks_like_hub_id(path: str) -> bool:
    """`name` or `org/name`, and nothing on disk or of ours that the path could have meant."""
    if Path(path) == Path(EMBEDDED):
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
        names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
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
    except Exception as error:  # a folder from elsewhere may provoke anything
        if "memory" in str(error).lower():
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder."""
    try:
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
        header = file.read(length)
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        promised = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise damaged(path, "its header is not that of a safetensors file") from None
    if size != promised:
        raise damaged(path, f"it has {size} bytes where its header promises {promised}")
    return header


def damaged(path: Path, reason: str) -> UserError:
    """The error for a file that cannot be what it says it is."""
    return UserError(
        ExitCode.MODEL,
        Problem(f"the model file is damaged: {reason}", str(path)),
        fix="copy or download it again",
    )


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
