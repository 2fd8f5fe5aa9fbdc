"""Split tensors of a checkpoint: a folder beside its file, with a file of each rank, read by any number of ranks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from dpo_lightning.atomic_files import sync
from dpo_lightning.data.cache.file_digests import hash_file
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.runs.hashed_files import save_hashed
from dpo_lightning.runs.random_state import gather
from dpo_lightning.sharding import is_split, local_part, make_split, own_rows

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SHARDS, SUFFIX = "shards", ".shards"
"""Entry of a checkpoint that names the folder and the SHA-256 of each file in it; the end of the folder's name."""

SPLIT = ("state_dict", "optimizer_states")
"""Entries of a checkpoint that may hold split tensors."""

NAME = re.compile(r"[\w=-]+(\.shards|\.pt)", re.ASCII)
"""Names that a checkpoint may give: none that leads elsewhere."""


def write_shards(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write the split tensors of a checkpoint; all ranks have to call this.

    The folder gets a name that no other has, and is complete before a checkpoint refers to it.

    Args:
        checkpoint: what Lightning stores, on each rank.
        path: of the checkpoint.

    Returns:
        The checkpoint with a placeholder for each split tensor, and the names and checksums of the files.

    Raises:
        UserError: 76, a trained weight is not finite; 74, another rank could not write.
        OSError: this rank could not write.
    """
    split: dict[str, Tensor] = {}

    def take(key: str, value: Tensor) -> Tensor:
        if not is_split(value):
            return value
        split[key] = local_part(value.detach()).cpu()
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    found = {name: map_tensors(checkpoint[name], take, name) for name in SPLIT if name in checkpoint}
    step = int(checkpoint["global_step"])
    bad = [name for names in gather(list(find_not_finite(split, SPLIT[0]))) for name in names]
    if bad:
        raise not_finite_error(bad[0].partition("/")[2], step)
    content = {**checkpoint, **found}
    return {**content, SHARDS: write_files(split, path.parent, step)} if split else content


def write_files(split: Mapping[str, Tensor], parent: Path, step: int) -> dict[str, Any]:
    """Write a file of each rank into a new folder; the arguments but `parent` and the errors are those of this rank.

    Returns:
        The name of the folder, and the SHA-256 of each file.
    """
    rank, failure = distributed.get_rank(), None
    name, digest = "", ""
    try:
        name = make_folder(parent, step) if rank == 0 else ""
    except OSError as error:
        failure = error
    folder = parent / gather(name)[0]
    file = folder / f"rank-{rank:05}-of-{distributed.get_world_size():05}.pt"
    try:
        if folder != parent:
            with file.open("wb") as opened:
                digest = save_hashed(dict(split), opened)
    except OSError as error:
        failure = error
    digests = dict(gather((file.name, digest)))
    if all(digests.values()):
        if rank == 0:
            sync(folder)
        return {"folder": folder.name, "files": digests}
    if name:
        shutil.rmtree(folder)
    lost = ", ".join(name for name, digest in digests.items() if not digest)
    raise failure or UserError(ExitCode.IO, f"other ranks could not write {lost}", fix="look at their messages")


def make_folder(parent: Path, step: int) -> str:
    """Make a folder for the split tensors of a step, and return its name.

    Raises:
        OSError: it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    names = (f"step-{step}{f'-{number}' if number else ''}{SUFFIX}" for number in count())
    name = next(name for name in names if not (parent / name).exists())
    (parent / name).mkdir()
    return name


def read_shards(content: Mapping[str, Any], folder: Path, mesh: DeviceMesh | None = None) -> dict[str, Any]:
    """Return a checkpoint with the split tensors that its placeholders stand for.

    Args:
        content: of the checkpoint's file.
        folder: in which the file is.
        mesh: the ranks over which the tensors are split; None returns them whole.

    Raises:
        ValueError: the checkpoint names files elsewhere.
        OSError: a file is missing.
    """
    files = [
        torch.load(path, map_location="cpu", mmap=True, weights_only=True) for path in shard_files(content, folder)
    ]

    def restore(key: str, value: Tensor) -> Tensor:
        if not value.is_meta:
            return value
        parts = [file[key] for file in files]
        if mesh is None:
            return torch.cat(parts)
        return make_split(own_rows(parts, len(value), mesh).to(mesh.device_type), value, mesh)

    parts = {name: map_tensors(content[name], restore, name) for name in SPLIT if name in content and files}
    return {name: value for name, value in {**content, **parts}.items() if name != SHARDS}


def join_shards(file: Any) -> Any:
    """Return what a module is loaded from: the file of a checkpoint, or its content in memory with the split tensors.

    Args:
        file: a path, or an open file.

    Raises:
        UserError: 66, split tensors are missing or damaged.
    """
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        if SHARDS not in content:
            return file
    except Exception:  # an open file, or one that Lightning reads in its own way or refuses
        return file
    damage = find_shard_damage(Path(file))
    if damage:
        what = Problem(f"the checkpoint {damage}", str(file))
        raise UserError(ExitCode.INPUT_MISSING, what, fix=f"keep the folders *{SUFFIX} beside the checkpoint")
    joined = BytesIO()
    content = {name: value for name, value in content.items() if name != "optimizer_states"}
    torch.save(read_shards(content, Path(file).parent), joined)
    joined.seek(0)
    return joined


def check_joined(content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose split tensors were not read.

    Raises:
        UserError: 64, it has placeholders for them.
    """
    if SHARDS in content:
        raise UserError(
            ExitCode.CONFIG,
            Problem("this trainer reads the checkpoint without the parts of its ranks", "trainer.plugins"),
            fix="from dpo_lightning.runs.checkpoint_files import CheckpointFiles; Trainer(plugins=[CheckpointFiles()])",
        )


def shard_files(content: Mapping[str, Any], folder: Path) -> dict[Path, str]:
    """Return the files of a checkpoint's split tensors, in the order of ranks, with their checksums.

    Raises:
        ValueError: the checkpoint names files elsewhere, or names none where it should.
    """
    entry = content.get(SHARDS)
    if entry is None:
        return {}
    try:
        names, digests = [str(entry["folder"]), *map(str, entry["files"])], entry["files"].values()
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(SHARDS) from error
    if not all(NAME.fullmatch(name) for name in names):
        raise ValueError(SHARDS)
    return {folder / names[0] / name: str(digest) for name, digest in sorted(zip(names[1:], digests, strict=True))}


def find_shard_damage(file: Path) -> str:
    """Return why the split tensors of a checkpoint cannot be used, in a few words; empty if they can.

    Args:
        file: a checkpoint whose own checksum is right.
    """
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        for path, digest in shard_files(content, file.parent).items():
            if path.is_symlink() or not path.is_file():
                return f"lacks {path.parent.name}/{path.name}"
            if hash_file(path) != digest:
                return f"is damaged in {path.parent.name}/{path.name}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except Exception:  # a file of another program
        return "is damaged, or of another run"
    return ""


def remove_unused(folder: Path) -> None:
    """Remove the split tensors that no checkpoint in a folder refers to."""
    there = [path for path in folder.glob(f"*{SUFFIX}") if path.is_dir() and not path.is_symlink()]
    if not there:
        return
    used: set[Path] = set()
    for file in folder.glob("*.ckpt*"):
        try:
            used |= {path.parent for path in shard_files(torch.load(file, mmap=True, weights_only=True), folder)}
        except Exception:  # damaged, so that nothing of it can be used
            continue
    for path in there:
        if path not in used:
            shutil.rmtree(path, ignore_errors=True)


def map_tensors(value: Any, change: Callable[[str, Tensor], Tensor], key: str) -> Any:
    """Return nested dictionaries and lists with each tensor replaced by what `change` makes of its key and itself."""
    if torch.is_tensor(value):
        return change(key, value)
    if isinstance(value, Mapping):
        return {name: map_tensors(part, change, f"{key}/{name}") for name, part in value.items()}
    if isinstance(value, list):
        return [map_tensors(part, change, f"{key}/{number}") for number, part in enumerate(value)]
    return value


def find_not_finite(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Iterate over the names, beginning with a prefix, of tensors with an entry that is NaN or infinite."""
    for name, value in values.items():
        if not (name.startswith(prefix) and torch.is_tensor(value) and value.is_floating_point()) or value.is_meta:
            continue
        if not bool(torch.isfinite(value).all()):
            yield name


def not_finite_error(name: str, step: int) -> UserError:
    """Make the error for weights that are not finite, which are never saved."""
    return UserError(
        ExitCode.DIVERGED,
        f"{name} is not finite at step {step}; the checkpoints before it are kept",
        fix="a smaller --model.learning_rate, a larger --model.loss.beta, or --trainer.gradient_clip_val 1",
    )
