"""`PredictionWriter`: rewards and log-probabilities of every pair, a JSON line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.log import logger
from dpo_lightning.types import GroupLogps, RankedOutput

FILE = "predictions.jsonl"


class PredictionWriter(Callback):
    """Collect what `predict` returns and write `predictions.jsonl` into the run's folder, in the order of the rows."""

    def __init__(self) -> None:
        """Start without rows."""
        self._rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier prediction."""
        self._rows = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the batch's numbers."""
        columns = self.columns(outputs)
        for place, index in enumerate(batch.indices.tolist()):
            if index >= 0:
                self._rows.append({"index": index, **{name: values[place] for name, values in columns.items()}})

    @staticmethod
    def columns(outputs: Any) -> dict[str, list[Any]]:
        """Names and values per item: of pairs, judged answers, ranked lists (a number per answer) or demonstrations."""
        logps = outputs["logps"]
        if "ranked" in outputs:
            return ranked_columns(outputs["ranked"], logps)
        if "judged" in outputs:
            output = outputs["judged"]
            columns = {
                "loss": output.losses,
                "label": logps.good,
                "reward": output.rewards,
                "logps": logps.policy,
                "reference_logps": logps.reference,
            }
        elif "preference" in outputs:
            output = outputs["preference"]
            columns = {
                "loss": output.losses,
                "chosen_reward": output.chosen_rewards,
                "rejected_reward": output.rejected_rewards,
                "margin": output.margins,
                "chosen_logps": logps.policy_chosen,
                "rejected_logps": logps.policy_rejected,
                "reference_chosen_logps": logps.reference_chosen,
                "reference_rejected_logps": logps.reference_rejected,
            }
        else:
            columns = {"logps": logps.sums, "tokens": logps.lengths}
        return {name: values.tolist() for name, values in columns.items()}

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


def ranked_columns(output: RankedOutput, logps: GroupLogps) -> dict[str, list[Any]]:
    """Names and values per list; all but the loss have a number per answer, best first."""
    listed = {"rewards": output.rewards, "logps": logps.policy, "reference_logps": logps.reference}
    cut = {
        name: [row[own].tolist() for row, own in zip(rows, output.mask, strict=True)] for name, rows in listed.items()
    }
    return {"loss": output.losses.tolist(), **cut}
