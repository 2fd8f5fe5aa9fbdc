"""Charts of what was measured, one PNG beside each JSON file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

OURS, THEIRS = "#0b6e99", "#b8b8b8"


def draw(name: str, figures: Mapping[str, Any], target: Path) -> None:
    """Draw the figures of a benchmark."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    drawn = {
        "trl": against,
        "sweep": against,
        "share": shares,
        "growth": growths,
        "profile": profiles,
        "ddp": processes,
        "memory": stages,
        "data": starts,
    }
    drawn[name](figure, figures)
    figure.savefig(target, dpi=120)


def against(figure: Figure, figures: Mapping[str, Any]) -> None:
    """Seconds per pair and memory of both sides."""
    found = {name: value for name, value in figures.items() if isinstance(value, Mapping) and "ratio" in value}
    left, right = figure.subplots(1, 2)
    for axes, key, title in (
        (left, "seconds_per_pair", "seconds per pair (median)"),
        (right, "activations_mib", "peak MiB beyond weights, gradients, optimizer"),
    ):
        for shift, side, colour in ((-0.2, "ours", OURS), (0.2, "trl", THEIRS)):
            heights = [value[side][key] for value in found.values()]
            label = "dpo_lightning" if side == "ours" else "TRL"
            axes.bar([place + shift for place in range(len(found))], heights, 0.4, color=colour, label=label)
        axes.set_xticks(range(len(found)), list(found))
        axes.set_title(title)
    for place, value in enumerate(found.values()):
        height = value["trl"]["seconds_per_pair"]
        left.annotate(f"{value['ratio']:.1f}x", (place, height), ha="center", va="bottom")
    left.legend()


def shares(figure: Figure, figures: Mapping[str, Any]) -> None:
    """Parts of the best matrix product's speed."""
    axes = figure.subplots()
    for shift, (name, colour) in zip((-0.2, 0.2), {"bf16": OURS, "fp32": THEIRS}.items(), strict=True):
        values = figures[name]["shares"]
        bars = axes.bar([place + shift for place in range(len(values))], list(values.values()), 0.4, color=colour)
        bars.set_label(f"{name} (best square product: {figures[name]['best_square_gflops']:.0f} GFLOP/s)")
        axes.bar_label(bars, fmt="%.2f")
        axes.set_xticks(range(len(values)), list(values))
    axes.set_ylim(0, 1)
    axes.set_title("useful operations over unique tokens, as a part of the best square product's speed")
    axes.legend()


def growths(figure: Figure, figures: Mapping[str, Any]) -> None:
    """Seconds against sizes, on logarithmic axes."""
    for axes, what in zip(figure.subplots(1, 3), ("pairs", "response", "prompt"), strict=True):
        for layout, colour in (("packed shared prefix", OURS), ("padded", THEIRS)):
            found = figures[f"{layout}, {what}"]
            label = f"{layout}: {found['exponent_of_seconds']:.2f}"
            axes.loglog(found["sizes"], found["seconds"], "o-", color=colour, label=label)
        axes.set_xlabel(what if what == "pairs" else f"{what} (tokens)")
        axes.set_xticks(found["sizes"], [str(size) for size in found["sizes"]], minor=False)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(title="exponent", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.supylabel("seconds per step")


def profiles(figure: Figure, figures: Mapping[str, Any]) -> None:
    """Shares of operators."""
    axes = figure.subplots()
    shown = dict(reversed(list(figures["shares"].items())))
    bars = axes.barh([key.removeprefix("aten::")[:48] for key in shown], list(shown.values()), color=OURS)
    axes.bar_label(bars, fmt="%.3f", padding=2)
    axes.margins(x=0.1)
    axes.set_title(f"one step of {figures['tokens']} tokens: shares of time")


def processes(figure: Figure, figures: Mapping[str, Any]) -> None:
    """Pairs per second of one and of two processes."""
    axes = figure.subplots()
    speeds = [1 / statistics.median(values) for values in figures["seconds_per_pair"].values()]
    bars = axes.bar(["one process", "two"], speeds, color=[THEIRS, OURS])
    axes.bar_label(bars, fmt="%.2f")
    axes.set_title(f"pairs per second, a thread each: {figures['efficiency']:.0%} of twice the speed")


def starts(figure: Figure, figures: Mapping[str, Any]) -> None:
    """Seconds and memory by rows, memory of one and of four ranks, and seconds here and in TRL."""
    figure.set_size_inches(10, 8)
    (seconds, memory), (ranks, against_trl) = figure.subplots(2, 2)
    draw_growth(seconds, figures["growth"], "processor_seconds", "processor seconds to the first batch")
    draw_growth(memory, figures["growth"], "mib", "peak MiB beyond imports and tokenizer")
    names = ("first start", "second start")
    counts = [key for key in figures["ranks"] if key.isdigit()]
    for shift, count, colour in zip((-0.2, 0.2), counts, (THEIRS, OURS), strict=True):
        heights = [figures["ranks"][count][name]["pss_mib"] for name in names]
        bars = ranks.bar([place + shift for place in range(2)], heights, 0.4, color=colour)
        bars.set_label("one rank" if count == "1" else f"{count} ranks that start at once")
        ranks.bar_label(bars, fmt="%.0f")
    ranks.set_xticks(range(2), names)
    ranks.margins(y=0.25)
    ranks.set_title(f"MiB of {figures['ranks']['rows']:,} rows, all of them read (PSS)")
    ranks.legend()
    groups = [(size, name) for size in figures["trl"] for name in names]
    for shift, side, colour in ((-0.2, "ours", OURS), (0.2, "trl", THEIRS)):
        heights = [figures["trl"][size][name][side]["processor_seconds"] for size, name in groups]
        bars = against_trl.bar([place + shift for place in range(len(groups))], heights, 0.4, color=colour)
        bars.set_label("dpo_lightning" if side == "ours" else "TRL")
        against_trl.bar_label(bars, fmt="%.2g")
    labels = [f"{int(size):,} rows,\n{name}" for size, name in groups]
    against_trl.set_xticks(range(len(groups)), labels, fontsize=8)
    against_trl.set_yscale("log")
    against_trl.margins(y=0.2)
    against_trl.set_title("processor seconds to the first batch")
    against_trl.legend()


def draw_growth(axes: Any, growth: Mapping[str, Any], key: str, title: str) -> None:
    """A figure of first and second starts against the number of rows, on logarithmic axes."""
    for name, colour in (("first start", OURS), ("second start", THEIRS)):
        label = f"{name}: {growth[name][f'exponent_of_{key}']:.2f}"
        axes.loglog(growth["sizes"], growth[name][key], "o-", color=colour, label=label)
    axes.set_xticks(growth["sizes"], [f"{size:,}" for size in growth["sizes"]], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("rows")
    axes.set_title(title)
    axes.legend(title="exponent")


def stages(figure: Figure, figures: Mapping[str, Any]) -> None:
    """Peaks of the larger process after each stage of a run, beyond what imports take."""
    axes = figure.subplots()
    for shift, (strategy, colour) in zip((-0.2, 0.2), {"fsdp2": OURS, "ddp": THEIRS}.items(), strict=True):
        ranks = figures[strategy]
        found = {
            stage: max(rank["stages"].get(stage, rank["peak"]) - rank["imports"] for rank in ranks)
            for stage in (*ranks[0]["stages"], "final model")
        }
        bars = axes.bar([place + shift for place in range(len(found))], list(found.values()), 0.4, color=colour)
        bars.set_label(strategy)
        axes.bar_label(bars, fmt="%.0f")
        axes.set_xticks(range(len(found)), list(found))
    axes.set_title("peak of a process's resident set in MiB, beyond imports")
    axes.legend()
