"""`PredictionWriter`: loss, rewards and log-probabilities of every row of any kind, a JSON line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.log import logger

FILE = "predictions.jsonl"


class PredictionWriter(Callback):
    """Collect what `predict` returns and write `predictions.jsonl` into the run's folder, in the order of the rows."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the rows of an earlier `predict` call."""
        self._rows = []

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Collect the columns of each row of the batch; fillers (index -1) are left out."""
        columns = pl_module.columns(outputs.get("output"), outputs["logps"])
        for place, index in enumerate(batch.indices.tolist()):
            if index >= 0:
                self._rows.append({"index": index, **{name: values[place] for name, values in columns.items()}})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the ranks' rows and write them."""
        gathered: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(gathered, self._rows)
        else:
            gathered = [self._rows]
        if not trainer.is_global_zero:
            return
        encoded = trainer.datamodule.encoded["eval"]  # type: ignore[attr-defined]
        path = Path(trainer.default_root_dir) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(path) as file:
            for row in sorted((row for rows in gathered for row in rows), key=lambda row: row["index"]):
                origin = encoded[row["index"]].origin
                file.write(json.dumps({"file": origin.file, "line": origin.line, **row}, ensure_ascii=False) + "\n")
        logger.info(f"predictions: {path}")
