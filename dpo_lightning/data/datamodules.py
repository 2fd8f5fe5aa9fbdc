"""`PreferenceDataModule`, `RankedDataModule`, `UnpairedDataModule`, `SFTDataModule`: a data module per kind of row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.examples import Example
from dpo_lightning.data.formats.duplicates import CONTRADICTIONS
from dpo_lightning.data.formats.pairs import PairFormat
from dpo_lightning.data.formats.ranked import RankedFormat
from dpo_lightning.data.formats.sft import SFTFormat
from dpo_lightning.data.formats.unpaired import EncodedUnpaired, UnpairedFormat
from dpo_lightning.data.mismatches import add_mismatches
from dpo_lightning.data.text_datamodule import TextDataModule
from dpo_lightning.errors import ExitCode, Problem, UserError


class PreferenceDataModule(TextDataModule):
    """Preference pairs: `prompt, chosen, rejected` as strings or messages, or chats with an implicit prompt."""

    format = PairFormat


class SFTDataModule(TextDataModule):
    """SFT rows: `prompt, completion`, `messages`, or `instruction, input, output`."""

    format = SFTFormat


class RankedDataModule(TextDataModule):
    """Ranked lists: `prompt, responses` with the best answer first, or by a column `scores`."""

    format = RankedFormat


class UnpairedDataModule(TextDataModule):
    """Unpaired rows: `prompt, completion, label` as strings or messages; of pairs, each answer by itself."""

    format = UnpairedFormat
    has_mismatched = False
    """Whether rows get an answer to another prompt as well; the module's loss decides."""

    def prepare(self, stage: str, module: Any, world_size: int = 1) -> None:
        """Read, check and encode rows, as the module's loss needs them."""
        if module.needs_mismatched != self.has_mismatched:  # rows that were encoded for another loss
            self.encoded, self.has_mismatched = {}, module.needs_mismatched
        super().prepare(stage, module, world_size)

    def encode(self, encoder: Encoder, examples: Sequence[Example]) -> list[Any]:
        """Rows as ids. Which answers are mismatched is settled here, before rows are shared out to ranks."""
        rows: list[Any] = super().encode(encoder, examples)
        if CONTRADICTIONS not in self.allow:
            check_labels(rows)
        if not self.has_mismatched:
            return rows
        rows, encoder.counts.cut_mismatches = add_mismatches(rows, self.max_length)
        return rows


def check_labels(rows: Sequence[EncodedUnpaired]) -> None:
    """Refuse answers that are labelled good and bad once they are tokens, though their texts differ.

    Raises:
        UserError: 65, with every such row.
    """
    first: dict[int, EncodedUnpaired] = {}
    problems, cut = [], False
    for row in rows:
        other = first.setdefault(hash((tuple(row.prompt_ids), tuple(row.completion.ids))), row)
        if other.good != row.good:
            cut |= row.completion.cut
            problems.append(Problem(f"the same tokens have the other label in {other.origin}", str(row.origin)))
    if problems:
        fix = "raise --data.max_length, or --data.overlong drop" if cut else "remove one of the two"
        raise UserError(ExitCode.DATA, problems, fix=f"{fix}, or --data.allow {CONTRADICTIONS}")
