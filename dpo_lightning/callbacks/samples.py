"""`Samples`: answers of policy and reference to held-out prompts, side by side in loggers that take text."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger

from dpo_lightning.activity import activity
from dpo_lightning.data.checks.normalization import read_content
from dpo_lightning.log import logger
from dpo_lightning.models.generation import answer
from dpo_lightning.sampling import Sampling
from dpo_lightning.stopping import Stopped

TAG = "eval/samples"
COLUMNS = ["prompt", "policy", "reference"]


@runtime_checkable
class TableLogger(Protocol):
    """A logger with `log_text` as Lightning's `WandbLogger` has it: text in a table."""

    def log_text(self, key: str, columns: list[str], data: list[list[str]], *, step: int) -> None:
        """Log rows of text under `key`."""


class Samples(Callback):
    """Sample an answer of policy and reference to the first held-out prompts at every validation.

    They are logged as text: a Markdown table in TensorBoard, a table in loggers that have `log_text` (W&B). Loggers of
    numbers alone, such as `CSVLogger`, get nothing; the summary prints the first prompt's answers in any case. Sharded
    models sample nothing: all ranks would have to generate the same tokens.
    """

    def __init__(self, num_prompts: int = 2, sampling: Sampling = Sampling(max_new_tokens=48)) -> None:  # noqa: B008
        """Set how much is sampled, and how.

        Args:
            num_prompts: number of held-out prompts; 0 samples nothing.
            sampling: length of an answer, temperature, top-p and seed.
        """
        self.num_prompts, self.sampling = num_prompts, sampling
        self._skipped = False
        self.drawn: list[tuple[str, str, str]] = []
        """Prompt, the policy's answer and the reference's answer of each prompt at the last validation."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Report that a sharded model samples nothing."""
        if self.num_prompts and getattr(pl_module, "mesh", None) is not None and not self._skipped:
            self._skipped = True
            logger.info("samples: none are drawn from models that are sharded over ranks")

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Sample on the first process and log, except in a sanity check."""
        data: Any = getattr(trainer, "datamodule", None)
        rows = getattr(data, "encoded", {}).get("eval", ())
        prompted = (place for place, row in enumerate(rows) if row.prompt_ids)
        places = list(islice(prompted, self.num_prompts))
        if trainer.sanity_checking or not trainer.is_global_zero or not places or self._skipped:
            return
        texts = [format_prompt(rows.read_prompt(place)) for place in places]
        try:
            self.drawn = self.draw(pl_module, texts, [rows[place].prompt_ids for place in places])
        except Stopped:  # the run stops at its next step, together with the other ranks
            return
        for given in trainer.loggers:
            if isinstance(given, TensorBoardLogger):
                with suppress(OSError):  # its next call fails as well, and is reported
                    given.experiment.add_text(TAG, format_table(self.drawn), trainer.global_step)
            elif isinstance(given, TableLogger):
                given.log_text(TAG, COLUMNS, [list(row) for row in self.drawn], step=trainer.global_step)

    @activity("sampling answers")
    def draw(self, module: Any, texts: Sequence[str], prompts: Sequence[Sequence[int]]) -> list[tuple[str, str, str]]:
        """Sample answers to prompts, given as texts and encoded as in training.

        The reference's answers are empty where it has no model: without a reference, or with a precomputed one.
        """
        stops = module.end_ids | {module.tokenizer.eos_token_id}
        policy = answer(module.policy, module.tokenizer, prompts, self.sampling, stops)
        reference = [""] * len(texts)
        if getattr(module, "reference", None) is not None and module.reference.has_model:
            with module.reference.as_model(module.policy) as model:
                reference = answer(model, module.tokenizer, prompts, self.sampling, stops)
        return list(zip(texts, policy, reference, strict=True))


def format_prompt(prompt: Any) -> str:
    """Return a plain prompt, or the text of a chat's last message."""
    return prompt if isinstance(prompt, str) else read_content(prompt[-1])


def format_table(rows: list[tuple[str, str, str]]) -> str:
    """Return a Markdown table as TensorBoard renders it."""
    cells = [COLUMNS, ["---"] * len(COLUMNS), *([escape_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def escape_cell(text: str) -> str:
    """Escape what Markdown or HTML would render, and what would end a table cell."""
    escaped = html.escape(text, quote=False).replace("|", "&#124;").replace("`", "&#96;")
    return re.sub(r"\r\n?|\n", "<br>", escaped)  # Markdown takes a bare carriage return for the end of a line
