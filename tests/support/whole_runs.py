"""Whole runs of tiny models, by one process or two, and the same in plain PyTorch; a logger that remembers."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch.optim import SGD, AdamW

from dpo_lightning import (
    DPOModule,
    ListwiseDPOModule,
    PreferenceDataModule,
    RankedDataModule,
    SFTDataModule,
    SFTModule,
)
from dpo_lightning.models.causal_lm import CausalLM

LEARNING_RATE = 1e-3
SGD_RATE = 0.03
"""Large enough that a few steps move a tiny model well beyond rounding."""

PLAIN_ADAMW = partial(AdamW, weight_decay=0.0)
WORDS = re.findall(r"\w+", "the answer is 46 dollars and an island in the sea is far away from France")


def words(start: int, count: int) -> str:
    """Some words of a fixed text, from a place on."""
    return " ".join(WORDS[(start + 3 * i) % len(WORDS)] for i in range(count))


def preference_rows(count: int, first: int = 0) -> list[dict[str, str]]:
    """Pairs of unequal lengths, no two alike."""
    return [
        {
            "prompt": f"Question {i}: {words(i, 2 + i % 4)}?",
            "chosen": " " + words(2 * i, 1 + 3 * i % 7) + ".",
            "rejected": " " + words(5 * i + 1, 2 + 5 * i % 6) + "!",
        }
        for i in range(first, first + count)
    ]


WEIGHTS = [1.0, 0.5, 2.0, 0.0, 1.5]


def sft_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Demonstrations whose completions have very unequal lengths and count unequally, one of five not at all."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "weight": WEIGHTS[i % len(WEIGHTS)]}
        for i, row in enumerate(preference_rows(count, first), first)
    ]


def ranked_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Lists of two to four answers of unequal lengths, no two alike."""
    return [
        {
            "prompt": f"Question {i}: {words(i, 2 + i % 4)}?",
            "responses": [" " + words(k + 2 * i, 1 + (k + 3 * i) % 6) + ".!?;"[k] for k in range(2 + i % 3)],
        }
        for i in range(first, first + count)
    ]


def write_rows(folder: Path, name: str, rows: Sequence[Any]) -> str:
    """Rows as a JSON lines file."""
    path = Path(folder) / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Memory(Logger):
    """A logger that keeps what it is given."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.steps.setdefault(step or 0, {}).update({name: float(value) for name, value in metrics.items()})

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        """Nothing to keep."""

    def curve(self, name: str) -> list[float]:
        """The values that were logged under a name, in the order of steps."""
        return [metrics[name] for _, metrics in sorted(self.steps.items()) if name in metrics]


def dpo(model: Any, **options: Any) -> DPOModule:
    """A DPO run on a model folder, with AdamW without weight decay."""
    defaults = {"policy": CausalLM(str(model)), "learning_rate": LEARNING_RATE, "optimizer": PLAIN_ADAMW}
    return DPOModule(**{**defaults, **options})


def sft(model: Any, **options: Any) -> SFTModule:
    """An SFT run on a model folder."""
    defaults = {"policy": CausalLM(str(model)), "learning_rate": LEARNING_RATE, "optimizer": PLAIN_ADAMW}
    return SFTModule(**{**defaults, **options})


def listwise(model: Any, **options: Any) -> ListwiseDPOModule:
    """A run on ranked lists."""
    defaults = {"policy": CausalLM(str(model)), "learning_rate": LEARNING_RATE, "optimizer": PLAIN_ADAMW}
    return ListwiseDPOModule(**{**defaults, **options})


KINDS = {
    "dpo": (dpo, PreferenceDataModule, preference_rows),
    "listwise": (listwise, RankedDataModule, ranked_rows),
    "sft": (sft, SFTDataModule, sft_rows),
}
"""Module, data module and rows of each kind of run."""


def fit(
    module: LightningModule, data: Any, folder: Any, ckpt_path: Path | None = None, **options: Any
) -> tuple[Memory, Trainer]:
    """Train; what was logged at every optimizer step, and the trainer."""
    memory = Memory()
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        trainer = Trainer(default_root_dir=str(folder), logger=memory, **{**defaults, **options})
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return memory, trainer


def weights(module: Any) -> dict[str, torch.Tensor]:
    """A copy of a policy's weights."""
    return {name: value.detach().clone() for name, value in module.policy.named_parameters()}


def plain_logps(model: Any, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> torch.Tensor:
    """The log-probability of each of an answer's tokens, by a full log-softmax over one unpadded sequence."""
    ids = torch.tensor([[*prompt_ids, *answer_ids]])
    logps = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    return logps.gather(1, ids[0, len(prompt_ids) :, None]).squeeze(1)


def plain_pair(policy: Any, reference: Any, row: Any) -> dict[str, Any]:
    """The summed log-ratios `a` and `r` of a pair and its numbers of tokens `nw` and `nl`."""
    chosen, rejected = (plain_logps(policy, row.prompt_ids, answer.ids).sum() for answer in row.answers)
    with torch.no_grad():
        start = [plain_logps(reference, row.prompt_ids, answer.ids).sum() for answer in row.answers]
    return {"a": chosen - start[0], "r": rejected - start[1], "nw": len(row.chosen.ids), "nl": len(row.rejected.ids)}


def plain_run(
    model: Any,
    encoded: Sequence[Any],
    loss: Any,
    window: int,
    optimizer: Any,
    clip: float | None = None,
    epochs: int = 1,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a plain loop; `loss(policy, reference, row)` gives a row's sum and its weight."""
    from transformers import AutoModelForCausalLM

    policy, reference = (AutoModelForCausalLM.from_pretrained(model).eval() for _ in range(2))
    stepper, means = optimizer(policy.parameters()), []
    for start in [*range(0, len(encoded), window)] * epochs:
        sums, counts = zip(*(loss(policy, reference, row) for row in encoded[start : start + window]), strict=True)
        mean = sum(sums) / sum(counts)
        stepper.zero_grad()
        mean.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(policy.parameters(), clip)
        stepper.step()
        means.append(mean.item())
    return means, dict(policy.named_parameters())


def odd_run(kind: str, model: Any, folder: Path, ranks: int) -> dict[str, Any]:
    """Train on 9 rows and evaluate on 5, 4 rows a step: a short last window and, for two ranks, fillers in both."""
    make, data, rows = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    files = [write_rows(folder, name, rows(count, first)) for name, count, first in (("train", 9, 0), ("eval", 5, 50))]
    # Plain SGD and no clipping: both would hide a gradient of the wrong size.
    module = make(model, optimizer=SGD, learning_rate=SGD_RATE)
    memory, _ = fit(
        module,
        data(*files, batch_size=2 // ranks, max_length=64),
        folder,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        accumulate_grad_batches=2,
        max_epochs=2,
    )
    return {"weights": weights(module), "logged": memory.steps}


def main(model: str, folder: str, rank: str) -> None:
    """One of the two ranks."""
    torch.set_num_threads(1)
    results = {kind: odd_run(kind, model, Path(folder) / rank, ranks=2) for kind in KINDS}
    if rank == "0":
        torch.save(results, Path(folder) / "two.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
