"""Finds the data files of a folder: numbered parts of one set, the folders of `datasets`, or one split of a hub's."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from dpo_lightning.data.readers.paths import FORMATS, format_path, input_error, is_data_name, permission_error
from dpo_lightning.errors import ExitCode, Problem, UserError

STATE, SPLITS, INDICES = "state.json", "dataset_dict.json", "_indices_files"
"""Files that `datasets` writes with `save_to_disk`, and the entry that reorders the rows."""

SPLIT_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
}
"""Words in names of files and folders that name a split."""

MAX_DEPTH = 3
"""Folders inside folders that are searched."""

MAX_ENTRIES = 10_000
MAX_NAMED = 4
OF_TOTAL = re.compile(r"(\d+)-of-(\d+)")
"""The number of a part and the number of all parts in its name."""

DIGITS = re.compile(r"(\d+)")


def list_files(path: str, notes: list[str] | None = None) -> list[str]:
    """List the data files that a path names, in the order in which they are read.

    A file is returned as it is; of a folder or a pattern with `*`, the files in sorted order, numbers by their value.

    Args:
        path: a file, a folder or a pattern.
        notes: receives which files of a folder or pattern were chosen.

    Raises:
        UserError: 66 if a folder has no data files, several sets of them, or a part is missing.
    """
    given = Path(path)
    if not path or not _is_folder(given):
        if os.path.lexists(path) or not has_magic(path) or "\0" in path:
            return [path]
        files = sorted(filter(os.path.isfile, _match(path)), key=_sort_key)
        if not files:
            return [path]  # the error for a missing file
    elif (given / SPLITS).is_file():
        return list_files(_choose_split(given), notes)
    elif (given / STATE).is_file():
        files = _list_saved(given)
    else:
        files = _list_only_set(given)
    _check_complete(files, path)
    if notes is not None:
        names = [format_path(os.path.relpath(file, given) if given.is_dir() else file) for file in files]
        notes.append(names[0] if len(names) == 1 else f"{len(names):,} files, from {names[0]} to {names[-1]}")
    return files


def _match(pattern: str) -> list[str]:
    return glob(pattern)  # noqa: PTH207 - a `Path` would drop a leading `./`, which the names of rows keep


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _sort_key(path: str) -> list[Any]:
    """Sort numbers in names by their value: part 2 before part 10."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in DIGITS.split(path)]


def _read_object(path: Path) -> dict[str, Any]:
    """Read a file that describes a folder of `datasets`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise permission_error(str(path)) from None
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _data_error(str(path), "the file does not describe a data set", "save the data set again")
    return value


def _choose_split(folder: Path) -> str:
    """The folder of the only split of a saved `DatasetDict`."""
    names = _read_names(_read_object(folder / SPLITS).get("splits"))
    if len(names) == 1:
        return str(folder / names[0])
    if not names:
        raise _data_error(str(folder / SPLITS), "the file names no split", "save the data set again")
    shown = " or ".join(shlex.quote(format_path(str(folder / name))) for name in names[:MAX_NAMED])
    raise input_error(str(folder), f"the folder has {len(names)} splits", f"name one of them: {shown}")


def _list_saved(folder: Path) -> list[str]:
    """The Arrow streams of a saved `Dataset`, in the order of its rows."""
    state = _read_object(folder / STATE)
    names = _list_file_names(state.get("_data_files"))
    indices = _list_file_names(state.get(INDICES))
    if not names:
        raise _data_error(str(folder / STATE), "the file lists no data files", "save the data set again")
    if indices:
        # `load_from_disk` of today ignores them.
        code = (
            "import pyarrow as pa; from pyarrow import parquet; "
            "read = lambda names: pa.concat_tables(pa.ipc.open_stream(pa.memory_map(n)).read_all() for n in names); "
            f"parquet.write_table(read({_join(folder, names)}).take(read({_join(folder, indices)}).column(0)), "
            "'rows.parquet')"
        )
        raise _data_error(
            str(folder), "the rows of the data set are reordered by indices", f"python -c {shlex.quote(code)}"
        )
    for name in names:
        if not (folder / name).is_file():
            raise input_error(str(folder / name), "a file of the saved data set is missing", "copy or save it again")
    return _join(folder, names)


def _list_file_names(entries: Any) -> list[str]:
    """The names in a list of files of a saved data set."""
    if not isinstance(entries, list):
        return []
    return _read_names([entry.get("filename") if isinstance(entry, dict) else None for entry in entries])


def _read_names(names: Any) -> list[str]:
    """Check that names are those of entries of the folder itself; empty if one is not."""
    plain = [
        name
        for name in (names if isinstance(names, list) else [])
        if isinstance(name, str) and name not in ("", ".", "..") and not set("/\0") & set(name)
    ]
    return plain if isinstance(names, list) and len(plain) == len(names) else []


def _join(folder: Path, names: Sequence[str]) -> list[str]:
    return [str(folder / name) for name in names]


def _list_only_set(folder: Path) -> list[str]:
    """The data files below a folder, if all are of one split, one format and in one folder."""
    found = sorted(_walk(folder, 0, [0]), key=_sort_key)
    if not found:
        raise input_error(
            str(folder), "the folder has no data files", f"name a folder with files that end in {', '.join(FORMATS)}"
        )
    groups: dict[tuple[str, str, str], list[str]] = {}
    for file in found:
        groups.setdefault((os.path.dirname(file), _find_split(folder, file), _find_format(file)), []).append(file)  # noqa: PTH120
    if len(groups) == 1:
        return found
    patterns = [_format_pattern(group, found) for group in groups.values()]
    shown = " or ".join(shlex.quote(format_path(pattern)) for pattern in patterns[:MAX_NAMED])
    more = f" (or {len(patterns) - MAX_NAMED} others)" if len(patterns) > MAX_NAMED else ""
    raise input_error(
        str(folder), "the folder has files of several splits, formats or folders", f"name one of them: {shown}{more}"
    )


def _walk(folder: Path, depth: int, seen: list[int]) -> Iterator[str]:
    """The data files below a folder; links to folders are not followed, as they may form a loop."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except PermissionError:
        raise permission_error(str(folder)) from None
    except OSError as error:
        raise input_error(str(folder), f"the folder cannot be read: {error.strerror}", "check the disk") from None
    seen[0] += len(listed)
    if seen[0] > MAX_ENTRIES:
        raise input_error(str(folder), f"the folder has more than {MAX_ENTRIES:,} entries", "name its data files")
    for entry in listed:
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth < MAX_DEPTH:
                yield from _walk(Path(entry.path), depth + 1, seen)
        elif is_data_name(entry.name) and not _is_folder(Path(entry.path)):
            yield entry.path


def _find_split(folder: Path, file: str) -> str:
    """The split that the words of a file's name, or else of its folders below `folder`, name; "" without one."""
    for part in reversed(Path(file).relative_to(folder).parts):
        words = re.split(r"[^a-z]+", part.lower())
        for split, names in SPLIT_WORDS.items():
            if any(name in words for name in names):
                return split
    return ""


def _find_format(file: str) -> str:
    name = Path(file).name.lower()
    return next((name[name.rindex(suffix) :] for suffix in FORMATS if suffix in name), Path(name).suffix)


def _format_pattern(group: Sequence[str], found: Sequence[str]) -> str:
    """The path of a single file, the folder that has no other files, or a pattern that matches the group alone."""
    if len(group) == 1:
        return group[0]
    folder = os.path.dirname(group[0])  # noqa: PTH120
    if set(group) == {file for file in found if file.startswith(folder + os.sep)}:
        return folder
    first, last = min(group), max(group)
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    start, suffix = first[:length], _find_format(first)
    pattern = f"{start}*{suffix}"
    if not has_magic(start) and sorted(_match(pattern)) == sorted(group):
        return pattern
    return group[0]


def _check_complete(files: Sequence[str], path: str) -> None:
    """Check that all parts are there, where their names have the number of all (`data-00000-of-00003`)."""
    parts: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for file in files:
        matched = OF_TOTAL.search(Path(file).name)
        if matched:
            key = file.replace(matched[0], f"-of-{matched[2]}")
            parts.setdefault(key, set()).add(int(matched[1]))
            totals[key] = min(int(matched[2]), MAX_ENTRIES)
    for key, numbers in parts.items():
        missing = [number for number in range(totals[key]) if number not in numbers]
        if missing and not (len(missing) == 1 and missing == [0] and totals[key] in numbers):
            what = f"part {missing[0]} of {totals[key]} is missing ({len(missing)} in all)"
            raise input_error(path, what, "copy or download it, or name the files that are there")


def _data_error(path: str, what: str, fix: str) -> UserError:
    return UserError(ExitCode.DATA, Problem(what, where=format_path(path)), fix=fix)
