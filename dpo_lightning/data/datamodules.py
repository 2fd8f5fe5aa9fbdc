"""The four data modules, one per kind of row: preference pairs, ranked lists, unpaired rows, SFT rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dpo_lightning.data.cache.spilled_list import SpilledList
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.examples import Encoded, Example
from dpo_lightning.data.kinds.duplicates import CONTRADICTIONS
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.ranked import RankedKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.kinds.suspects import select_repeated
from dpo_lightning.data.kinds.unpaired import EncodedUnpaired, UnpairedKind
from dpo_lightning.data.mismatches import add_mismatches
from dpo_lightning.data.text_datamodule import TextDataModule
from dpo_lightning.errors import ExitCode, Problem, UserError


class PreferenceDataModule(TextDataModule):
    """Preference pairs, for DPOModule: `prompt, chosen, rejected` as strings or messages, or without `prompt`."""

    kind = PairKind


class SFTDataModule(TextDataModule):
    """SFT rows, for SFTModule: `prompt, completion`, `messages`, or `instruction, input, output`."""

    kind = SFTKind


class RankedDataModule(TextDataModule):
    """Ranked lists, for ListwiseDPOModule: `prompt, responses`, the best answer first or ranked by `scores`."""

    kind = RankedKind


class UnpairedDataModule(TextDataModule):
    """Unpaired rows, for KTOModule: `prompt, completion, label`, or pairs, whose answers are split."""

    kind = UnpairedKind
    has_mismatched = False
    """Whether rows also get an answer to another prompt; KTOLoss needs it to estimate the KL divergence."""

    def prepare(self, stage: str, module: Any, world_size: int = 1) -> None:
        """Read, check and encode rows; encode again if the loss of this module needs other answers than before."""
        if module.needs_mismatched != self.has_mismatched:  # encoded for another loss
            self.encoded, self.has_mismatched = {}, module.needs_mismatched
        super().prepare(stage, module, world_size)

    def describe_encoding(self) -> dict[str, Any]:
        """Add whether rows have mismatched answers."""
        return {**super().describe_encoding(), "has_mismatched": self.has_mismatched}

    def encode(self, encoder: Encoder, examples: Sequence[Example]) -> Iterator[Encoded]:
        """Encode rows; mismatched answers are chosen here, before rows are distributed, so that all ranks agree."""
        rows: SpilledList[Any] = SpilledList(super().encode(encoder, examples))
        if CONTRADICTIONS not in self.allow:
            check_labels(rows)
        if not self.has_mismatched:
            yield from rows
            return
        for row, cut in add_mismatches(rows, self.max_length):
            encoder.counts.cut_mismatches += cut
            yield row


def check_labels(rows: Sequence[EncodedUnpaired]) -> None:
    """Check that no two rows have the same tokens and different labels, although their texts differ.

    Truncation, or texts that the tokenizer normalizes, can make them equal.

    Raises:
        UserError: 65, with every such row.
    """
    first: dict[int, EncodedUnpaired] = {}
    problems, cut = [], False
    for row in select_repeated(rows, lambda row: (tuple(row.prompt_ids), tuple(row.completion.ids))):
        other = first.setdefault(hash((tuple(row.prompt_ids), tuple(row.completion.ids))), row)
        if other.good != row.good:
            cut |= row.completion.cut
            problems.append(Problem(f"the same tokens have the other label in {other.origin}", str(row.origin)))
    if problems:
        fix = "raise --data.max_length, or --data.overlong drop" if cut else "remove one of the two"
        raise UserError(ExitCode.DATA, problems, fix=f"{fix}, or --data.allow {CONTRADICTIONS}")
