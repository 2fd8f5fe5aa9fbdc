"""The start of a run as far as its first batch: how it grows with the rows, what four ranks share, and TRL's."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import as_messages, raw_rows
from benchmarks.step import exponent
from dpo_lightning.errors import ExitCode, Problem, UserError

WORDS = {"prompt": 100, "chosen": 230, "rejected": 250}
"""Words of each text of a row."""

PARTS = (100, 20, 5, 1)
"""The sizes that are measured, as parts of the largest."""

SHARED = 5
"""The part of the largest size that one and four ranks start with."""

RANKS = (1, 4)
"""Processes that start at once."""

AGAINST_TRL = {50: 3, 5: 1}
"""Part of the largest size -> how often each side starts with it."""

STARTS = ("first start", "second start")
"""With an empty cache, and with what the first start has left in it."""

FIGURES = ("processor_seconds", "wall_seconds", "mib")


@dataclass(frozen=True)
class Settings:
    """What a process of `benchmarks.data_worker` does."""

    side: str
    model: str
    rows: str
    few_rows: str
    cache: str
    batch: int
    max_length: int


class Start:
    """One process. It goes on by one stage with each `go`."""

    def __init__(self, settings: Settings, rank: int | None = None) -> None:
        """Start it; `rank` is its number among processes that start at once."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.data_worker", json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ({} if rank is None else {"RANK": str(rank)}),
        )

    def go(self) -> None:
        """Let it begin the next stage."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait(self) -> dict[str, Any]:
        """Wait for the end of a stage, and return its figures."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process ended with exit status {self.process.wait()}")
        report: dict[str, Any] = json.loads(line)
        return report

    def read_pss(self) -> float:
        """Its proportional set size in MiB: a page that several processes have mapped counts once in their sum."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text(encoding="ascii")
        return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:"))

    def close(self) -> None:
        """End the process, which removes its temporary files."""
        self.process.communicate()


def compare(plan: Settings, words: str, most: int, folder: Path) -> dict[str, Any]:
    """Measure starts.

    Args:
        plan: the settings of the starts; `side` and all paths but that of the model are set here.
        words: the file that the words of rows are drawn from.
        most: the largest number of rows.
        folder: for rows and caches.

    Raises:
        UserError: there are too few rows or words, or something that is needed is not there.
    """
    check(most, plan.batch)
    write_rows(words, folder / "rows.jsonl", most)
    plan = Settings(**asdict(plan) | {"few_rows": str(take_rows(folder, 2 * plan.batch))})
    return {
        "growth": measure_growth(plan, most, folder),
        "ranks": measure_ranks(plan, most // SHARED, folder),
        "trl": {
            str(most // part): measure_trl(plan, most // part, times, folder) for part, times in AGAINST_TRL.items()
        },
    }


def check(most: int, batch: int) -> None:
    """Check that all can be measured before the first rows are written.

    Raises:
        UserError: it cannot.
    """
    least = 2 * batch * max(PARTS)
    if most < least:
        raise UserError(ExitCode.CONFIG, Problem(f"--most {most:,} is too few"), fix=f"--most {least:,} or more")
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        problem = Problem(f"this benchmark compares with TRL, and {' and '.join(missing)} cannot be imported")
        raise UserError(ExitCode.CONFIG, problem, fix=f"pip install {' '.join(missing)}")
    if not Path("/proc/self/smaps_rollup").is_file():
        raise UserError(ExitCode.DEVICE, Problem("memory is read from /proc/PID/smaps_rollup"), fix="run it on Linux")


def write_rows(source: str, target: Path, count: int) -> None:
    """Write rows of random words as JSON Lines.

    Prompts end with a line break: TRL joins prompt and answer as they are, and the last word of one would run into the
    first of the other.

    Args:
        source: the file whose ASCII words are drawn, as often as it has them.
        target: the file to write.
        count: rows to write.

    Raises:
        UserError: the file cannot be read, or has no such word.
    """
    texts = (turn["content"] for row in map(as_messages, raw_rows(source)) for turns in row.values() for turn in turns)
    words = [word for text in texts for word in text.split() if word.isascii()]
    if not words:
        raise UserError(ExitCode.DATA, Problem("no text has a word in ASCII", where=source), fix="--rows FILE")
    generator = random.Random(0)
    with target.open("w", encoding="utf-8") as file:
        for _ in range(count):
            row = {name: " ".join(generator.choices(words, k=length)) for name, length in WORDS.items()}
            file.write(json.dumps(row | {"prompt": row["prompt"] + "\n"}) + "\n")


def take_rows(folder: Path, count: int) -> Path:
    """Write a file of the first rows, unless there is one."""
    target = folder / f"{count}.jsonl"
    if not target.exists():
        with (folder / "rows.jsonl").open(encoding="utf-8") as rows, target.open("w", encoding="utf-8") as file:
            file.writelines(itertools.islice(rows, count))
    return target


@contextmanager
def fresh_cache(plan: Settings, side: str, rows: Path, folder: Path) -> Iterator[Settings]:
    """Settings with an empty cache, which is removed at the end."""
    cache = folder / f"cache-{side}"
    try:
        yield Settings(**asdict(plan) | {"side": side, "rows": str(rows), "cache": str(cache)})
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def start_once(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of imports and tokenizer, and of the start as far as its first batch."""
    process = Start(settings)
    try:
        base = process.wait()
        process.go()
        return base, process.wait()
    finally:
        process.close()


def measure_growth(plan: Settings, most: int, folder: Path) -> dict[str, Any]:
    """Starts with more and more rows, and the exponents of the power laws that fit best."""
    sizes = [most // part for part in PARTS]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in STARTS}
    bases = []
    for size in sizes:
        with fresh_cache(plan, "ours", take_rows(folder, size), folder) as settings:
            for name in STARTS:
                base, start = start_once(settings)
                bases.append(base)
                found[name].append(start)
    figures: dict[str, Any] = {name: gather(sizes, starts) for name, starts in found.items()}
    return {"sizes": sizes, "imports and tokenizer": medians(bases), **figures}


def gather(sizes: Sequence[int], starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures by size, and how each grows with it; a peak below 1 MiB counts as 1 MiB in the fit."""
    columns = {name: [start[name] for start in starts] for name in FIGURES}
    floors = {"mib": 1.0}
    return columns | {
        f"exponent_of_{name}": exponent(sizes, [max(value, floors.get(name, 1e-6)) for value in values])
        for name, values in columns.items()
    }


def medians(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(report[name] for report in reports) for name in FIGURES}


def measure_ranks(plan: Settings, size: int, folder: Path) -> dict[str, Any]:
    """One and several ranks of a machine that start at once, and the memory that all rows take when all are read."""
    found: dict[str, Any] = {"rows": size}
    for ranks in RANKS:
        with fresh_cache(plan, "ours", take_rows(folder, size), folder) as settings:
            found[str(ranks)] = {name: start_at_once(settings, ranks) for name in STARTS}
    one, several = (found[str(ranks)] for ranks in RANKS)
    parts = {name: several[name]["pss_mib"] / one[name]["pss_mib"] for name in STARTS}
    return found | {"memory in parts of one's": parts}


def start_at_once(settings: Settings, ranks: int) -> dict[str, Any]:
    """Start ranks, wait for each stage of all, and read their memory before the rows and when all rows were read."""
    with ExitStack() as stack:
        processes = []
        for rank in range(ranks):
            processes.append(Start(settings, rank))
            stack.callback(processes[-1].close)
        stages = [[process.wait() for process in processes]]
        base = sum(process.read_pss() for process in processes)
        for _ in range(2):
            for process in processes:
                process.go()
            stages.append([process.wait() for process in processes])
        held = sum(process.read_pss() for process in processes)
    starts, ends = stages[1:]
    return {
        "processes that encoded": sum(report["encoded"] for report in starts),
        "processor_seconds": sum(report["processor_seconds"] for report in starts),
        "wall_seconds": max(report["wall_seconds"] for report in starts),
        "pss_mib": held - base,
        "base_pss_mib": base,
        "tokens": ends[0]["tokens"],
    }


def measure_trl(plan: Settings, size: int, times: int, folder: Path) -> dict[str, Any]:
    """Starts of both sides in turn."""
    rows = take_rows(folder, size)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {"ours": [], "trl": []} for name in STARTS}
    for _ in range(times):
        with fresh_cache(plan, "ours", rows, folder) as ours, fresh_cache(plan, "trl", rows, folder) as trl:
            for name, settings in itertools.product(STARTS, (ours, trl)):
                found[name][settings.side].append(start_once(settings)[1])
    return {name: summary(sides) for name, sides in found.items()}


def summary(sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians of both sides, and of the ratios of starts that followed one another: TRL's figure in parts of ours."""
    ratios = {
        name: [trl[name] / ours[name] for ours, trl in zip(sides["ours"], sides["trl"], strict=True)]
        for name in FIGURES[:2]
    }
    return {side: medians(reports) for side, reports in sides.items()} | {
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratios": ratios,
    }
