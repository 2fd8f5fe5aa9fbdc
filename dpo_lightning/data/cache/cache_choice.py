"""`choose_folder`: the folder of encoded rows that `--data.cache` and the run's folder determine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from dpo_lightning.data.readers.arrow_rows import HUB
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import check_output_path

KEY = "data.cache"
FIX = f"--{KEY} DIR with another folder, or --{KEY} none to encode the rows for each run"

AUTO = "auto"
"""Chooses `DEFAULT` beside the run's folder."""

DEFAULT = "encoded"
"""The name of the default folder."""

OFF = ("none", "null", "false")
"""Names that switch the cache off, in any case."""


def choose_folder(given: str | Literal[False] | None, run: Path | None, sources: Iterable[str]) -> Path | None:
    """Choose the folder of encoded rows; None encodes them for this run alone.

    Args:
        given: the value of `data.cache`.
        run: the run's folder; None without one.
        sources: the files, folders, patterns and hub ids of the rows.

    Raises:
        UserError: 64, the value names no folder, the run's own, or one inside a folder of rows, in which its files
            would be found as rows.
    """
    if given is None or given is False or given.lower() in OFF or (given == AUTO and run is None):
        return None
    check_output_path(given, KEY, FIX)
    folder = run.parent / DEFAULT if given == AUTO and run is not None else Path(given)
    place = Path(os.path.realpath(folder))
    if run is not None and place == Path(os.path.realpath(run)):
        problem = Problem("the folder of encoded rows is that of the run (output_dir)", KEY, str(folder))
        raise UserError(ExitCode.CONFIG, problem, fix=f"--output_dir with another name, or --{KEY} DIR")
    for source in sources:
        if not source.startswith(HUB) and os.path.isdir(source) and place.is_relative_to(os.path.realpath(source)):  # noqa: PTH112 - false for a name that is too long
            problem = Problem(f"the folder of encoded rows is inside that of the rows, {source}", KEY, str(folder))
            raise UserError(ExitCode.CONFIG, problem, fix=FIX)
    return folder
