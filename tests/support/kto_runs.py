"""Whole runs of KTO and its kin on tiny models, by one process or two, and the same in plain PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD

from dpo_lightning import KTOModule, UnpairedDataModule
from dpo_lightning.losses import APOZeroUnpairedLoss, BCOLoss, KTOLoss
from dpo_lightning.models.causal_lm import CausalLM
from support import whole_runs

KTO = KTOLoss(0.3, desirable_weight=1.5, undesirable_weight=0.5)
"""With weights that differ, so that kinds that are mixed up show."""

RATE = 0.3
"""Steps of these losses are small: their slope is at most a quarter of beta."""


def labelled_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Answers of very unequal lengths to as many prompts, two good ones, then two bad ones, and so on."""
    rows = whole_runs.preference_rows(count, first)
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}
        for i, row in enumerate(rows)
        for good in (i % 4 < 2,)
    ]


def files(folder: Path, train: int = 9, held_out: int = 5) -> list[str]:
    """Training and held-out rows."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        whole_runs.write_rows(folder, name, labelled_rows(count, first))
        for name, count, first in (("train", train, 0), ("eval", held_out, 50))
    ]


def kto(model: Any, loss: Any = KTO, **options: Any) -> KTOModule:
    """A run on a model folder by plain SGD: AdamW and clipping would hide a gradient of the wrong size."""
    defaults = {"policy": CausalLM(str(model)), "loss": loss, "learning_rate": RATE, "optimizer": SGD}
    return KTOModule(**{**defaults, **options})


def train(model: Any, folder: Path, loss: Any, size: int = 2, accumulate: int = 1, **options: Any) -> Any:
    """Train on rows in the order of the file; module, what was logged, and the data."""
    data_options = {name: options.pop(name) for name in ("collator", "shuffle") if name in options}
    rows = files(folder, options.pop("rows", 9))
    data = UnpairedDataModule(*rows, batch_size=size, max_length=64, **{"shuffle": False, **data_options})
    module = kto(model, loss, **options.pop("module_options", {}))
    memory, trainer = whole_runs.fit(module, data, folder, accumulate_grad_batches=accumulate, **options)
    return module, memory, data, trainer


def odd_run(loss: Any, model: Any, folder: Path, ranks: int) -> dict[str, Any]:
    """Two epochs of 9 rows, shuffled, 4 a step: for two ranks, micro-batches of one row, one kind, and fillers."""
    options = {"devices": ranks, "strategy": "ddp" if ranks > 1 else "auto", "max_epochs": 2, "shuffle": True}
    module, memory, _, _ = train(model, folder, loss, 2 // ranks, 2, **options)
    mean = loss.state.value.clone() if loss.state is not None else torch.zeros(())
    return {"weights": whole_runs.weights(module), "logged": memory.steps, "mean": mean}


def assert_same_weights(one: Any, other: Any, start: Any, moved: float = 1e-3) -> None:
    """Equal within float32's rounding, after steps that moved them a hundred times as far."""
    assert one.keys() == other.keys() == start.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=3e-6)
    assert max(float((value - start[name]).abs().max()) for name, value in one.items()) > moved


def losses() -> dict[str, Any]:
    """The family, each with a state of its own."""
    return {"kto": KTO, "apo": APOZeroUnpairedLoss(0.3, 1.5, 0.5), "bco": BCOLoss(0.3)}


def plain_run(model: Any, rows: Sequence[Any], loss: str, size: int, window: int) -> Any:
    """Losses and weights of a plain loop over single sequences, in micro-batches of `size`, `window` rows a step."""
    from transformers import AutoModelForCausalLM

    policy, reference = (AutoModelForCausalLM.from_pretrained(model).eval() for _ in range(2))
    stepper, means, delta, seen = SGD(policy.parameters(), lr=RATE), [], 0.0, []

    def ratio(row: Any, answer: Any) -> torch.Tensor:
        with torch.no_grad():
            start = whole_runs.plain_logps(reference, row.prompt_ids, answer.ids).sum()
        return whole_runs.plain_logps(policy, row.prompt_ids, answer.ids).sum() - start

    for first in range(0, len(rows), window):
        step = []
        for start in range(first, min(first + window, len(rows)), size):
            part = rows[start : min(start + size, first + window)]
            z = 0.0
            if loss == "kto":
                z = max(0.0, sum(float(ratio(row, row.mismatched).detach()) for row in part) / len(part))
            for row in part:
                reward = 0.3 * ratio(row, row.completion)
                seen.append(float(reward.detach()))
                sign = 1 if row.good else -1
                score = sign * (reward - (delta if loss == "bco" else 0.3 * z))
                weight = 1.0 if loss == "bco" else 1.5 if row.good else 0.5
                step.append(-score.sigmoid().log() if loss == "bco" else weight * (1 - score.sigmoid()))
        mean = sum(step) / len(step)
        stepper.zero_grad()
        mean.backward()
        stepper.step()
        delta = sum(seen) / len(seen)
        means.append(mean.item())
    return means, dict(policy.named_parameters())


def main(model: str, folder: str, rank: str) -> None:
    """One of two ranks."""
    torch.set_num_threads(1)
    results = {name: odd_run(loss, model, Path(folder) / rank / name, ranks=2) for name, loss in losses().items()}
    if rank == "0":
        torch.save(results, Path(folder) / "two.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
