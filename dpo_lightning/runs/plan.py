"""The plan of a run, logged before it begins: its rows, the rows of a step, and how many steps it takes."""

from __future__ import annotations

from typing import Any

from dpo_lightning.data.samplers import describe_steps
from dpo_lightning.log import logger


def report_plan(trainer: Any, data: Any) -> None:
    """Log what a run will train on, before its model is loaded.

    Args:
        trainer: the trainer.
        data: its data module, with encoded rows.
    """
    rows, held_out = len(data.encoded["train"]), len(data.encoded.get("eval", ()))
    line, window = f"data: {rows} training rows, {held_out} held out", trainer.accumulate_grad_batches
    if held_out and trainer.limit_val_batches == 0:
        logger.info(f"note: none of the {held_out} held-out rows is evaluated: trainer.limit_val_batches is 0")
    if data.max_tokens:  # the data module reports the steps once the layout is chosen
        window *= trainer.world_size
        logger.info(f"{line}; max_tokens={data.max_tokens} a batch in place of batch_size, {window} batches a step")
        return
    each = data.batch_size * trainer.world_size
    logger.info(f"{line}; {each * window} rows a step, {describe_steps(trainer, -(-rows // each))}")
