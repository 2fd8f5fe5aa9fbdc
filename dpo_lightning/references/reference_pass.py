"""How a run scores its rows outside of training: the same model, precision and layout, without dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dpo_lightning.data.collate import Collator, layout_for
from dpo_lightning.data.examples import EncodedPair, EncodedUnpaired
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.logps import token_logps
from dpo_lightning.models.attention import takes_trees
from dpo_lightning.models.checks import check_layout
from dpo_lightning.models.lm_head import SplitHead, causal_lm
from dpo_lightning.models.probe import move_to_device
from dpo_lightning.references.logp_store import content_key

AnyRow: TypeAlias = EncodedPair | EncodedUnpaired
"""What a reference can be asked about."""

Keys = tuple[bytes, ...]
"""Content keys of a row's answers: chosen and rejected of a pair, the judged one and the mismatched one."""


@dataclass(frozen=True)
class Scoring:
    """The rows of a run, and how it computes."""

    rows: Mapping[str, Sequence[AnyRow]]
    """Encoded pairs of `train` and `eval`, in the order that a batch's indices count."""

    data: Any
    """The `PreferenceDataModule`."""

    tokenizer: Any
    """The policy's."""

    precision: str
    """As `--trainer.precision` has it."""

    placed: Callable[[nn.Module], nn.Module]
    """Puts a model on the device and into the precision that training has it in."""

    autocast: Callable[[], AbstractContextManager[Any]]
    """The context of a forward pass in training."""

    rank: int = 0
    """This process."""

    world_size: int = 1
    """All processes."""

    barrier: Callable[[], Any] = lambda: None
    """Waits for all processes."""

    @classmethod
    def of(cls, trainer: Any, tokenizer: Any) -> Scoring:
        """The run of a `Trainer` whose data module has encoded its rows.

        Raises:
            UserError: it has no data module.
        """
        data = getattr(trainer, "datamodule", None)
        if data is None:
            raise UserError(
                ExitCode.CONFIG,
                Problem("Precomputed looks rows up in a PreferenceDataModule, and the trainer has none", "data"),
                fix="trainer.fit(module, datamodule=PreferenceDataModule(...)), or another reference",
            )
        plugin, strategy = trainer.precision_plugin, trainer.strategy
        return cls(
            data.encoded,
            data,
            tokenizer,
            str(trainer.precision),
            lambda model: plugin.convert_module(model).to(strategy.root_device),
            plugin.forward_context,
            trainer.global_rank,
            trainer.world_size,
            strategy.barrier,
        )

    def layout(self, model: nn.Module) -> Collator:
        """How rows become batches for a model: as the data has it where the model takes that."""
        layout = layout_for(self.data.collator, takes_trees=takes_trees(causal_lm(model)))
        check_layout(model, layout)
        return layout

    def batches(self, rows: Sequence[AnyRow], layout: Collator) -> list[list[int]]:
        """Places of rows in their order, by the batch: as many rows or tokens as training has."""
        return list(self.data.order(rows, layout))


def pair_keys(row: AnyRow) -> Keys:
    """What a row is to a model."""
    return tuple(content_key(row.prompt_ids, answer) for answer in row.answers)


def scored(
    model: nn.Module,
    head: SplitHead | None,
    layout: Collator,
    rows: Sequence[AnyRow],
    run: Scoring,
) -> dict[bytes, Tensor]:
    """Log-probabilities of every scored token of some pairs, float32 on the CPU, by the content of the answer.

    Raises:
        UserError: one of them is no number.
    """
    batch = move_to_device(run.data.lay_out(layout, list(zip(rows, range(len(rows)), strict=True))), model)
    with run.autocast():
        tokens = token_logps(model, batch, head)
    lengths = torch.bincount(tokens.sequence_ids, minlength=batch.num_sequences)
    values = tokens.values.float().cpu().split(lengths.tolist())
    for number, own in enumerate(values):
        if not own.isfinite().all():
            raise UserError(
                ExitCode.MODEL,
                Problem("a reference log-probability is no number", str(rows[number % len(rows)].origin)),
                fix="--trainer.precision 32-true, or a sound model",
            )
    sides = zip(*(pair_keys(row) for row in rows), strict=True)  # first answers come first
    return dict(zip(chain(*sides), values, strict=True))
