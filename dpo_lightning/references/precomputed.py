"""`Precomputed`: a reference whose log-probabilities are computed once, stored in a file, and looked up in training."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpo_lightning.activity import activity
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
from dpo_lightning.references.logp_store import LogpFile
from dpo_lightning.references.provenance import DIGEST_CHARS, Provenance
from dpo_lightning.references.reference_pass import ScoringContext, check_independence, plan_pass, score_rows
from dpo_lightning.references.row_index import AnswerDigests, list_digests
from dpo_lightning.references.stored_values import KEY, StoredValues
from dpo_lightning.references.table_file import read
from dpo_lightning.references.token_table import cumulative_ends
from dpo_lightning.stopping import requested
from dpo_lightning.types import SequenceLogps, Statistic

FOLDER = Path("outputs/reference")
"""The default folder of the files; each is named by its digest, so that runs that need the same file share it."""

FLUSH_SECONDS = 30.0
"""Seconds between progress lines and writes of what was computed; a killed pass resumes from the last write."""

TOLERANCE = 1e-5
"""Float32 difference between batch shapes: absolute in nats per scored token, and relative to a sum."""

HALF_NOTE = "in half precision, sums of other batches differ by up to about 1 nat"

FULL = ("32", "32-true", "64", "64-true")


class Answers(NamedTuple):
    """The file's values for a set of rows, ordered by row and then by answer.

    Attributes:
        first: the index of each row's first answer, `[row]`.
        sums: log-probability of each answer in nats, `[answer]`.
        lengths: number of scored tokens of each answer, `[answer]`.
        starts: offset of each answer's token values among all values, `[answer]`.
    """

    first: Tensor
    sums: Tensor
    lengths: Tensor
    starts: Tensor


class Precomputed(ReferencePolicy):
    """Looks up log-probabilities in a file, so that training needs no second model and no forward pass of one.

    Missing values are computed before the first step and added to the file. The file records digests of everything that
    a log-probability depends on, and stores answers by their content: row order, batches, layout and ranks may change.
    """

    def __init__(self, path: str | None = None, model: str | None = None) -> None:
        """Choose the file and the reference model.

        Args:
            path: the file; by default, a file in `outputs/reference/` named by its digest, which runs share.
            model: a model or adapter folder or a hub id; by default, the policy before its first step.
        """
        super().__init__()
        self.path, self.model = path, model
        self.share: tuple[int, int] | None = None
        """Index and number of shares, to compute only one of them; nothing is merged or looked up then."""
        self.policy_moved = False
        """Whether the policy may have been trained, so that it no longer computes the reference's log-probabilities."""
        self._rows: dict[str, Sequence[Encoded]] = {}
        # Plain attributes: as buffers, they would change their precision with the policy and be sent around by DDP.
        self._answers: dict[str, Answers] = {}
        self._values = StoredValues(torch.zeros(0))
        self._below = False

    @property
    def equals_start(self) -> bool:
        """True unless another model is the reference."""
        return self.model is None

    @property
    def model_path(self) -> str | None:
        """The path of the model whose log-probabilities the file has, if one is given."""
        return self.model

    @property
    def has_model(self) -> bool:
        """True for a new adapter only: the base below it is the reference model, and stays in memory."""
        return self._below

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Store how the policy was built; `look_up` computes the values once the rows are known."""
        self._builder = builder
        self._below = self.model is None and has_new_adapter(policy, builder)
        off = distance_from_start(policy) if self._below else 0.0
        if not off <= START_ROUNDING:
            what = f"Precomputed needs a start that remains with the adapter disabled, but {describe_distance(off)}"
            raise UserError(
                ExitCode.CONFIG, Problem(what, REFERENCE_KEY), fix="--model.reference FrozenAdapter, or leave it out"
            )

    def check_identity(self, policy: nn.Module, checkpoint: Mapping[str, Any]) -> None:
        """Check the identity at the start of a resumed run; from then on, the policy counts as trained."""
        super().check_identity(policy, checkpoint)
        self.policy_moved = True

    @contextmanager
    def as_model(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Yield the policy with its new adapter disabled; an error where there is none, and thus no reference model."""
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
        """Look up sums and lengths of the batch's sequences, and tokens if wanted, without synchronizing with the CPU.

        Only tokens of a large file (`ON_DEVICE_BYTES`) are read on the CPU.

        If the number of scored tokens differs from the file's, the batch does not contain the rows of its `indices`:
        the sums become NaN.
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
        position = torch.arange(batch.mask.shape[1], device=device)
        within = (position < lengths[:, None]) & ~strange[:, None]
        values = self._values.gather(torch.where(within, answers.starts[at][:, None] + position, 0))
        return found._replace(tokens=values.masked_fill(~within, 0))

    def look_up(self, policy: nn.Module, run: ScoringContext) -> None:
        """Compute the values that the file lacks, and load those of every row.

        Args:
            policy: the policy before its first step, and before the weights of a checkpoint are loaded.
            run: the rows, and how the run computes log-probabilities.

        Raises:
            UserError: the file is damaged, was computed with other inputs, cannot be written, or lacks rows although
                the policy has been trained.
        """
        if run.rows.keys() == self._rows.keys() and all(run.rows[name] is rows for name, rows in self._rows.items()):
            return
        check_independence((self._builder if self._is_missing() else self._reference_builder()).config(), run)
        with torch.device("cpu"):  # else tensors would be created on the device of the model that is being built
            provenance, builder = self._provenance(run), self._reference_builder()
            half = run.precision not in FULL or not builder.exact
            # Sums depend on the shape of the batch: hardly in float32, by up to about 1 nat in half precision.
            self._start_tolerance = HALF_TOLERANCE if half or self._builder.compile else TOLERANCE
            self._digest = provenance.model_digest()
            path = Path(self.path) if self.path else FOLDER / f"{provenance.digest()[:DIGEST_CHARS]}.safetensors"
            logp_file = LogpFile(path, provenance)
            digests = {name: list_digests(rows) for name, rows in run.rows.items()}
            number, count = self.share or (0, 1)
            self._fill(logp_file, digests, policy, run, (number * run.world_size + run.rank, count * run.world_size))
            run.stop("the reference's log-probabilities so far are kept")
            if self.share is not None:
                return
            run.barrier()
            if run.rank == 0:
                # If another process wrote to the file in between, ranks divided the rows differently and left some out.
                self._fill(logp_file, digests, policy, run, (0, 1))
                logp_file.merge()
            run.barrier()
            self._index_answers(logp_file, digests)
            self._rows = dict(run.rows)

    def _provenance(self, run: ScoringContext) -> Provenance:
        """The provenance that the file must have; if the reference's folder is missing, that of the file itself."""
        builder = self._reference_builder()
        if self.path and Path(self.path).is_file() and self._is_missing():
            logger.info(f"note: {self.model} does not exist: {self.path} is used without a comparison")
            stored, _ = read(Path(self.path))
            digests = {name: getattr(stored, name) for name in ("weights", "architecture", "adapter")}
            return replace(Provenance.of(self._builder, run.tokenizer, run.data, run.precision), **digests)
        if self.model is not None:
            check_same_tokenizer(self._builder, builder, "model")
        return Provenance.of(builder, run.tokenizer, run.data, run.precision)

    def _is_missing(self) -> bool:
        return self.model is not None and not Path(self.model).exists() and not looks_like_hub_id(self.model)

    def _reference_builder(self) -> CausalLM:
        if self.model is None:
            return self._builder
        return replace(self._builder, path=self.model, lora=None, gradient_checkpointing=False, compile=False)

    @activity("computing the reference")
    def _fill(
        self,
        logp_file: LogpFile,
        digests: Mapping[str, AnswerDigests],
        policy: nn.Module,
        run: ScoringContext,
        share: tuple[int, int],
    ) -> None:
        """Compute this process's share of the rows that are neither in the file nor in its parts, longest first."""
        plan = plan_pass(logp_file, digests, run, run.collator(policy), share)
        if plan is None:
            return
        todo = sum(map(len, plan.batches))
        if self.policy_moved and self.equals_start:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"{todo} rows are missing: the policy is trained already", REFERENCE_KEY, str(logp_file.path)),
                fix="python -m dpo_lightning precompute with the same rows, before training",
            )
        logp_file.check_writable()
        logger.info(f"reference: computing {todo} of {plan.distinct} rows, once, into {logp_file.path}")
        answers: dict[bytes, Tensor] = {}
        done, flushed_at = 0, time.monotonic()
        try:
            with self._prepare_reference(policy, run) as model:
                head, collator = find_head(model), run.collator(model)
                for batch in plan.batches:
                    found = score_rows(model, head, collator, [plan.rows[place] for place in batch], run)
                    answers |= {key: found[key] for key in plan.claim_answers(batch)}
                    done += len(batch)
                    if requested():  # what is kept is written below; all ranks stop together after it
                        break
                    if time.monotonic() - flushed_at >= FLUSH_SECONDS:
                        logp_file.add(answers)
                        answers, flushed_at = {}, time.monotonic()
                        logger.info(f"reference: {done} of {todo} rows")
        finally:  # an interrupted pass stores what it has computed
            logp_file.add(answers)

    @contextmanager
    def _prepare_reference(self, policy: nn.Module, run: ScoringContext) -> Iterator[nn.Module]:
        """Yield the reference model on its device, without dropout and gradients."""
        model = policy if self.model is None else self._reference_builder().build()
        run.place(model)
        below = without_adapter(model) if self.has_model else nullcontext()
        with below, evaluation_mode(model):
            yield model

    def _index_answers(self, logp_file: LogpFile, digests: Mapping[str, AnswerDigests]) -> None:
        """Open the file, and keep the sums, lengths and places of every row's answers."""
        table, _ = logp_file.load()  # parts are of other processes by now: the first one has merged those of this run
        places = {name: torch.from_numpy(table.find(own.digests)) for name, own in digests.items()}
        lost = sum(int((place < 0).sum()) for place in places.values())
        if lost:
            raise UserError(
                ExitCode.INPUT_MISSING,
                Problem(f"{lost} answers are not in the file that the first process wrote", KEY, str(logp_file.path)),
                fix=f"--{KEY} on a disk that every process sees, or copy the file to each machine",
            )
        sums, lengths = table.sums()
        for name, own in digests.items():
            first, at = cumulative_ends(torch.tensor(own.counts))[:-1], places[name]
            self._answers[name] = Answers(first, sums[at], lengths[at], table.offsets[at])
        self._values = table.stored
        apart = "" if self._start_tolerance == TOLERANCE else f"; {HALF_NOTE}"
        logger.info(f"reference: {sum(len(own.counts) for own in digests.values())} rows from {logp_file.path}{apart}")
