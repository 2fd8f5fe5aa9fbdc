"""Parts, each in a process of its own with a time limit: one that fails or hangs does not cost the others."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import MEMORY, OUT_OF_MEMORY, Row, read_rows
from benchmarks.gpu.scratch import PREFIX, remove_scratch

NO_DEVICE = 69
"""Exit status of the check without a GPU."""


@dataclass(frozen=True)
class Part:
    """A module with a function `measure(report, toy)`."""

    module: str
    seconds: float
    """Time limit on a GPU."""


PARTS = {
    "equality": Part("benchmarks.gpu.equality", 120),
    "speed": Part("benchmarks.gpu.speed", 200),
    "qlora": Part("benchmarks.gpu.qlora", 110),
    "profile": Part("benchmarks.gpu.step_profile", 70),
    "resume": Part("benchmarks.gpu.resume", 70),
    "precision": Part("benchmarks.gpu.precision", 30),
}
"""In the order of what has to be known first. The limits add up to ten minutes."""

TOY_SECONDS = 300.0
"""Time limit of a part at toy size, which is not a measure of anything."""


@dataclass
class Outcome:
    """How a part ended, and what it measured."""

    state: str
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether it ran to its end and met its goals."""
        return self.state == "finished" and all(row.passed is not False for row in self.rows)


def run_parts(parts: Mapping[str, Part], out: Path, toy: bool) -> dict[str, Outcome]:
    """Run parts in turn; after each, write `gpu.json` and `gpu.md` and print the part's rows.

    Args:
        parts: name -> part.
        out: folder for the results and a log of each part.
        toy: run at toy size on the CPU.
    """
    out.mkdir(parents=True, exist_ok=True)
    machine, outcomes = describe_machine(toy), {}
    print(" | ".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    for name, part in parts.items():
        outcomes[name] = run_part(name, part, out, toy)
        found = {key: asdict(outcome) for key, outcome in outcomes.items()}
        (out / "gpu.json").write_text(json.dumps({"machine": machine, "parts": found}, indent=1) + "\n", "utf-8")
        (out / "gpu.md").write_text(format_report(machine, outcomes), "utf-8")
        print(format_part(name, outcomes[name]), flush=True)
    return outcomes


def run_part(name: str, part: Part, out: Path, toy: bool) -> Outcome:
    """Run a part until it ends or its time is over, and read its rows."""
    rows, log = out / f"{name}.jsonl", out / f"{name}.log"
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.part", part.module, str(rows), "cpu" if toy else "cuda"]
    limit = TOY_SECONDS if toy else part.seconds
    prefix = f"dpo-lightning-{os.getpid()}-"
    # TRL would divide every batch among all visible GPUs.
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = os.environ | {PREFIX: prefix} | ({} if toy else {"CUDA_VISIBLE_DEVICES": card})
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        # A session of its own, so that what the part has started is ended with it.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            state = describe_exit(process.wait(limit), log)
        except subprocess.TimeoutExpired:
            state = f"stopped after {limit:g} s"
        finally:
            end_session(process)
            remove_scratch(prefix)
    return Outcome(state, time.monotonic() - start, read_rows(rows))


def end_session(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def describe_exit(status: int, log: Path) -> str:
    """Describe how a process ended; the last line of its log says why it failed."""
    if status == 0:
        return "finished"
    if status in (OUT_OF_MEMORY, -signal.SIGKILL):
        return MEMORY
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    return f"failed: {lines[-1][:160]}"


def describe_machine(toy: bool) -> dict[str, str]:
    """Name what was measured: the device, its driver, and versions of libraries."""
    import torch
    import transformers

    import dpo_lightning

    if toy:
        device = f"toy size on {os.cpu_count()} CPU cores ({platform.machine()})"
    else:
        card = torch.cuda.get_device_properties(0)
        device = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
    return {
        "device": device,
        "dpo_lightning": dpo_lightning.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def format_report(machine: Mapping[str, str], outcomes: Mapping[str, Outcome]) -> str:
    """Format all parts as Markdown."""
    lines = [f"- {name}: {value}" for name, value in machine.items()]
    return "\n".join(["# GPU check", "", *lines, "", *(format_part(*item) for item in outcomes.items())])


def format_part(name: str, outcome: Outcome) -> str:
    """Format a part as a table."""
    head = f"## {name}: {outcome.state}, {outcome.seconds:.0f} s"
    cells = [(row.what, format_value(row.value), row.goal, row.result) for row in outcome.rows]
    table = format_table([("what", "value", "goal", ""), *cells]) if cells else []
    return "\n".join([head, "", *table, ""])


def format_table(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Format rows, of which the first is the heading, as a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def format_value(value: Any) -> str:
    """Format a number with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(argv: list[str]) -> int:
    """Run the parts; return 0 if all met their goals, 1 if not, 69 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=f"Check this package on a GPU. Parts: {', '.join(PARTS)}."
    )
    parser.add_argument("--cpu", action="store_true", help="run at toy size on the CPU, to try the check itself")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART", help="run these parts")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="folder for gpu.md, gpu.json and logs")
    options = parser.parse_args(argv)
    if not options.cpu:
        import torch

        if not torch.cuda.is_available():
            print(f"error: torch {torch.__version__} finds no CUDA device\nfix: --cpu for a trial", file=sys.stderr)
            return NO_DEVICE
    outcomes = run_parts({name: PARTS[name] for name in PARTS if name in options.only}, options.out, options.cpu)
    short = [name for name, outcome in outcomes.items() if not outcome.passed]
    print(
        f"{options.out / 'gpu.md'}: " + (f"not all goals are met in {', '.join(short)}" if short else "all goals met")
    )
    return 1 if short else 0
