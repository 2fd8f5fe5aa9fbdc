"""Logs of a run that goes on: what was logged before the checkpoint is there once, and nothing that came after it."""

from __future__ import annotations

import contextlib
import csv
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from dpo_lightning.atomic_files import open_atomic, sync
from dpo_lightning.special_files import real_path

CSV_FILE, KEPT_FILE = "metrics.csv", "metrics.kept.csv"
"""The table of `CSVLogger`, and what is kept of it while it is replaced."""

MOST_BYTES = 1 << 16
"""More than a row of a table takes."""

EVENTS = "events.out.tfevents.*"

Places = Mapping[str, int]
"""File, relative to the run's folder -> how far it is: bytes of events, rows of a table."""


def flush_logs(loggers: Iterable[Any], folder: Path) -> dict[str, int]:
    """Let loggers write what they hold, and return how far their files are.

    Args:
        loggers: those of the trainer, on the process that logs.
        folder: of the run.
    """
    found: dict[str, int] = {}
    for logger in loggers:
        with contextlib.suppress(OSError):  # a logger that cannot write ends no run
            if isinstance(logger, TensorBoardLogger):
                logger.save()
                for name, path in iterate_events(logger, folder):
                    sync(path)
                    found[name] = path.stat().st_size
            elif isinstance(logger, CSVLogger):
                logger.save()
                path = Path(logger.log_dir, CSV_FILE)
                found[os.path.relpath(path, folder)] = count_rows(path)
                sync(path)
    return found


class StepTable:
    """The table of a `CSVLogger`, with one row for each step, whatever logs at it and how often.

    Measures, learning rates and evaluations log on their own, each of which would be a row.
    """

    def __init__(self, logger: CSVLogger) -> None:
        """Replace the logger's methods that write."""
        self.logger = logger
        self._log, self._save, self._every = logger.log_metrics, logger.save, logger._flush_logs_every_n_steps
        logger.log_metrics, logger.save = self.log_metrics, self.save  # type: ignore[method-assign]
        logger._flush_logs_every_n_steps = sys.maxsize  # a row is written when that of another step follows

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add values to the row of their step; write the earlier rows every `flush_logs_every_n_steps` steps."""
        rows = self.logger.experiment.metrics
        before = rows[-1]["step"] if rows else None
        if before is not None and step is not None and before // self._every != step // self._every:
            self.save()
            rows = self.logger.experiment.metrics
        self._log(dict(metrics), step)
        if len(rows) > 1 and rows[-1]["step"] == rows[-2]["step"]:
            rows[-2].update(rows.pop())

    @rank_zero_only
    def save(self) -> None:
        """Write the rows; a table that gets another column is replaced as a whole, which Lightning would empty."""
        path, writer = Path(self.logger.log_dir, CSV_FILE), self.logger.experiment
        writer._rewrite_with_new_header = lambda names: write_table(path, read_table(path), names)
        if writer.metrics and str(writer.metrics[0]["step"]) == read_last_step(path):
            self._complete_row(path, writer)
        self._save()

    @staticmethod
    def _complete_row(path: Path, writer: Any) -> None:
        """Add values to the last row that is written already, as at a checkpoint before an evaluation."""
        table, more = read_table(path), writer.metrics.pop(0)
        table[-1] |= {name: str(value) for name, value in more.items()}
        writer.metrics_keys = sorted({*writer.metrics_keys, *more})
        write_table(path, table, writer.metrics_keys)


def keep_tables_whole(loggers: Iterable[Any]) -> None:
    """Let each `CSVLogger` have a table of one row a step, which no interruption empties."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            StepTable(logger)


def read_last_step(path: Path) -> str | None:
    """Return the step of a table's last row, reading the ends of the file alone; None if there is no row."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        names = next(csv.reader([file.readline().decode()]), [])
        first = file.tell()
        file.seek(max(first, path.stat().st_size - MOST_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    last = dict(zip(names, next(csv.reader(lines[-1:]), []), strict=False))
    return last.get("step")


def write_table(path: Path, rows: Iterable[Mapping[str, str]], names: Sequence[str]) -> None:
    """Write a table with a header."""
    with open_atomic(path) as file:
        writer = csv.DictWriter(file, names, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


def drop_later(loggers: Iterable[Any], step: int, places: Places | None, folder: Path) -> None:
    """Drop what was logged after a checkpoint, before a run goes on from it; called before anything is logged.

    Args:
        loggers: those of the trainer.
        step: the optimizer steps of the checkpoint; -1 without one.
        places: how far the files were then; None where that is not known, so that the step decides.
        folder: of the run.
    """
    for logger in loggers:
        if not isinstance(logger, (TensorBoardLogger, CSVLogger)):
            continue
        root, home = real_path(logger.root_dir), real_path(folder)
        own = home in (root, *root.parents)  # elsewhere, other runs may log beside this one
        if logger._version is None:  # Lightning would take the next one
            logger._version = find_version(root, places or {}, home, own=own)
        if logger._version is None or not (own or is_named(Path(logger.log_dir), places or {}, home)):
            continue
        if isinstance(logger, CSVLogger):
            continue_table(logger, step, places, folder)
            continue
        # Readers of the events that run meanwhile drop those of this step and later ones.
        logger._kwargs.setdefault("purge_step", step + 1)
        if places is not None:
            cut_events(logger, places, folder, own=own)


def find_version(root: Path, places: Places, folder: Path, *, own: bool) -> int | None:
    """Find the number of the folder `version_N` into which a run has logged; None if it is not known.

    Args:
        root: of the logger.
        places: the files of the run's logs.
        folder: of the run, to which they are relative.
        own: whether nothing else logs into `root`, so that the last one is the run's.
    """
    found = [path for path in root.glob("version_*") if path.name.removeprefix("version_").isdecimal()]
    found = [path for path in found if own or is_named(path, places, folder)]
    return max((int(path.name.removeprefix("version_")) for path in found), default=None)


def is_named(place: Path, places: Places, folder: Path) -> bool:
    """Whether a file of a run's logs lies in a folder."""
    return any(real_path(folder / name).parent == real_path(place) for name in places)


def cut_events(logger: TensorBoardLogger, places: Places, folder: Path, *, own: bool) -> None:
    """Cut the files of events to what they were, and remove those that came later, if no other run can have them."""
    for name, path in iterate_events(logger, folder):
        if name in places and path.stat().st_size > places[name]:
            os.truncate(path, places[name])
        elif name not in places and own:
            path.unlink()


def iterate_events(logger: TensorBoardLogger, folder: Path) -> Iterator[tuple[str, Path]]:
    """Iterate over the files of events of a run: name and path."""
    for path in sorted(Path(logger.log_dir).glob(EVENTS)):
        yield os.path.relpath(path, folder), path


def count_rows(path: Path) -> int:
    """Count the rows of a table without parsing it, as this is done at each epoch; a row is a line."""
    return max(path.read_bytes().count(b"\n") - 1, 0) if path.is_file() else 0


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table, without their empty fields; none if there is no table."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def continue_table(logger: CSVLogger, step: int, places: Places | None, folder: Path) -> None:
    """Continue the file of an earlier attempt, which Lightning would remove."""
    path, beside = Path(logger.log_dir, CSV_FILE), Path(logger.log_dir, KEPT_FILE)
    source = path if path.is_file() else beside  # an attempt was killed while it replaced the table
    if not source.is_file():
        return
    count, kept = (places or {}).get(os.path.relpath(path, folder)), list[dict[str, str]]()
    if step >= 0:
        rows = read_table(source)
        kept = rows[:count] if count is not None else [row for row in rows if int(row.get("step", -1)) <= step]
    names = sorted({name for row in kept for name in row})
    write_table(beside, kept, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the deletion
        experiment = logger.experiment  # removes the table, and nothing else
    if kept:
        beside.replace(path)
        experiment.metrics_keys = names
    else:
        beside.unlink()
