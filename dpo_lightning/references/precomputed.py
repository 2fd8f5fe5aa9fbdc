"""`Precomputed`: a reference whose log-probabilities are computed once, kept in a file, and looked up from then on."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpo_lightning.batches import Batch
from dpo_lightning.data.examples import Encoded
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.folder_checks import looks_like_hub_id
from dpo_lightning.models.lm_head import find_head
from dpo_lightning.models.probe import HALF_TOLERANCE, evaluation_mode
from dpo_lightning.references.adapter_disabled import (
    START_ROUNDING,
    describe_distance,
    distance_from_start,
    has_new_adapter,
    without_adapter,
)
from dpo_lightning.references.base import REFERENCE_KEY, ReferencePolicy, check_same_tokenizer
from dpo_lightning.references.logp_store import KEY, LogpFile, TokenTable, ends, read
from dpo_lightning.references.provenance import DIGEST_CHARS, Provenance
from dpo_lightning.references.reference_pass import Digests, ScoringContext, check_independence, row_digests, scored
from dpo_lightning.types import SequenceLogps, Statistic

FOLDER = Path("outputs/reference")
"""Where files lie for which no path was given, each under its digest: runs that need the same one share it."""

FLUSH_SECONDS = 30.0
"""Seconds after which progress is logged and what was computed is kept, so that a killed pass goes on from there."""

TOLERANCE = 1e-5
"""Nats per scored token, and part of a sum, by which batches of another shape differ in float32."""

HALF_NOTE = "in half precision, sums of other batches differ by up to about 1 nat"

FULL = ("32", "32-true", "64", "64-true")


class Answers(NamedTuple):
    """What the file has of a set of rows, row after row and answer after answer.

    Attributes:
        first: the place of each row's first answer, `[row]`.
        sums: log-probability of each answer in nats, `[answer]`.
        lengths: its scored tokens, `[answer]`.
        starts: where the values of its tokens begin among all values, `[answer]`.
    """

    first: Tensor
    sums: Tensor
    lengths: Tensor
    starts: Tensor


class Precomputed(ReferencePolicy):
    """Log-probabilities out of a file: no second model is held, and none is asked while training.

    What the file lacks is computed before the first step and added to it. The file is bound to the digests of all that
    moves a log-probability, and holds answers by their content: order, batches, layout and ranks are free.
    """

    def __init__(self, path: str | None = None, model: str | None = None) -> None:
        """Choose the file and the reference.

        Args:
            path: the file; left out, it lies in `outputs/reference/` under its digest, shared by all runs that fit it.
            model: a model or adapter folder or a hub id to compare with; the policy's own start where it is left out.
        """
        super().__init__()
        self.path, self.model = path, model
        self.share: tuple[int, int] | None = None
        """Number and count of shares where only one of them is to be computed: nothing is merged or looked up then."""
        self.policy_moved = False
        """Whether the policy may have left its start, and can no longer tell what the reference would say."""
        self._rows: dict[str, Sequence[Encoded]] = {}
        # Plain attributes: as buffers, they would change their precision with the policy and be sent around by DDP.
        self._answers: dict[str, Answers] = {}
        self._values = torch.zeros(0)
        self._below = False

    @property
    def equals_start(self) -> bool:
        """Only where no other model was named."""
        return self.model is None

    @property
    def has_model(self) -> bool:
        """Only below a new adapter, whose base is there all the time."""
        return self._below

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Remember where the policy came from; `look_up` does the rest, once the rows are known."""
        self._builder = builder
        self._below = self.model is None and has_new_adapter(policy, builder)
        off = distance_from_start(policy) if self._below else 0.0
        if not off <= START_ROUNDING:
            raise UserError(
                ExitCode.CONFIG,
                Problem(
                    f"no folder holds the policy's start, to which a file could be bound: {describe_distance(off)}",
                    REFERENCE_KEY,
                ),
                fix="--model.reference FrozenAdapter",
            )

    def check_identity(self, policy: nn.Module, checkpoint: Mapping[str, Any]) -> None:
        """Compare, and know from then on that the policy has moved."""
        super().check_identity(policy, checkpoint)
        self.policy_moved = True

    @contextmanager
    def as_model(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The policy, its new adapter off; there is no other model to ask."""
        if not self.has_model:
            raise UserError(
                ExitCode.CONFIG,
                Problem("a precomputed reference has log-probabilities and no model", "model.reference"),
                fix="--model.reference FrozenCopy",
            )
        with without_adapter(policy):
            yield policy

    def forward(
        self, policy: nn.Module, batch: Batch, rows: str = "train", statistics: Collection[Statistic] = ()
    ) -> SequenceLogps:
        """Sums and lengths of the batch's sequences, without asking the host; tokens where they are wanted.

        A batch that does not hold the rows that its indices tell has another length: its sums are no numbers.
        """
        self.policy_moved |= rows == "train"
        device = batch.indices.device
        if self._answers[rows].sums.device != device:
            self._answers[rows] = Answers._make(part.to(device) for part in self._answers[rows])
        answers, (row, place) = self._answers[rows], batch.owners.unbind(1)
        index = batch.indices[row]
        at = (answers.first[index.clamp(min=0)] + place).clamp(max=len(answers.sums) - 1)
        sums, lengths = answers.sums[at], answers.lengths[at]
        counted = torch.zeros_like(lengths).index_add(
            0, batch.sequence_ids, torch.ones_like(batch.targets, dtype=lengths.dtype)
        )
        strange = (counted != lengths) & (index >= 0)
        found = SequenceLogps(sums.masked_fill(strange, torch.nan), lengths)
        if "tokens" not in statistics:
            return found
        if self._values.device != device:
            self._values = self._values.to(device)
        position = torch.arange(batch.mask.shape[1], device=device)
        within = (position < lengths[:, None]) & ~strange[:, None]
        values = self._values[torch.where(within, answers.starts[at][:, None] + position, 0)]
        return found._replace(tokens=values.masked_fill(~within, 0))

    def look_up(self, policy: nn.Module, run: ScoringContext) -> None:
        """Compute what the file lacks, and find the values of every row.

        Args:
            policy: before its first step, and before a checkpoint moves it.
            run: its rows and how it computes.

        Raises:
            UserError: the file is damaged, was computed with something else, lacks rows of a policy that has moved, or
                cannot be written.
        """
        if run.rows.keys() == self._rows.keys() and all(run.rows[name] is rows for name, rows in self._rows.items()):
            return
        check_independence((self._builder if self._gone() else self._other()).config(), run)
        with torch.device("cpu"):  # while a model is built, tensors would be made on its device
            provenance, builder = self._provenance(run), self._other()
            half = run.precision not in FULL or not builder.exact
            # Sums depend on the shape of the batch: hardly in float32, by up to about 1 nat in half precision.
            self._start_tolerance = HALF_TOLERANCE if half or self._builder.compile else TOLERANCE
            self._digest = provenance.model_digest()
            path = Path(self.path) if self.path else FOLDER / f"{provenance.digest()[:DIGEST_CHARS]}.safetensors"
            logp_file = LogpFile(path, provenance)
            keys = {name: [row_digests(row) for row in rows] for name, rows in run.rows.items()}
            todo = {own: row for name in keys for own, row in zip(keys[name], run.rows[name], strict=True)}
            number, count = self.share or (0, 1)
            self._fill(logp_file, todo, policy, run, (number * run.world_size + run.rank, count * run.world_size))
            if self.share is not None:
                return
            run.barrier()
            if run.rank == 0:  # ranks that saw the file before and after another process wrote it leave rows out
                self._fill(logp_file, todo, policy, run, (0, 1))
                logp_file.merge()
            run.barrier()
            self._keep(logp_file, keys)
            self._rows = dict(run.rows)

    def _provenance(self, run: ScoringContext) -> Provenance:
        """What the values have to come from; a reference whose folder is gone is taken from the file that is named."""
        builder = self._other()
        if self.path and Path(self.path).is_file() and self._gone():
            logger.info(f"note: {self.model} is not there: {self.path} is taken as it is")
            stored, _ = read(Path(self.path))
            digests = {name: getattr(stored, name) for name in ("weights", "architecture", "adapter")}
            return replace(Provenance.of(self._builder, run.tokenizer, run.data, run.precision), **digests)
        if self.model is not None:
            check_same_tokenizer(self._builder, builder, "model")
        return Provenance.of(builder, run.tokenizer, run.data, run.precision)

    def _gone(self) -> bool:
        return self.model is not None and not Path(self.model).exists() and not looks_like_hub_id(self.model)

    def _other(self) -> CausalLM:
        if self.model is None:
            return self._builder
        return replace(self._builder, path=self.model, lora=None, gradient_checkpointing=False, compile=False)

    def _fill(
        self,
        logp_file: LogpFile,
        rows: Mapping[Digests, Encoded],
        policy: nn.Module,
        run: ScoringContext,
        share: tuple[int, int],
    ) -> None:
        """Compute this process's share of the rows that are nowhere yet, longest first."""
        whole, parts = logp_file.load()
        written = set(whole.keys)
        missing = (row for row in rows if not written.issuperset(row))
        ordered = sorted(missing, key=lambda row: (-rows[row].length, row))
        # Shares and batches follow from the file alone: a pass that goes on makes the batches that it would have made.
        places = run.batches([rows[row] for row in ordered], run.collator(policy))[share[0] :: share[1]]
        known = written.union(*(part.keys for part in parts))
        left = [[row for place in batch if not known.issuperset(row := ordered[place])] for batch in places]
        batches = [batch for batch in left if batch]
        if not batches:
            return
        if self.policy_moved and self.equals_start:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"{len(rows)} rows came up after the policy had moved", "model.reference", str(logp_file.path)),
                fix="python -m dpo_lightning precompute with these rows, before training",
            )
        logp_file.check_writable()
        todo = sum(map(len, batches))
        logger.info(f"reference: computing {todo} of {len(rows)} rows, once, into {logp_file.path}")
        answers: dict[bytes, Tensor] = {}
        done, kept_at = 0, time.monotonic()
        try:
            with self._asked(policy, run) as model:
                head, collator = find_head(model), run.collator(model)
                for batch in batches:
                    found = scored(model, head, collator, [rows[row] for row in batch], run)
                    answers |= {key: found[key] for key in found.keys() - known}  # an answer may be in several rows
                    known |= found.keys()
                    done += len(batch)
                    if time.monotonic() - kept_at >= FLUSH_SECONDS:
                        logp_file.add(answers)
                        answers, kept_at = {}, time.monotonic()
                        logger.info(f"reference: {done} of {todo} rows")
        finally:  # an interrupted pass keeps what it has
            logp_file.add(answers)

    @contextmanager
    def _asked(self, policy: nn.Module, run: ScoringContext) -> Iterator[nn.Module]:
        """The reference, on its device, without dropout and gradient."""
        model = policy if self.model is None else self._other().build()
        run.placed(model)
        below = without_adapter(model) if self.has_model else nullcontext()
        with below, evaluation_mode(model):
            yield model

    def _keep(self, logp_file: LogpFile, keys: Mapping[str, Sequence[Digests]]) -> None:
        """Find sums and lengths of every row's answers."""
        table, parts = logp_file.load()
        if parts:  # left by another process since
            table = TokenTable.merged([table, *parts])
        at = {key: number for number, key in enumerate(table.keys)}
        lost = sum(key not in at for rows in keys.values() for row in rows for key in row)
        if lost:
            raise UserError(
                ExitCode.INPUT_MISSING,
                Problem(f"{lost} answers are not in the file that the first process wrote", KEY, str(logp_file.path)),
                fix=f"--{KEY} on a disk that every process sees, or copy the file to each machine",
            )
        sums, lengths = table.sums()
        for name, rows in keys.items():
            places = torch.tensor([at[key] for row in rows for key in row], dtype=torch.int64)
            first = ends(torch.tensor([len(row) for row in rows], dtype=torch.int64))[:-1]
            self._answers[name] = Answers(first, sums[places], lengths[places], table.offsets[places])
        self._values = table.values
        apart = "" if self._start_tolerance == TOLERANCE else f"; {HALF_NOTE}"
        logger.info(f"reference: {sum(map(len, keys.values()))} rows from {logp_file.path}{apart}")
