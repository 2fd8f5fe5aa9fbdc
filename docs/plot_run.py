"""`python docs/plot_run.py outputs/dpo`: loss, margin and accuracy of a run, from its TensorBoard files.

The picture is written beside them as `run.png`, or to the file named as the second argument.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CURVES = {"loss": "loss", "rewards/margins": "reward margin", "rewards/accuracies": "accuracy by implicit reward"}
"""Measure -> title."""

TRAINING, HELD_OUT = "#0b6e99", "#d1691f"


def read_curves(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read the curves of a run: full name -> steps and values, those of a resumed run joined."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for file in sorted((folder / "tensorboard").glob("events*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            steps, values = curves.setdefault(name, ([], []))
            for event in events.Scalars(name):
                steps.append(event.step)
                values.append(event.value)
    return curves


def draw(curves: dict[str, tuple[list[int], list[float]]], target: Path) -> None:
    """Draw training as lines and evaluations as points, a panel for each measure."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(CURVES), figsize=(11, 3), layout="constrained")
    for axis, (name, title) in zip(axes, CURVES.items(), strict=True):
        axis.plot(*curves.get(f"train/{name}", ([], [])), color=TRAINING, linewidth=1.5, label="training steps")
        axis.plot(*curves.get(f"eval/{name}", ([], [])), "o", color=HELD_OUT, label="held-out pairs")
        axis.set(title=title, xlabel="optimizer step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draw the run that the first argument names."""
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    curves = read_curves(folder)
    if not curves:
        raise SystemExit(f"{folder}/tensorboard has no curves")
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else folder / "run.png"
    draw(curves, target)
    print(target)


if __name__ == "__main__":
    main()
