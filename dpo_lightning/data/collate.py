"""Encoded rows into batches. The shift by one, from a token to what it predicts, happens here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.types import IGNORE, EncodedAnswer, EncodedPair, EncodedSFT, PreferenceBatch, SFTBatch


@dataclass(frozen=True)
class Padded:
    """A row per sequence, padded to the longest of the batch.

    Padding is told by lengths and never by an id, so a pad token that equals EOS hides nothing.
    """

    pad_to_multiple_of: int = 1
    """Round the padded length up to a multiple of this many tokens."""

    side: Literal["right", "left"] = "right"
    """The side that is padded; positions are counted from each sequence's first token either way."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.pad_to_multiple_of < 1:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"pad_to_multiple_of={self.pad_to_multiple_of} is no length", "data.collator"),
                fix="--data.collator.pad_to_multiple_of 1 or more",
            )

    def pairs(self, rows: Sequence[EncodedPair], indices: Sequence[int]) -> PreferenceBatch:
        """Collate pairs; `indices` tell the data set's row of each, -1 for one that only fills up."""
        sequences = [(row.prompt_ids, row.chosen) for row in rows]
        sequences += [(row.prompt_ids, row.rejected) for row in rows]
        return PreferenceBatch(**self._tensors(sequences), indices=torch.tensor(indices))

    def demonstrations(self, rows: Sequence[EncodedSFT], indices: Sequence[int]) -> SFTBatch:
        """Collate demonstrations, as `pairs` does."""
        return SFTBatch(
            **self._tensors([(row.prompt_ids, row.completion) for row in rows]), indices=torch.tensor(indices)
        )

    def _tensors(self, sequences: Sequence[tuple[Sequence[int], EncodedAnswer]]) -> dict[str, torch.Tensor]:
        longest = max(len(prompt) + len(answer.ids) for prompt, answer in sequences)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(sequences), width)
        input_ids = torch.zeros(shape, dtype=torch.long)
        targets = torch.full(shape, IGNORE)
        positions = torch.zeros(shape, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(sequences):
            ids = torch.tensor([*prompt, *answer.ids])
            start = 0 if self.side == "right" else width - len(ids)
            span = slice(start, start + len(ids))
            input_ids[row, span] = ids
            positions[row, span] = torch.arange(len(ids))
            mask[row, span] = True
            targets[row, span] = shifted_targets(len(prompt), answer)
        sequence_ids = torch.arange(len(sequences))[:, None].expand(shape).contiguous()
        return {
            "input_ids": input_ids,
            "targets": targets,
            "sequence_ids": sequence_ids,
            "position_ids": positions,
            "mask": mask,
        }


def shifted_targets(prompt_length: int, answer: EncodedAnswer) -> torch.Tensor:
    """What each position of prompt and answer has to predict: the next id where that is scored, else `IGNORE`.

    The last position predicts nothing; the first token of an empty prompt's answer is predicted by nothing.
    """
    scored = [id_ if own else IGNORE for id_, own in zip(answer.ids, answer.scored, strict=True)]
    return torch.tensor([*[IGNORE] * prompt_length, *scored, IGNORE][1:])
