"""The two figures of a sweep: preference against drift from the reference, and the curves of training."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_lightning.sweeps.fonts import find_fonts
from dpo_lightning.sweeps.grid import parse_value
from dpo_lightning.sweeps.results import ACCURACY, WIN_RATE, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DISTINCT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that remain distinguishable with any kind of colour blindness (Okabe and Ito 2008)."""

MARKERS = "osD^vP*X"
"""Shapes for the values of all keys but the first."""

PANELS = {ACCURACY: "held-out accuracy by implicit reward", WIN_RATE: "win rate against the reference"}
CURVES = {"loss": "loss", "rewards/margins": "margin of rewards"}
KL_LABELS = {
    "kl/held_out/token": "KL from the reference on held-out answers (nats per token)",
    "kl/generated/token": "KL from the reference on generated answers (nats per token)",
}
CHANCE = 0.5
"""Accuracy and win rate without any preference, a dashed line where it is in sight."""

SPREAD = 10
"""Ratio of the largest to the smallest KL from which its axis is logarithmic."""

PLACES = [(x, y) for y in (8, -8, 16, -16, 0, 26, -26, 38, -38) for x in (8, -8)]
"""Offsets in points at which a label is tried beside its mark."""


def draw_frontier(settings: Sequence[Setting], kl: str) -> Figure | None:
    """Draw accuracy, and the win rate where there is one, against the KL divergence from the reference.

    Each seed is a small mark with both of its intervals; the mean over seeds is a larger one.

    Args:
        settings: evaluated settings.
        kl: the measure of drift.

    Returns:
        None if no setting has both measures of a panel.
    """
    shown = [s for s in settings if s.measure(kl) and s.measure(ACCURACY)]
    if not shown:
        return None
    names = [name for name in PANELS if name == ACCURACY or any(s.measure(name) for s in shown)]
    figure, axes = new_figure(len(names), 4.4)
    colours, shapes = choose_colours(shown), choose_shapes(shown)
    drifts = [record.measures[kl].estimate for setting in shown for record in setting.records]
    for axis, name in zip(axes, names, strict=True):
        if min(drifts) > 0 and max(drifts) > SPREAD * min(drifts):
            set_log_scale(axis)
        axis.set(xlabel=KL_LABELS.get(kl, kl), title=PANELS[name])
        for setting in (s for s in shown if s.measure(name)):
            draw_setting(axis, setting, kl, name, colours[setting.label], shapes[setting.label])
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -0.02), min(high, 1.02))
        if low < CHANCE < high:
            axis.axhline(CHANCE, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    figure.draw_without_rendering()  # the layout has to be final before labels are placed
    for axis, name in zip(axes, names, strict=True):
        there = [s for s in shown if s.measure(name)]
        marks = [(short_label(s), *mean_place(s, kl, name), colours[s.label]) for s in there]
        place_labels(
            axis, marks, [(r.measures[kl].estimate, r.measures[name].estimate) for s in there for r in s.records]
        )
    explain_labels(figure, shown)
    return figure


def set_log_scale(axis: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def short_label(setting: Setting) -> str:
    """Return a label beside a mark: the key and its value, or the values alone of several keys or of a class."""
    values = [text.rpartition(".")[2] if not isinstance(parse_value(text), float) else text
              for text in setting.overrides.values()]  # fmt: skip
    numeric = [isinstance(parse_value(text), float) for text in setting.overrides.values()]
    return setting.label if numeric == [True] else " · ".join(values) or setting.label


def explain_labels(figure: Figure, settings: Sequence[Setting]) -> None:
    """Write above the panels which keys the values in labels belong to, where there are several."""
    keys = [key.rpartition(".")[2] for key in settings[0].overrides]
    if len(keys) > 1:
        figure.suptitle("labels: " + " · ".join(keys), fontsize=9, color="0.35", x=0.01, ha="left")


def draw_setting(axis: Axes, setting: Setting, kl: str, name: str, colour: Any, shape: str) -> None:
    """Draw one setting's seeds with their intervals, and their mean."""
    several = len(setting.records) > 1
    for record in setting.records:
        x, y = record.measures[kl], record.measures[name]
        bars: dict[str, Any] = {
            "xerr": reach(x),
            "yerr": reach(y),
            "elinewidth": 0.7 if several else 1.2,
            "capsize": 0 if several else 2,
        }
        axis.errorbar(x.estimate, y.estimate, color=colour, fmt="none", alpha=0.35 if several else 0.8, **bars)
        axis.plot(
            x.estimate, y.estimate, shape, color=colour, markersize=4 if several else 8, alpha=0.7 if several else 1
        )
    if several:
        axis.plot(*mean_place(setting, kl, name), shape, color=colour, markersize=10, markeredgecolor="white")


def mean_place(setting: Setting, kl: str, name: str) -> tuple[float, float]:
    """Return the mean of both measures over a setting's seeds."""
    x, y = setting.measure(kl), setting.measure(name)
    return (x.estimate if x else math.nan), (y.estimate if y else math.nan)


def reach(interval: Sequence[float]) -> list[list[float]]:
    """Return the distances from an estimate to its bounds, as error bars take them; 0 where there are none."""
    estimate, low, high = interval
    return [[0.0 if math.isnan(end) else max(0.0, end)] for end in (estimate - low, high - estimate)]


def place_labels(
    axis: Axes, marks: Sequence[tuple[str, float, float, Any]], seeds: Sequence[tuple[float, float]]
) -> None:
    """Write a label beside each mark, where it covers neither marks nor other labels.

    Args:
        axis: with its final limits and layout.
        marks: label, place in data coordinates, and colour.
        seeds: places of other marks.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    places = axis.transData.transform([*(mark[1:3] for mark in marks), *seeds])
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    for text, x, y, colour in marks:
        tried: list[tuple[int, int, Any, Bbox]] = []
        for offset in PLACES:
            side = "left" if offset[0] > 0 else "right"
            written = axis.annotate(
                text, (x, y), offset, textcoords="offset points", color=colour, ha=side, va="center"
            )
            written.set(fontsize=9, fontweight="bold", path_effects=[withStroke(linewidth=2.5, foreground="white")])
            box = written.get_window_extent()
            covered = sum(box.overlaps(other) for other in taken) + 2 * (not axis.bbox.contains(box.x0, box.y0))
            tried.append((covered + 2 * (not axis.bbox.contains(box.x1, box.y1)), len(tried), written, box))
        best = min(tried)
        taken.append(best[3])
        for _, _, written, _ in tried:
            if written is not best[2]:
                written.remove()


def draw_curves(folders: Mapping[str, Path], settings: Sequence[Setting]) -> Figure | None:
    """Draw loss and margin of all points over the steps of training, in the colours of the frontier.

    Args:
        folders: name of a point -> its run's folder.
        settings: evaluated settings.

    Returns:
        None if no run has such curves.
    """
    from matplotlib.ticker import MaxNLocator

    runs = [(s, record, read_curves(folders[record.point.name])) for s in settings for record in s.records]
    names = [name for name in CURVES if any(f"train/{name}" in curves for _, _, curves in runs)]
    if not names:
        return None
    figure, axes = new_figure(len(names), 3.8)
    colours = choose_colours(settings)
    for axis, name in zip(axes, names, strict=True):
        ends: dict[str, tuple[str, float, float, Any]] = {}
        for setting, _, curves in runs:
            line = sorted(curves.get(f"train/{name}", {}).items())
            if not line:
                continue
            colour = colours[setting.label]
            axis.plot(
                *zip(*line, strict=True), color=colour, linewidth=1.4, alpha=0.9 if len(setting.records) == 1 else 0.6
            )
            held_out = curves.get(f"eval/{name}", {})
            axis.plot(list(held_out), list(held_out.values()), "o", color=colour, markersize=5, markerfacecolor="white")
            ends[setting.label] = (short_label(setting), *line[-1], colour)
        axis.set(xlabel="optimizer step", title=CURVES[name])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        spread_end_labels(axis, list(ends.values()))
    return figure


def spread_end_labels(axis: Axes, ends: Sequence[tuple[str, float, float, Any]]) -> None:
    """Write a label at the right end of each line, in the order of the ends and without overlap."""
    low, high = axis.get_ylim()
    gap = (high - low) * 0.055
    heights: list[float] = []
    for _, _, y, _ in sorted(ends, key=lambda end: end[2]):
        heights.append(max(y, heights[-1] + gap) if heights else y)
    surplus = max(0.0, heights[-1] - high) if heights else 0.0
    right = max((x for _, x, _, _ in ends), default=0)
    for (text, x, y, colour), height in zip(sorted(ends, key=lambda end: end[2]), heights, strict=True):
        axis.annotate(
            text, (x, y), (right + 0.02 * (axis.get_xlim()[1] - axis.get_xlim()[0]), height - surplus), color=colour,
            fontsize=9, fontweight="bold", va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def read_curves(run: Path) -> dict[str, dict[int, float]]:
    """Read the curves of a run from its TensorBoard files: name -> step -> value.

    Of a step that was trained again after an interruption, the later value counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    curves: dict[str, dict[int, float]] = {}
    for file in sorted(path for path in (run / "tensorboard").glob("events*") if path.is_file()):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            curves.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return curves


def new_figure(panels: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with panels beside one another, which share the horizontal axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2 * panels, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, sharex=True, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    return figure, axes


def plot_style() -> AbstractContextManager[None]:
    """Return a context in which figures are drawn and written: installed fonts, and the same bytes each time."""
    from matplotlib import rc_context

    return rc_context({"font.family": find_fonts(), "axes.titlesize": 11, "svg.hashsalt": "dpo_lightning"})


def choose_colours(settings: Sequence[Setting]) -> dict[str, Any]:
    """Return a colour for each setting by the value of its first key: an ordered scale for numbers, else distinct."""
    from matplotlib import colormaps

    firsts = {s.label: next(iter(s.overrides.values()), "") for s in settings}
    values = list(dict.fromkeys(firsts.values()))
    if len(values) > 2 and all(isinstance(parse_value(text), float) for text in values):
        values.sort(key=parse_value)
        scale = colormaps["viridis"]
        found: dict[str, Any] = {text: scale(0.78 * place / (len(values) - 1)) for place, text in enumerate(values)}
    else:
        found = {text: DISTINCT[place % len(DISTINCT)] for place, text in enumerate(values)}
    return {name: found[text] for name, text in firsts.items()}


def choose_shapes(settings: Sequence[Setting]) -> dict[str, str]:
    """Return a mark's shape for each setting by the values of all keys but the first."""
    others = {s.label: tuple(list(s.overrides.values())[1:]) for s in settings}
    values = list(dict.fromkeys(others.values()))
    return {name: MARKERS[values.index(rest) % len(MARKERS)] for name, rest in others.items()}


def to_bytes(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file's content, `png` or `svg`; the same figure gives the same bytes."""
    content = BytesIO()
    figure.savefig(content, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def to_data_uri(svg: bytes) -> str:
    """Return an SVG as the source of an image on a page that loads nothing."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
