"""`SelfCheck`: checks of the first batch of a new run, before time is spent on training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from dpo_lightning.attention.flex import eager_layers
from dpo_lightning.batches import Batch
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.models.probe import list_generators
from dpo_lightning.types import PairLogps, PreferenceOutput, RankedLogps, RankedOutput, UnpairedLogps, UnpairedOutput

LOSS_TOLERANCE = 1e-6
PRECOMPUTED_LOSS_TOLERANCE = 1e-4
"""In float32. In half precision the log-probabilities depend too much on a batch's shape to check the loss."""


class SelfCheck(Callback):
    """Check starting loss, margins, BOS, EOS, prompts and scored tokens of the first batch.

    A reference that has a model runs on the policy's batch, in the same layout and kernels, so their log-probabilities
    agree exactly, in bf16 as well. A precomputed reference ran on other batches: its log-probabilities have to agree
    within a tolerance, also for the longest and the shortest row in one batch.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Switch the check on or off.

        Args:
            enabled: False leaves it out.
        """
        self.enabled = enabled
        self._done = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Report where the check does not apply; check a precomputed reference on the longest row."""
        resumed = trainer.global_step > 0 or trainer.ckpt_path is not None
        if not self.enabled or resumed:
            logger.info(f"self-check: left out ({'the run goes on' if resumed else 'switched off'})")
            self._done = True
            return
        data = getattr(trainer, "datamodule", None)
        rows = getattr(data, "encoded", {}).get("train")
        if rows and pl_module.reference.start_tolerance and pl_module.reference.equals_start:
            self._check_longest(trainer, pl_module, data, rows)

    def _check_longest(self, trainer: Trainer, module: Any, data: Any, rows: Sequence[Any]) -> None:
        """Check the longest and the shortest row in one batch, where a row's numbers depend most on the other rows."""
        order = sorted(range(len(rows)), key=lambda index: rows[index].length)
        longest, shortest = order[-1], order[0]
        items = [(rows[index], index) for index in (longest, shortest)]
        with (
            torch.no_grad(),
            trainer.precision_plugin.forward_context(),
            eager_layers(),
            torch.random.fork_rng(list_generators(module)),
        ):
            output, logps = module.compare(data.collator(items).to(module.device))
        problems = list(self.check_start(output, logps, module.loss, module.reference.start_tolerance))
        if problems:
            where = f"{rows[longest].origin} and {rows[shortest].origin} in one batch"
            raise UserError(
                ExitCode.MODEL,
                [replace(problem, where=where) for problem in problems],
                fix="--model.reference FrozenCopy (or leave it out): the model's numbers depend on the rows of a batch",
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the first batch, which ran before the first optimizer step."""
        if self._done:
            return
        self._done = True
        rows = getattr(getattr(trainer, "datamodule", None), "encoded", {}).get("train")
        problems = list(self.check_tokens(batch, pl_module, rows))
        if problems:
            raise UserError(
                ExitCode.DATA, problems, fix="correct the chat template (--data.chat_template FILE) or the rows"
            )
        if not pl_module.reference.equals_start:
            reason = "the loss has no reference" if pl_module.loss.reference_free else "another model is the reference"
            logger.info(f"self-check: tokens are sound; the starting loss is left out ({reason})")
            return
        real = batch.indices >= 0
        if not real.any():  # this rank has no rows in the first batch
            return
        if not outputs["output"].losses[real].isfinite().all():  # `NonFinite` names the rows, or drops the step
            self._done = False
            return
        output, logps = outputs["output"], outputs["logps"].select(real)
        output = output._make(part[real] for part in output)
        nearness = pl_module.reference.start_tolerance
        problems = list(self.check_start(output, logps, pl_module.loss, nearness))
        if problems:
            raise UserError(
                ExitCode.MODEL,
                problems,
                fix="policy and reference must be one function at the start: look for dropout, noise or state in the "
                "model's forward pass, or a reference in another precision",
            )
        start = float(output.losses.mean())
        margins = f"margins within {float(logps.margins.abs().max()):.2g} nats" if nearness else "margins 0"
        logger.info(f"self-check: passed (starting loss {start:.6f}, {margins}, tokens sound)")

    @staticmethod
    def check_start(
        output: PreferenceOutput | UnpairedOutput | RankedOutput,
        logps: PairLogps | UnpairedLogps | RankedLogps,
        loss: Any,
        nearness: float = 0.0,
    ) -> Iterator[Problem]:
        """Yield a problem for each of: a loss other than that of equal log-probabilities, a margin other than 0.

        Args:
            output: what the loss returned for the first batch.
            logps: the log-probabilities that it was given.
            loss: the loss.
            nearness: tolerance of log-probabilities, absolute per scored token and relative to the sum; 0 is exact.
        """
        equal = loss(logps.at_start())
        off = float((output.losses - equal.losses).abs().max())
        tolerance = LOSS_TOLERANCE
        if nearness:
            tolerance = PRECOMPUTED_LOSS_TOLERANCE if nearness <= PRECOMPUTED_LOSS_TOLERANCE else math.inf
        if not off <= tolerance * max(1.0, float(equal.losses.abs().max())):
            yield Problem(
                f"the starting loss is {float(output.losses.mean()):.6f}, equal log-probabilities give "
                f"{float(equal.losses.mean()):.6f}",
                "self-check",
            )
        if nearness:
            logratios, sums, lengths = logps.each
            apart = logratios.abs()
            if not (apart <= nearness * (sums.abs() + lengths)).all():
                yield Problem(
                    f"log-probabilities are up to {float(apart.max()):.3g} nats from the reference's at the start",
                    "self-check",
                )
            return
        margin = float(output.margins.abs().max())
        if margin != 0:  # also true for NaN
            yield Problem(f"a margin is {margin:.3g} before the first step and not 0", "self-check")

    @staticmethod
    def check_tokens(batch: Batch, module: Any, rows: Any) -> Iterator[Problem]:
        """Yield what is wrong with BOS, EOS, prompt or scored tokens of any sequence of a batch."""
        stops = module.end_ids | {module.tokenizer.eos_token_id}
        bos = module.tokenizer.bos_token_id
        prompts: dict[int, set[tuple[int, ...]]] = {}
        for (row, place), (ids, targets) in zip(batch.owners.tolist(), sequences(batch), strict=True):
            index = int(batch.indices[row])
            known = rows is not None and index >= 0
            where = str(rows[index].origin) if known else f"row {index}"
            cut = known and rows[index].answers[place].cut
            if bos is not None and ids[:2] == [bos, bos]:
                yield Problem("the text begins with two BOS tokens", where)
            if not targets:
                yield Problem("an answer has no scored token", where)
                continue
            prompts.setdefault(row, set()).add(tuple(ids[: min(targets) + 1]))
            runs = scored_runs(targets)
            for run in runs[: len(runs) - cut]:
                if run[-1] not in stops or sum(id_ in stops for id_ in run) != 1:
                    ends = sum(id_ in stops for id_ in run)
                    yield Problem(f"an answer scores EOS {ends} times, or not at its end", where)
        if any(len(context) > 1 for context in prompts.values()):
            yield Problem("the answers to a prompt follow different prompt tokens", "self-check")


def sequences(batch: Batch) -> list[tuple[list[int], dict[int, int]]]:
    """Return the ids of each sequence, and the target id at each of its scored positions.

    They are recovered from the batch's tensors, for any layout, so that a fault of a collator shows.
    """
    width, ids = batch.input_ids.shape[1], batch.input_ids.flatten().tolist()
    spans: dict[int, list[int]] = {}
    for tree in batch.trees:
        first = tree.row * width + tree.start
        place = first + tree.trunk
        for number, length in zip(tree.numbers, tree.branches, strict=True):
            spans[number] = [*range(first, first + tree.trunk), *range(place, place + length)]
            place += length
    if not batch.trees:
        spans = {row: (row * width + own.nonzero().squeeze(-1)).tolist() for row, own in enumerate(batch.mask)}
    goals: list[dict[int, int]] = [{} for _ in spans]
    at = {number: {place: position for position, place in enumerate(span)} for number, span in spans.items()}
    scored = zip(batch.places.tolist(), batch.targets.tolist(), batch.sequence_ids.tolist(), strict=True)
    for place, target, number in scored:
        goals[number][at[number][place]] = target
    return [([ids[place] for place in spans[number]], goals[number]) for number in range(batch.num_sequences)]


def scored_runs(targets: dict[int, int]) -> list[list[int]]:
    """Split targets into runs of neighbouring positions: one list for each of the assistant's turns."""
    runs: list[list[int]] = []
    for position in sorted(targets):
        if position - 1 in targets:
            runs[-1].append(targets[position])
        else:
            runs.append([targets[position]])
    return runs
