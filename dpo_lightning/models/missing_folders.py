"""Errors for a path that is no model folder: similar names, or what the file that was given is good for."""

from __future__ import annotations

import difflib
import os
import shlex
from pathlib import Path

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.special_files import special_kind

KEY = "model.policy.path"
EMBEDDED = "models/smollm2-135m-instruct"
"""Where `fetch-model` puts the embedded model."""

FINAL_MODEL = "final_model"
"""The folder of a run that has the trained model."""


def missing_folder_error(path: str) -> UserError:
    """Make the error for a path that is no folder, with the command or the names that help."""
    if "\0" not in path and os.path.lexists(path):
        return other_kind_error(path)
    if Path(path) == Path(EMBEDDED):
        fix = "python -m dpo_lightning fetch-model"
    else:
        near = find_similar(Path(path))
        fix = f"did you mean {', '.join(near)}?" if near else "give a model folder, an adapter folder or a hub id"
    return UserError(ExitCode.INPUT_MISSING, Problem("the model folder does not exist", KEY, path), fix=fix)


def other_kind_error(path: str) -> UserError:
    """Make the error for a path that is something else than a folder."""
    fix = "give a model folder, an adapter folder or a hub id"
    if path.endswith(".ckpt"):
        kind, run = "a checkpoint", Path(path).parent.parent
        fix = (
            f"give {run / FINAL_MODEL}, the trained model of its run"
            if (run / FINAL_MODEL).is_dir()
            else f"python -m dpo_lightning export --model {shlex.quote(path)} --out MODEL makes a model folder of it"
        )
    elif Path(path).is_symlink() and not Path(path).exists():
        kind = "a link to nothing"
    else:
        kind = special_kind(path) or "a file"
        if (Path(path).parent / "config.json").is_file():
            fix = f"give its folder: {Path(path).parent}"
    return UserError(ExitCode.INPUT_MISSING, Problem(f"expected a model folder, found {kind}", KEY, path), fix=fix)


def find_similar(path: Path) -> list[str]:
    """Return paths of folders beside a missing one whose names are similar to its name."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:  # no such folder, or no permission to list it
        return []
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)]
