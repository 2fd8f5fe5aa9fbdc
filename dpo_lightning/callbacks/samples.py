"""`Samples`: answers of policy and reference to held-out prompts, side by side in TensorBoard."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger

from dpo_lightning.models.generation import Sampling, answer


class Samples(Callback):
    """Draw an answer of policy and reference to the first held-out prompts at every validation."""

    def __init__(self, num_prompts: int = 2, sampling: Sampling = Sampling(max_new_tokens=48)) -> None:  # noqa: B008
        """Choose how much is drawn.

        Args:
            num_prompts: held-out prompts that are answered; 0 draws nothing.
            sampling: how answers are drawn.
        """
        self.num_prompts, self.sampling = num_prompts, sampling
        self.drawn: list[tuple[str, str, str]] = []
        """Prompt, the policy's answer and the reference's, of the last validation."""

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Draw and log."""
        data: Any = getattr(trainer, "datamodule", None)
        rows = [row for row in getattr(data, "encoded", {}).get("eval", []) if row.prompt_ids][: self.num_prompts]
        if trainer.sanity_checking or not trainer.is_global_zero or not rows:
            return
        self.drawn = self.draw(pl_module, rows, {example.origin: example for example in data.examples["eval"]})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("eval/samples", as_table(self.drawn), trainer.global_step)

    def draw(self, module: Any, rows: Sequence[Any], examples: Mapping[Any, Any]) -> list[tuple[str, str, str]]:
        """Answers to the rows' prompts as training has them; without a reference to ask, its column is empty."""
        prompts = [row.prompt_ids for row in rows]
        texts = [shown(examples[row.origin].prompt) for row in rows]
        stops = module.end_ids | {module.tokenizer.eos_token_id}
        policy = answer(module.policy, module.tokenizer, prompts, self.sampling, stops)
        reference = [""] * len(texts)
        if getattr(module, "reference", None) is not None and module.reference.has_model:
            with module.reference.as_model(module.policy) as model:
                reference = answer(model, module.tokenizer, prompts, self.sampling, stops)
        return list(zip(texts, policy, reference, strict=True))


def shown(prompt: Any) -> str:
    """The last message of a prompt, or the prompt."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")


def as_table(rows: list[tuple[str, str, str]]) -> str:
    """A Markdown table, which TensorBoard renders."""
    lines = ["| prompt | policy | reference |", "|---|---|---|"]
    lines += ["| " + " | ".join(cell(text) for text in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text that is shown as it is and stays inside its table cell."""
    return html.escape(text, quote=False).replace("|", "&#124;").replace("`", "&#96;").replace("\n", "<br>")
