"""`write_report`: table, figures, page and TensorBoard's HParams of a sweep, from what its points have left."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.intervals import Interval
from dpo_lightning.sweeps.grid import SEED, parse_value
from dpo_lightning.sweeps.manifest import Manifest
from dpo_lightning.sweeps.marks import PointFiles
from dpo_lightning.sweeps.plots import draw_curves, draw_frontier, plot_style, to_bytes, to_data_uri
from dpo_lightning.sweeps.recommendation import Correlation, Recommendation, correlate, recommend
from dpo_lightning.sweeps.results import ACCURACY, KL, WIN_RATE, Record, Setting, collect, group

COLUMNS = {
    ACCURACY: "held-out accuracy",
    WIN_RATE: "win rate",
    KL["held_out"]: "KL held-out",
    KL["generated"]: "KL generated",
    "margin/nats": "margin (nats)",
    "perplexity/chosen": "perplexity",
    "length/tokens": "tokens",
}
"""Measure -> heading; a measure that no point has takes no column."""

HPARAMS = "hparams"

CAPTIONS = {
    "frontier": "Preference against drift: how many held-out pairs are ranked right, and how far the model has moved "
    "from the reference. Bars are 95 % intervals; small marks are seeds, large ones their means. Best is up and left.",
    "curves": "Training: loss and margin of rewards at each logged step; dots are evaluations of held-out rows.",
}


@dataclass(frozen=True)
class Report:
    """All that is reported of a sweep."""

    records: Sequence[Record]
    settings: Sequence[Setting]
    recommendation: Recommendation | None
    correlation: Correlation | None
    kl: str


def make_report(folder: Path, manifest: Manifest, kl: str) -> Report:
    """Read the points of a sweep and compare them.

    Args:
        folder: of the sweep.
        manifest: its points.
        kl: the measure of drift.
    """
    records = collect(folder, manifest)
    settings = group(records)
    return Report(records, settings, recommend(settings, kl), correlate(records, kl), kl)


def write_report(folder: Path, report: Report) -> None:
    """Write `sweep.json`, `sweep.md`, the figures, `index.html` and the folder of TensorBoard's HParams."""
    with plot_style():
        figures = {
            "frontier": draw_frontier(report.settings, report.kl),
            "curves": draw_curves(
                {r.point.name: PointFiles(folder, r.point.name).run for r in report.records}, report.settings
            ),
        }
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        images = {f"{name}.{kind}": to_bytes(drawn[name], kind) for name in drawn for kind in ("png", "svg")}
    for name, content in images.items():
        write(folder / name, content)
    write(folder / "sweep.json", json.dumps(to_json(report), indent=1, ensure_ascii=False).encode())
    write(folder / "sweep.md", to_markdown(report, list(drawn)).encode())
    write(
        folder / "index.html",
        to_page(folder, report, {name: to_data_uri(images[f"{name}.svg"]) for name in drawn}).encode(),
    )
    write_hparams(folder / HPARAMS, report.records)


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with open_atomic(path, "wb") as file:
        file.write(content)


def make_tables(report: Report) -> list[tuple[str, list[list[str]]]]:
    """Return titles and rows of the tables, headings first: all points, and the means where there are several seeds."""
    records = report.records
    keys = list(dict.fromkeys(key for record in records for key in record.point.setting))
    names = [name for name in COLUMNS if any(name in record.measures for record in records)]
    seeded = [SEED] if any(SEED in record.point.overrides for record in records) else []
    head = [key.rpartition(".")[2] for key in keys]
    rows = [[*head, *("seed" for _ in seeded), "state", *(COLUMNS[name] for name in names)]]
    for record in records:
        cells = [record.point.overrides.get(key, "") for key in [*keys, *seeded]]
        rows.append([*cells, record.state, *(format_interval(record.measures.get(name)) for name in names)])
    tables = [("points", rows)]
    if any(len(setting.records) > 1 for setting in report.settings):
        means = [[*head, "seeds", *(COLUMNS[name] for name in names)]]
        for setting in report.settings:
            cells = [*(setting.overrides.get(key, "") for key in keys), str(len(setting.records))]
            means.append([*cells, *(format_interval(setting.measure(name)) for name in names)])
        tables.append(("means over the seeds (intervals are about the held-out rows)", means))
    return tables


def format_interval(interval: Interval | None) -> str:
    """Return an estimate with its interval, each with three significant digits."""
    if interval is None:
        return ""
    estimate, low, high = (f"{value:#.3g}".rstrip(".") for value in interval)
    return estimate if math.isnan(interval.low) or math.isnan(interval.high) else f"{estimate} [{low}, {high}]"


def to_terminal(report: Report) -> list[str]:
    """Return the tables and the conclusions as lines of text."""
    lines = []
    for title, rows in make_tables(report):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", title, *("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]
    return [*lines, "", *conclusions(report)]


def to_markdown(report: Report, figures: Sequence[str]) -> str:
    """Return the report as Markdown."""
    blocks = ["# Sweep", *conclusions(report), *(f"![{name}]({name}.png)" for name in figures)]
    for title, rows in make_tables(report):
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        blocks += [f"## {title[0].upper()}{title[1:]}", "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])]
    return "\n\n".join(blocks) + "\n"


def to_page(folder: Path, report: Report, figures: Mapping[str, str]) -> str:
    """Return the report as a page that loads nothing."""
    from dpo_lightning.pages.render import render

    return render(
        "sweep.html.j2",
        title=folder.name,
        conclusions=conclusions(report),
        figures=figures,
        captions=CAPTIONS,
        tables=make_tables(report),
        failed=[record for record in report.records if record.error],
    )


def conclusions(report: Report) -> list[str]:
    """Return the recommendation, the correlation and what is missing, as sentences."""
    lines = []
    if report.recommendation is not None:
        lines.append(f"Recommended: {report.recommendation.setting}. {report.recommendation.reason}")
    if (found := report.correlation) is not None:
        low, high = found.rho[1:]
        bounds = "without an interval, as the order is perfect or points are few"
        bounds = bounds if math.isnan(low) else f"95 % interval {low:.2f} to {high:.2f}"
        lines.append(
            f"Rank correlation of {found.key} and KL over {found.points} points: {found.rho.estimate:.2f} "
            f"({bounds}; permutation test p = {found.p_value:.2g})."
        )
    states = [record.state for record in report.records]
    if (open_ := len(states) - states.count("done")) > 0:
        lines.append(f"{open_} of {len(states)} points are not done; run the command again to continue.")
    return lines


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain data, NaN as null."""

    def plain(interval: Interval) -> dict[str, float | None]:
        return {name: None if math.isnan(value) else value for name, value in interval._asdict().items()}

    points = [
        {
            "name": record.point.name,
            "overrides": record.point.overrides,
            "state": record.state,
            "error": record.error,
            "judge": record.judge,
            "measures": {name: plain(interval) for name, interval in record.measures.items()},
        }
        for record in report.records
    ]
    chosen, found = report.recommendation, report.correlation
    recommendation = asdict(chosen) if chosen else None
    if recommendation:
        rivals = recommendation["rivals"].items()
        recommendation["rivals"] = {name: None if math.isnan(p) else p for name, p in rivals}
    correlation = asdict(found) | {"rho": plain(found.rho)} if found else None
    return {
        "format": 1,
        "kl": report.kl,
        "points": points,
        "recommendation": recommendation,
        "correlation": correlation,
    }


def to_plain(text: str) -> float | str:
    """Return a value that TensorBoard shows: a number, or a text as it was written, whose anchors are not expanded."""
    value = parse_value(text)
    return value if isinstance(value, (int, float)) else text


def write_hparams(folder: Path, records: Sequence[Record]) -> None:
    """Write the overrides and measures of each evaluated point for TensorBoard's HParams page."""
    from lightning.pytorch.loggers import TensorBoardLogger

    shutil.rmtree(folder, ignore_errors=True)
    for record in (record for record in records if record.state == "done"):
        values = {key: to_plain(text) for key, text in record.point.overrides.items()}
        logger = TensorBoardLogger(str(folder), "", record.point.name, default_hp_metric=False)
        logger.log_hyperparams(values, {name: interval.estimate for name, interval in record.measures.items()})
        logger.finalize("success")
