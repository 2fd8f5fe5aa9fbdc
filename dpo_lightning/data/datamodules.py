"""`PreferenceDataModule` and `SFTDataModule`: files in, batches out, every row accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dpo_lightning.batches import Batch
from dpo_lightning.data.collate import Collator
from dpo_lightning.data.datamodule import TextDataModule
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.examples import (
    EncodedAnswer,
    EncodedPair,
    EncodedRanking,
    EncodedSFT,
    EncodedUnpaired,
    PreferenceExample,
    RankedExample,
    SFTExample,
    UnpairedExample,
)
from dpo_lightning.data.formats.duplicates import CONTRADICTIONS
from dpo_lightning.data.formats.load import preference_examples, ranked_examples, sft_examples, unpaired_examples
from dpo_lightning.data.mismatches import mismatches
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.losses import UnpairedLoss


class PreferenceDataModule(TextDataModule):
    """Preference pairs: `prompt, chosen, rejected` as strings or messages, or chats with an implicit prompt."""

    def read(self, paths: str | list[str]) -> tuple[list[PreferenceExample], list[str]]:
        """Rows as pairs."""
        return preference_examples(paths, columns=self.columns, lent=self._lent, strict=self.strict, allow=self.allow)

    def encode(self, encoder: Encoder, examples: Sequence[PreferenceExample]) -> list[EncodedPair]:
        """Pairs as ids."""
        return encoder.pairs(examples)

    @staticmethod
    def lay_out(layout: Collator, items: Sequence[tuple[EncodedPair, int]]) -> Batch:
        """A `PreferenceBatch`."""
        rows, indices = zip(*items, strict=True)
        return layout.pairs(rows, indices)


class SFTDataModule(TextDataModule):
    """Demonstrations: `prompt, completion`, `messages`, or `instruction, input, output`."""

    def read(self, paths: str | list[str]) -> tuple[list[SFTExample], list[str]]:
        """Rows as demonstrations."""
        return sft_examples(paths, columns=self.columns, lent=self._lent, strict=self.strict)

    def encode(self, encoder: Encoder, examples: Sequence[SFTExample]) -> list[EncodedSFT]:
        """Demonstrations as ids."""
        return encoder.demonstrations(examples)

    @staticmethod
    def lay_out(layout: Collator, items: Sequence[tuple[EncodedSFT, int]]) -> Batch:
        """An `SFTBatch`."""
        rows, indices = zip(*items, strict=True)
        return layout.demonstrations(rows, indices)


class RankedDataModule(TextDataModule):
    """Ranked lists: `prompt, responses` with the best answer first, or by a column `scores`."""

    def read(self, paths: str | list[str]) -> tuple[list[RankedExample], list[str]]:
        """Rows as lists."""
        return ranked_examples(paths, columns=self.columns, lent=self._lent, strict=self.strict, allow=self.allow)

    def encode(self, encoder: Encoder, examples: Sequence[RankedExample]) -> list[EncodedRanking]:
        """Lists as ids."""
        return encoder.rankings(examples)

    @staticmethod
    def lay_out(layout: Collator, items: Sequence[tuple[EncodedRanking, int]]) -> Batch:
        """A `RankedBatch`."""
        rows, indices = zip(*items, strict=True)
        return layout.rankings(rows, indices)


class UnpairedDataModule(TextDataModule):
    """Judged answers: `prompt, completion, label` as strings or messages; of pairs, each answer by itself."""

    needs_kl = False
    """Whether rows get a mismatched answer; the module's loss decides."""

    def prepare(self, stage: str, module: Any, world_size: int = 1) -> None:
        """Read, check and encode rows, as the module's loss needs them."""
        loss = getattr(module, "loss", None)
        if not isinstance(loss, UnpairedLoss):
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"UnpairedDataModule is for a KTOModule, not for a {type(module).__name__}", "data"),
                fix="--config configs/kto.yaml, or PreferenceDataModule",
            )
        if loss.needs_kl != self.needs_kl:  # rows that were encoded for another loss
            self.encoded, self.needs_kl = {}, loss.needs_kl
        super().prepare(stage, module, world_size)

    def read(self, paths: str | list[str]) -> tuple[list[UnpairedExample], list[str]]:
        """Rows as judged answers."""
        return unpaired_examples(paths, columns=self.columns, lent=self._lent, strict=self.strict, allow=self.allow)

    def encode(self, encoder: Encoder, examples: Sequence[UnpairedExample]) -> list[EncodedUnpaired]:
        """Judged answers as ids. What is mismatched is settled here, before rows are shared out to ranks."""
        rows = encoder.judged(examples)
        if CONTRADICTIONS not in self.allow:
            check_verdicts(rows)
        if not self.needs_kl:
            return rows
        others = [rows[other].completion for other in mismatches(rows)]
        fitted = [fit(row, other, self.max_length) for row, other in zip(rows, others, strict=True)]
        encoder.counts.cut_mismatches = sum(len(a.ids) > len(b.ids) for a, b in zip(others, fitted, strict=True))
        return [replace(row, mismatched=other) for row, other in zip(rows, fitted, strict=True)]

    @staticmethod
    def lay_out(layout: Collator, items: Sequence[tuple[EncodedUnpaired, int]]) -> Batch:
        """An `UnpairedBatch`."""
        rows, indices = zip(*items, strict=True)
        return layout.judged(rows, indices)


def check_verdicts(rows: Sequence[EncodedUnpaired]) -> None:
    """Refuse answers that are judged both ways once they are tokens, though their texts differ.

    Raises:
        UserError: 65, with every such row.
    """
    first: dict[int, EncodedUnpaired] = {}
    problems, cut = [], False
    for row in rows:
        other = first.setdefault(hash((tuple(row.prompt_ids), tuple(row.completion.ids))), row)
        if other.good != row.good:
            cut |= row.completion.cut
            problems.append(Problem(f"the same tokens are judged the other way in {other.origin}", str(row.origin)))
    if problems:
        fix = "raise --data.max_length, or --data.overlong drop" if cut else "remove one of the two"
        raise UserError(ExitCode.DATA, problems, fix=f"{fix}, or --data.allow {CONTRADICTIONS}")


def fit(row: EncodedUnpaired, answer: EncodedAnswer, max_length: int) -> EncodedAnswer:
    """Another row's answer after this row's prompt, cut at `max_length`."""
    room = max_length - len(row.prompt_ids)
    if len(answer.ids) <= room:
        return answer
    return replace(answer, ids=answer.ids[:room], scored=answer.scored[:room], cut=True)
