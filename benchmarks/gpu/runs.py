"""Short runs through Lightning's `Trainer`, of each kind of row."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

KINDS = {"pairs": math.log(2), "unpaired": 0.5, "ranked": math.log(6)}
"""Kind of row -> the loss of DPO, of KTO and of lists of three while the policy equals its reference."""

ROWS, BATCH = 24, 4


def write_rows(path: Path, kind: str, words: int = 512) -> Path:
    """Write rows of random words as JSON lines."""
    draw = torch.Generator().manual_seed(0)

    def text(least: int, most: int) -> str:
        length = int(torch.randint(least, most, (), generator=draw))
        return " ".join(f"w{id_}" for id_ in torch.randint(2, words, (length,), generator=draw).tolist())

    with path.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            answers = [" " + text(2, 60) for _ in range(3)]
            said = {
                "pairs": {"chosen": answers[0], "rejected": answers[1]},
                "unpaired": {"completion": answers[0], "label": number % 2 == 0},
                "ranked": {"responses": answers},
            }
            file.write(json.dumps({"prompt": text(4, 150), **said[kind]}) + "\n")
    return path


def make_run(kind: str, model: Path, rows: Path, collator: Any = None, **policy: Any) -> tuple[Any, Any]:
    """Make the module and the data module of a kind of row; `policy` holds options of `CausalLM`."""
    from dpo_lightning import DPOModule, KTOModule, ListwiseDPOModule
    from dpo_lightning.models.causal_lm import CausalLM

    modules: dict[str, Any] = {"pairs": DPOModule, "unpaired": KTOModule, "ranked": ListwiseDPOModule}
    optimizer = partial(torch.optim.AdamW, fused=True)
    module = modules[kind](CausalLM(str(model), **policy), learning_rate=1e-3, optimizer=optimizer)
    return module, module.data_module(train=str(rows), batch_size=BATCH, max_length=512, collator=collator)


def make_trainer(folder: Path, device: str, precision: str, steps: int, *callbacks: Any, **options: Any) -> Any:
    """Make a trainer that writes nothing but what its callbacks write."""
    from lightning.pytorch import Trainer

    from dpo_lightning.config.library_noise import silence_libraries

    silence_libraries()
    defaults = {
        "accelerator": device,
        "devices": 1,
        "precision": precision,
        "max_steps": steps,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 1,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(defaults | options))


def record_losses() -> tuple[Any, list[float]]:
    """Make a callback, and the list to which it adds the mean loss of every batch."""
    from lightning.pytorch import Callback

    losses: list[float] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(float(outputs["output"].losses.mean()))

    return Recorder(), losses


def train(
    kind: str, model: Path, rows: Path, folder: Path, device: str, precision: str, collator: Any, steps: int
) -> list[float]:
    """Train, with the self-check that every run has, and return the loss of each step."""
    from lightning.pytorch import seed_everything

    seed_everything(0, verbose=False)
    callback, losses = record_losses()
    module, data = make_run(kind, model, rows, collator)
    make_trainer(folder, device, precision, steps, callback).fit(module, datamodule=data)
    return losses


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
