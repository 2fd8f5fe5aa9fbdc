"""Records of a sweep that was never run: points with measures and outcomes by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpo_lightning.intervals import Interval, wilson
from dpo_lightning.sweeps.grid import make_points
from dpo_lightning.sweeps.results import ACCURACY, KL, WIN_RATE, Record

ROWS = 40
BETAS = ("0.01", "0.05", "0.1", "0.2", "0.5")


def make_records(
    right: Mapping[str, int],
    drift: Mapping[str, float],
    seeds: Sequence[int] = (),
    wins: Mapping[str, int] | None = None,
    key: str = "model.loss.beta",
) -> list[Record]:
    """A record for each value of a key and seed.

    Args:
        right: value -> held-out rows that are ranked right: the first of `ROWS`.
        drift: value -> KL divergence; of seed n, n percent more.
        seeds: of each value.
        wins: value -> rows at which the answer is better than the reference's.
        key: that is swept.
    """
    records = []
    for point in make_points({key: list(right)}, seeds):
        value, seed = point.overrides[key], int(point.overrides.get("seed_everything", 0))
        kl = drift[value] * (1 + seed / 100)
        measures = {ACCURACY: wilson(right[value], ROWS), KL["held_out"]: Interval(kl, 0.9 * kl, 1.1 * kl)}
        if wins:
            measures[WIN_RATE] = wilson(wins[value], ROWS)
        outcomes = [float(place < right[value]) for place in range(ROWS)]
        records.append(Record(point, "done", "", measures, outcomes))
    return records
