"""Short runs of many losses by one process or two, with weights and margins in the rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD

from dpo_lightning import PreferenceDataModule
from dpo_lightning.losses import BCOPairLoss, BetaDPOLoss, CPOLoss, DPOLoss, SFTLoss, WeightedSum
from support import whole_runs
from support.loss_cases import FAMILY, NEW

ON_MICRO_BATCHES = {
    "aot",
    "aot unpaired",
    "sft, tokens",
    "cpo with likelihood",
    "mpo",
    "beta-dpo",
    "beta-dpo, nearest",
}
"""Losses that are defined on a micro-batch: two ranks and accumulation are then other losses."""

ALIKE = {
    "cdpo",
    "dpo, jensen-shannon",
    "dpo, alpha 1/2",
    "dpo, alpha 1/4",
    "ipo sum",
    "odpo, log",
    "ld-dpo 0",
    "sft, sums",
    "bco",
    "tdpo 1",
}
"""Options of classes that are there already: each run takes two seconds."""

ON_MICRO_BATCHES |= {kind.__name__ for kind in NEW if "micro-batch" in kind.__doc__}
EXACT = {name: loss for name, loss in FAMILY.items() if name not in ON_MICRO_BATCHES | ALIKE} | {
    "bco, fast": BCOPairLoss(2.0),
    "beta-dpo without its mean": BetaDPOLoss(2.0, alpha=0.0),
    "cpo by sequences": CPOLoss(normalization="sequence_mean"),
    "mpo by sequences": WeightedSum([DPOLoss(), BCOPairLoss(2.0), SFTLoss("sequence_sum")], [0.8, 0.2, 0.1]),
}
"""Those that are the same however a batch is cut, with state as well: `M0` of beta-DPO is, where its beta is not."""

WEIGHTS = [1.0, 0.5, 2.0, 0.0, 0.25, 1.0, 0.1]


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Pairs that count unequally, one of them not at all, with margins."""
    pairs = whole_runs.preference_rows(count, first)
    return [{**pair, "weight": WEIGHTS[i % len(WEIGHTS)], "margin": 0.5 + i % 3} for i, pair in enumerate(pairs)]


def run(loss: Any, model: Any, folder: Path, ranks: int = 1, batch_size: int = 4, **options: Any) -> dict[str, Any]:
    """Train on 7 rows, `batch_size` of them a step (so that a last, short step has fillers), and evaluate on 3."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        whole_runs.write_rows(folder, name, rows(count, first))
        for name, count, first in (("train", 7, 0), ("eval", 3, 50))
    ]
    accumulate = options.pop("accumulate_grad_batches", 1)
    # Plain SGD: AdamW would hide a gradient of the wrong size.
    module = whole_runs.dpo(model, loss=loss, optimizer=SGD, learning_rate=options.pop("learning_rate", 1e-3))
    data = PreferenceDataModule(*files, batch_size=batch_size // ranks // accumulate, max_length=64, shuffle=False)
    memory, trainer = whole_runs.fit(
        module,
        data,
        folder,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        accumulate_grad_batches=accumulate,
        **options,
    )
    state = {} if module.loss_state is None else {n: v.clone() for n, v in module.loss_state.state_dict().items()}
    return {"weights": whole_runs.weights(module), "logged": memory.steps, "state": state, "steps": trainer.global_step}


def main(model: str, folder: str, rank: str) -> None:
    """One of the two ranks."""
    torch.set_num_threads(1)
    results = {name: run(loss, model, Path(folder) / rank, ranks=2) for name, loss in EXACT.items()}
    if rank == "0":
        torch.save(results, Path(folder) / "two.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
