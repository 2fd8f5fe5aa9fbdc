"""Log-probabilities of a run's rows outside of training: same precision and layout as in training, no dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lightning.data.collate import Collator, select_collator
from dpo_lightning.data.examples import Encoded
from dpo_lightning.data.row_sizes import RowSizes
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.logps import token_logps
from dpo_lightning.models.attention_backend import takes_trees
from dpo_lightning.models.forward_checks import check_left_padding, independent_length
from dpo_lightning.models.lm_head import SplitHead, causal_lm
from dpo_lightning.references.base import REFERENCE_KEY
from dpo_lightning.references.logp_store import LogpFile
from dpo_lightning.references.row_index import AnswerDigests, RowIndex, RowView, row_digests
from dpo_lightning.stopping import raise_if_any, raise_if_requested


@dataclass(frozen=True)
class ScoringContext:
    """The rows of a run, and the precision, device and processes with which it computes log-probabilities."""

    rows: Mapping[str, Sequence[Encoded]]
    """Encoded rows of `train` and `eval`, in the order that a batch's indices count."""

    data: Any
    """The `TextDataModule` of the run."""

    tokenizer: Any
    """The tokenizer of the policy."""

    precision: str
    """The value of `--trainer.precision`."""

    place: Callable[[nn.Module], nn.Module]
    """Moves a model to the device and precision of training."""

    autocast: Callable[[], AbstractContextManager[Any]]
    """The context of a forward pass in training."""

    rank: int = 0
    """Index of this process."""

    world_size: int = 1
    """Number of processes."""

    barrier: Callable[[], Any] = lambda: None
    """Waits for all processes."""

    stop: Callable[[str], None] = raise_if_requested
    """Raises in every process if one of them is to stop; it is given what was saved."""

    @classmethod
    def of(cls, trainer: Any, tokenizer: Any) -> ScoringContext:
        """The context of a `Trainer` whose data module has encoded its rows.

        Raises:
            UserError: the trainer has no data module.
        """
        data = getattr(trainer, "datamodule", None)
        if data is None:
            data_module = trainer.lightning_module.data_module.__name__
            raise UserError(
                ExitCode.CONFIG,
                Problem("Precomputed needs the rows of a data module, and the trainer has none", "data"),
                fix=f"trainer.fit(module, datamodule={data_module}(...)), or another reference",
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
            partial(raise_if_any, strategy),
        )

    def collator(self, model: nn.Module) -> Collator:
        """The collator of the data module if the model takes its batches, or a default."""
        collator = select_collator(self.data.given_collator, takes_trees=takes_trees(causal_lm(model)))
        check_left_padding(model, collator)
        return collator

    def batches(self, rows: Sequence[Encoded], collator: Collator) -> list[list[int]]:
        """Divide rows, in their order, into batches of as many rows or tokens as in training; lists of indices."""
        return list(self.data.order(rows, collator))


class PassPlan(NamedTuple):
    """What a process computes.

    Attributes:
        distinct: number of distinct rows of the run.
        rows: the rows that are not in the file, longest first.
        batches: this process's share of them, lists of indices of `rows`; without those in the file's parts.
        answers: the answers of the run.
        known: whether each distinct answer has a value.
    """

    distinct: int
    rows: RowView
    batches: list[list[int]]
    answers: RowIndex
    known: np.ndarray

    def claim_answers(self, batch: list[int]) -> list[bytes]:
        """Return the digests of a batch's answers that have no value yet, and count them as known from now on."""
        own = self.answers.answers_of(self.rows.numbers[batch])
        new = own[~self.known[own]]
        self.known[new] = True
        return [key.tobytes() for key in self.answers.keys[new]]


def plan_pass(
    logp_file: LogpFile,
    digests: Mapping[str, AnswerDigests],
    run: ScoringContext,
    collator: Collator,
    share: tuple[int, int],
) -> PassPlan | None:
    """Divide the rows that are not in a file into batches; None where this process has nothing to compute.

    Args:
        logp_file: the file and its parts.
        digests: those of `run.rows`.
        run: the rows, and how they are divided into batches.
        collator: the layout of the batches.
        share: index and number of processes among which the batches are divided.
    """
    whole, parts = logp_file.load()
    if all((whole.find(own.digests) >= 0).all() for own in digests.values()):
        return None
    index = RowIndex(run.rows, digests)
    every, known = index.order(), index.contained([whole])
    rows = every.choose(index.lacking(every.numbers, known))
    # Shares and batches depend on the file alone, not on its parts: a resumed pass makes the same batches.
    batches = run.batches(rows, collator)[share[0] :: share[1]]
    known |= index.contained(parts)
    lacking = index.lacking(rows.numbers, known)
    batches = [left for batch in batches if (left := [place for place in batch if lacking[place]])]
    return PassPlan(len(every), rows, batches, index, known) if batches else None


def score_rows(
    model: nn.Module,
    head: SplitHead | None,
    collator: Collator,
    rows: Sequence[Encoded],
    run: ScoringContext,
) -> dict[bytes, Tensor]:
    """Log-probabilities of every scored token of some rows, float32 on the CPU, by the digest of the answer.

    Raises:
        UserError: a log-probability is not finite.
    """
    batch = collator.collate(rows, range(len(rows))).to(causal_lm(model).device)
    with run.autocast():
        tokens = token_logps(model, batch, head)
    lengths = torch.bincount(tokens.sequence_ids, minlength=batch.num_sequences)
    values = tokens.values.float().cpu().split(lengths.tolist())
    owners = batch.owners.tolist()
    for (row, _), own in zip(owners, values, strict=True):
        if not own.isfinite().all():
            raise UserError(
                ExitCode.MODEL,
                Problem("a reference log-probability is not finite", str(rows[row].origin)),
                fix="use --trainer.precision 32-true, or a model whose weights are finite",
            )
    digests = [row_digests(row) for row in rows]
    return {digests[row][place]: own for (row, place), own in zip(owners, values, strict=True)}


def check_independence(config: Any, run: ScoringContext) -> None:
    """Refuse rows so long that log-probabilities depend on the other rows of a batch, which differ in training.

    Raises:
        UserError: there is such a row, for models whose position encoding depends on the longest row.
    """
    length, cause = independent_length(config) or (0, "")
    if not length:
        return
    longest, origin = 0, ""
    for rows in run.rows.values():
        lengths = RowSizes.of(rows).lengths
        if lengths.max(initial=0) > longest:
            longest, origin = int(lengths.max()), str(rows[int(lengths.argmax())].origin)
    if longest <= length:
        return
    what = (
        f"a row has {longest:,} tokens; beyond {length:,}, log-probabilities depend on the longest row of their "
        f"batch ({config.model_type}: {cause}), and a file is computed in other batches"
    )
    fix = f"--data.max_length {length}, or a live reference: --{REFERENCE_KEY} FrozenCopy (or leave it out)"
    raise UserError(ExitCode.CONFIG, Problem(what, REFERENCE_KEY, origin), fix=fix)
