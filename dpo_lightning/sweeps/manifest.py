"""`Manifest`: which points a sweep has and what each is made of, written once and compared from then on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.config.class_paths import iterate_texts
from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.json_files import read_json
from dpo_lightning.runs.resume import flatten, format_key
from dpo_lightning.sweeps.grid import NAME, OWN_KEYS, Point

FILE = "manifest.json"
STUDY = "optuna.db"
"""A search's own file, which is there before the manifest."""

FORMAT = 1
MOST_SHOWN = 5
"""Differences that are shown of one point."""

WHOLE = 1 << 24
"""Bytes up to which a file is hashed whole; of a larger one, its size, beginning and end (`PROBE` bytes each)."""

PROBE = 1 << 20
INPUTS = ("*.safetensors", "*.json", "*.jsonl", "*.jinja", "*.csv", "*.parquet", "*.arrow")
"""Files by which a folder of a model or of data is identified."""


@dataclass(frozen=True)
class Manifest:
    """The points of a sweep, and the whole config of each as dotted keys and values."""

    points: list[Point]
    configs: list[dict[str, Any]]

    def digest(self, place: int) -> str:
        """Return a digest of all that determines a point's result."""
        return digest_of(self.configs[place])

    def to_json(self) -> dict[str, Any]:
        """Return plain data; what all points share is written once."""
        first, *others = self.configs
        common = {key: value for key, value in first.items() if all(key in c and c[key] == value for c in others)}
        points = [
            {
                "name": point.name,
                "overrides": point.overrides,
                "digest": self.digest(place),
                "own": {key: value for key, value in config.items() if key not in common},
            }
            for place, (point, config) in enumerate(zip(self.points, self.configs, strict=True))
        ]
        return {"format": FORMAT, "common": common, "points": points}

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            UserError: 66, there is none; 65, it is damaged or of another version.
        """
        fix = f"name the folder of a sweep, or move {path.parent} away"
        try:
            content = read_json(path)
        except OSError as error:
            what = Problem(f"no manifest of a sweep: {error.strerror}", str(path))
            raise UserError(ExitCode.INPUT_MISSING, what, fix=fix) from None
        except ValueError:
            raise UserError(ExitCode.DATA, Problem("the manifest is damaged", str(path)), fix=fix) from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(ExitCode.DATA, Problem("the manifest is of another version", str(path)), fix=fix)
        try:
            points = [Point(one["name"], one["overrides"]) for one in content["points"]]
            found = cls(points, [content["common"] | one["own"] for one in content["points"]])
            whole = all(found.digest(place) == one["digest"] for place, one in enumerate(content["points"]))
        except (KeyError, TypeError, ValueError, RecursionError):
            whole = False
        if not whole or not points or not all(map(is_point, points)):
            raise UserError(ExitCode.DATA, Problem("the manifest is damaged", str(path)), fix=fix)
        return found

    def changes(self, before: Manifest) -> dict[str, list[str]]:
        """Return what changed since an earlier manifest: name of a point -> lines; new points are not listed."""
        old = {point.name: config for point, config in zip(before.points, before.configs, strict=True)}
        new = {point.name: config for point, config in zip(self.points, self.configs, strict=True)}
        found = {name: ["it is not among the points of this command"] for name in old if name not in new}
        for name in (name for name in new if name in old and new[name] != old[name]):
            found[name] = list(config_changes(old[name], new[name]))
        return found


def is_point(point: Point) -> bool:
    """Whether a point is one that `make_points` could have made: its name is that of a folder within the sweep's."""
    texts = isinstance(point.overrides, dict) and all(isinstance(text, str) for text in point.overrides.values())
    return texts and isinstance(point.name, str) and re.fullmatch(NAME, point.name) is not None


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Iterate over keys with other values, as lines."""
    missing = "absent"
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key, missing), new.get(key, missing)
        if before != now:
            yield f"{key}: {before} there, {now} now"


def describe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's whole config as dotted keys, with a digest of every file that it names, without its own folder.

    Args:
        config: as `fit` writes it to `config.yaml`.
    """
    inputs = {key: value for key, value in config.items() if key not in OWN_KEYS}
    flat = {format_key(key): value for key, value in flatten(inputs) if key not in OWN_KEYS}
    read = {name: inputs.get(name) for name in ("model", "data")}
    for text in sorted({text for text in iterate_texts(read) if text and "://" not in text}):
        if found := identify(Path(text)):
            flat[f"content of {text}"] = found
    return json.loads(json.dumps(flat, default=str))


def identify(path: Path) -> str:
    """Return a digest of a file, or of the input files in a folder; empty for a text that is no path."""
    try:
        if path.is_file():
            return file_identity(path)
        if path.is_dir():
            files = sorted({file for pattern in INPUTS for file in path.glob(pattern) if file.is_file()})
            return digest_of([[file.name, file_identity(file)] for file in files]) if files else ""
    except (OSError, ValueError):  # too long for a name, or not readable: the run itself will say so
        pass
    return ""


def file_identity(path: Path) -> str:
    """Return the SHA-256 of a file; of a large one, such as weights, that of its size, beginning and end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(f"{size} ".encode() + file.read(PROBE))
        file.seek(-PROBE, os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()


def settle(folder: Path, wanted: Manifest, *, extend: bool = True) -> Manifest:
    """Write the manifest if the folder has none; otherwise compare, and add points that are new.

    Several processes may call this at once: one of them writes the file, the others read that.

    Args:
        folder: of the sweep; it is created.
        wanted: the manifest of this command.
        extend: whether points may be added to those that are there.

    Raises:
        UserError: 73, the folder holds a sweep of other points or configs, or files that are not of a sweep.
    """
    path = folder / FILE
    if not path.exists():
        check_new(folder)
        with writing_reported(folder):
            folder.mkdir(parents=True, exist_ok=True)
            create_once(path, wanted.to_json())
    there = Manifest.read(path)
    changes = wanted.changes(there)
    new = [point.name for point in wanted.points if point.name not in {old.name for old in there.points}]
    if new and not extend:
        changes |= {name: ["it is not among the points of the manifest"] for name in new}
    if changes:
        fix = "--output_dir NAME for another sweep; or --fresh: changed points are moved aside, the others are kept"
        raise UserError(ExitCode.OUTPUT, list(changed_points(changes, path)), fix=fix)
    if new:
        replace_manifest(folder, wanted)
    return wanted


@contextmanager
def writing_reported(folder: Path) -> Iterator[None]:
    """Report that a sweep's folder cannot be made or written.

    Raises:
        UserError: 73, in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        what = Problem(f"the folder cannot be written: {error.strerror}", "output_dir", str(folder))
        raise UserError(ExitCode.OUTPUT, what, fix="--output_dir NAME in a folder that can be written") from None


def changed_points(changes: Mapping[str, Sequence[str]], path: Path) -> Iterator[Problem]:
    """Iterate over points that changed, as problems."""
    for name, lines in changes.items():
        more = f", and {len(lines) - MOST_SHOWN} more" if len(lines) > MOST_SHOWN else ""
        yield Problem(f"the sweep in this folder differs in {name}: {'; '.join(lines[:MOST_SHOWN])}{more}", str(path))


def check_new(folder: Path) -> None:
    """Refuse a folder that has files but no manifest.

    Raises:
        UserError: 73, as described.
    """
    if (folder / FILE).exists():
        return
    if folder.exists() and (
        not folder.is_dir() or any(file.name[0] != "." and file.name != STUDY for file in folder.iterdir())
    ):
        if (folder / FILE).exists():  # another process has written it in between
            return
        what = Problem("the folder holds files that are not of a sweep", "output_dir", str(folder))
        raise UserError(ExitCode.OUTPUT, what, fix="--output_dir NAME with a new or empty folder")


def create_once(path: Path, content: object) -> None:
    """Write a JSON file under a name that no file has yet; where one has been written meanwhile, that one stays."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open_atomic(partial) as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links, such as that of a mounted drive
        if not path.exists():
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_manifest(folder: Path, wanted: Manifest) -> None:
    """Write a manifest in place of the one that is there."""
    with open_atomic(folder / FILE) as file:
        json.dump(wanted.to_json(), file, indent=1, ensure_ascii=False)
