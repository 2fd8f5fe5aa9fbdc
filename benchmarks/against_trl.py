"""Steps of this package and of TRL, one after the other on the same rows: seconds, memory, and their ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import fitting_rows
from benchmarks.workers import COMPARISONS, Settings, Worker


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    model: str
    rows: str
    batch: int = 4
    steps: int = 6
    epochs: int = 3
    max_length: int = 1024
    threads: int = 2
    seed: int = 0


def compare(plan: Plan, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run comparisons by name.

    Returns:
        For each: seconds per pair of either side and the median of the ratios, the seconds of the reference pass, and
        peak memory beyond weights, gradients and optimizer state.
    """
    rows = folder / "rows.jsonl"
    counts = fitting_rows(plan.model, plan.rows, rows, plan.max_length, plan.batch * (plan.steps + 1), plan.seed)
    batches = [range(k * plan.batch + 1, (k + 1) * plan.batch + 1) for k in range(plan.steps + 1)]
    results: dict[str, Any] = {"rows": counts}
    for name in names:
        ours, theirs = COMPARISONS[name]
        sides = {
            side: Settings(side, plan.model, str(rows), plan.batch, plan.max_length, plan.threads, **given)
            for side, given in (("ours", ours), ("trl", theirs))
        }
        results[name] = alternate(sides, batches, plan)
    return results


def alternate(sides: Mapping[str, Settings], batches: Sequence[Sequence[int]], plan: Plan) -> dict[str, Any]:
    """Step by step, one side after the other; the first step of each is not counted."""
    workers = {side: Worker(settings) for side, settings in sides.items()}
    reports: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
    try:
        for batch in batches:
            for side, worker in workers.items():
                reports[side].append(worker.step(batch))
    finally:
        for worker in workers.values():
            worker.close()
    passes = {
        side: worker.reference_seconds * plan.batch / worker.reference_pairs / plan.epochs
        for side, worker in workers.items()
    }
    ratios = [
        (theirs["seconds"] + passes["trl"]) / (ours["seconds"] + passes["ours"])
        for ours, theirs in list(zip(reports["ours"], reports["trl"], strict=True))[1:]
    ]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **{side: summary(worker, reports[side][1:], plan.batch) for side, worker in workers.items()},
    }


def summary(worker: Worker, reports: Sequence[Mapping[str, Any]], batch: int) -> dict[str, Any]:
    """What one side took."""
    return {
        "seconds_per_pair": statistics.median(report["seconds"] for report in reports) / batch,
        "reference_seconds": worker.reference_seconds,
        "reference_pairs": worker.reference_pairs,
        "peak_mib": max(report["peak_mib"] for report in reports),
        "static_mib": worker.static_mib,
        "activations_mib": max(report["peak_mib"] for report in reports) - worker.static_mib,
        "losses": [report["loss"] for report in reports],
    }
