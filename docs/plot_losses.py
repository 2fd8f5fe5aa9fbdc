"""The picture of the losses: each loss and its gradient over the margin of one pair."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dpo_lightning import losses
from dpo_lightning.losses import AlphaDivergence, ForwardKL, JensenShannon
from dpo_lightning.types import PairLogps

CHOSEN_TOKENS, REJECTED_TOKENS, PER_TOKEN = 12, 8, -3.0
"""The pair of the picture: its reference gives every token this log-probability."""

MARGINS = [h / 2 for h in range(-80, 81)]
"""Where losses are drawn, in nats."""

STEEP = {"DPOLoss, ForwardKL", "DPOLoss, AlphaDivergence 0.5", "ChiPOLoss", "DiscoPOPLoss"}
"""Losses that change most near 0: drawn over a fifth of that range."""

BLUE, ORANGE = "#0b6e99", "#d1691f"


class Curve(NamedTuple):
    """A loss and its gradient at every margin."""

    margins: list[float]
    losses: list[float]
    slopes: list[float]


def make_pair(
    h: torch.Tensor, at_start: bool = False, tokens: tuple[int, int] = (CHOSEN_TOKENS, REJECTED_TOKENS)
) -> PairLogps:
    """One pair of which the chosen answer has gained half of `h` nats and the rejected one lost as much."""
    one = torch.ones(1, dtype=torch.float64)
    lengths = torch.tensor([float(n) for n in tokens], dtype=torch.float64)
    reference = PER_TOKEN * lengths
    policy = reference + torch.stack([h, -h]) / 2
    within = torch.arange(max(tokens)) < lengths[:, None]
    made = PairLogps(
        policy[:1], policy[1:], reference[:1], reference[1:], lengths[:1], lengths[1:], one, one,
        torch.where(within, (policy / lengths)[:, None], 0),
        torch.where(within, (reference / lengths)[:, None], 0),
        collisions=-2.5 * lengths,
        kl=torch.zeros(2, dtype=torch.float64),
    )  # fmt: skip
    return made.at_start() if at_start else made


def compute_curve(loss: Any, margins: list[float]) -> Curve:
    """Values and gradients at the margins, pair by pair, since some losses compare the pairs of a batch."""
    values, slopes = [], []
    for margin in margins:
        h = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
        output = loss(make_pair(h)).losses.sum()
        values.append(float(output.detach()))
        slopes.append(float(torch.autograd.grad(output, h)[0]))
    return Curve(margins, values, slopes)


def compute_curves(instances: dict[str, Any]) -> dict[str, Curve]:
    """Curves of the pairwise losses by their names, and of some of their options."""
    chosen = instances | {
        "DPOLoss, label_smoothing 0.2": losses.DPOLoss(label_smoothing=0.2),
        "IPOLoss, normalization sum": losses.IPOLoss(normalization="sum"),
        "DPOLoss, ForwardKL": losses.DPOLoss(divergence=ForwardKL()),
        "DPOLoss, JensenShannon": losses.DPOLoss(divergence=JensenShannon()),
        "DPOLoss, AlphaDivergence 0.5": losses.DPOLoss(divergence=AlphaDivergence(0.5)),
    }
    near = [h / 5 for h in MARGINS]
    return {name: compute_curve(loss, near if name in STEEP else MARGINS) for name, loss in chosen.items()}


def compute_digest(curves: dict[str, Curve]) -> str:
    """Hash of the drawn values, stored in the picture, by which a test finds a picture that is out of date."""
    text = "".join(
        f"{name}{[f'{x:.3g}' for x in (*curve.losses[::8], *curve.slopes[::8])]}" for name, curve in curves.items()
    )
    return hashlib.sha256(text.encode()).hexdigest()


def draw(curves: dict[str, Curve], target: Path) -> None:
    """Draw a panel for each loss; loss and gradient have a scale each."""
    from matplotlib.figure import Figure

    columns = 5
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns).flatten()
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        axes.axvline(0, color="#cccccc", linewidth=0.8)
        axes.plot(curve.margins, curve.losses, color=BLUE, linewidth=1.8)
        axes.plot(0, curve.losses[len(curve.margins) // 2], "o", color=BLUE, markersize=4)
        axes.set_title(name, fontsize=10)
        slope = axes.twinx()
        slope.plot(curve.margins, curve.slopes, color=ORANGE, linewidth=1.2, linestyle="--")
        slope.set_ylim(*add_space(curve.slopes))
        axes.set_ylim(*add_space(curve.losses))
        for side, colour in ((axes, BLUE), (slope, ORANGE)):
            side.tick_params(axis="y", colors=colour, labelsize=7)
            side.locator_params(axis="y", nbins=4)
            side.spines[["top"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=7)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.suptitle(
        "loss (solid, left) and its gradient (dashed, right) over h in nats; the dot is the start", fontsize=12
    )
    figure.savefig(target, dpi=80, metadata={"Description": compute_digest(curves)})


def add_space(values: list[float]) -> tuple[float, float]:
    """Limits of an axis that leave 8 % free above and below; a constant gets limits as well."""
    low, high = min(values), max(values)
    space = 0.08 * (high - low) or 0.1
    return low - space, high + space
