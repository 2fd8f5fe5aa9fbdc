"""Collators: encoded rows into batches. Targets are shifted by one position here, and nowhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from dpo_lightning.batches import Batch, Tree
from dpo_lightning.data.examples import Encoded, EncodedAnswer
from dpo_lightning.data.row_sizes import RowSizes, count_shared_ids
from dpo_lightning.errors import ExitCode, Problem, UserError


class TokenSequence(NamedTuple):
    """Prompt and answer as one sequence of tokens; `number` is its index among the sequences of the batch."""

    number: int
    ids: list[int]
    scored: list[bool]

    @classmethod
    def of(cls, number: int, prompt: Sequence[int], answer: EncodedAnswer) -> TokenSequence:
        """Concatenate a prompt, none of whose tokens is scored, and an answer."""
        return cls(number, [*prompt, *answer.ids], [False] * len(prompt) + list(answer.scored))

    def scored_tokens(self) -> Iterator[tuple[int, int]]:
        """Yield the position that predicts each scored token, the one before, and its id; the first token has none."""
        for place, (id_, own) in enumerate(zip(self.ids[1:], self.scored[1:], strict=True)):
            if own:
                yield place, id_


@dataclass(frozen=True)
class Collator(ABC):
    """Turns rows into a batch; subclasses differ in layout, and the log-probabilities do not depend on it."""

    pad_to_multiple_of: int = 1
    """Pad the rows of a batch to a multiple of this many tokens, such as 8 for tensor cores."""

    def __post_init__(self) -> None:
        if self.pad_to_multiple_of < 1:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"pad_to_multiple_of={self.pad_to_multiple_of} is less than 1", "data.collator"),
                fix="--data.collator.pad_to_multiple_of 1 or more",
            )

    def __call__(self, items: Sequence[tuple[Encoded, int]]) -> Batch:
        """Collate pairs of a row and its index, as `samplers.RowDataset` returns them."""
        rows, indices = zip(*items, strict=True)
        return self.collate(rows, indices)

    def collate(self, rows: Sequence[Encoded], indices: Sequence[int]) -> Batch:
        """Collate rows of one kind.

        Args:
            rows: the rows.
            indices: the index of each row in the data set; -1 for a filler, whose weight becomes 0.
        """
        # The owner of a sequence: its row in the batch, and which of the row's answers it is.
        owners = [(row, place) for row, own in enumerate(rows) for place in range(len(own.answers))]
        if rows[0].answers_first:
            owners.sort(key=lambda owner: (owner[1], owner[0]))
        numbers = {owner: number for number, owner in enumerate(owners)}
        groups = [
            [TokenSequence.of(numbers[row, place], own.prompt_ids, answer) for place, answer in enumerate(own.answers)]
            for row, own in enumerate(rows)
        ]
        return Batch(
            **self.tensors(groups),
            owners=torch.tensor(owners),
            most_answers=max(map(len, groups)),
            indices=torch.tensor(indices),
            weights=torch.tensor([row.weight if index >= 0 else 0.0 for row, index in zip(rows, indices, strict=True)]),
            columns={name: torch.tensor([row.columns[name] for row in rows]) for name in rows[0].columns},
        )

    @abstractmethod
    def tensors(self, groups: Sequence[Sequence[TokenSequence]]) -> dict[str, Any]:
        """The fields of a `Batch` from `input_ids` to `trees`; each group has the sequences of one row."""

    @abstractmethod
    def count_tokens(self, sizes: RowSizes) -> np.ndarray[Any, Any]:
        """Number of tokens that the model computes for each row, `[rows]`, without padding to that of other rows."""

    def tokens(self, row: Encoded) -> int:
        """Number of tokens that the model computes for a row, without padding to the length of other rows."""
        return int(self.count_tokens(RowSizes.of([row]))[0])

    def width(self, longest: int) -> int:
        """The padded length, in tokens, for rows of at most `longest` tokens."""
        return -(-max(longest, 1) // self.pad_to_multiple_of) * self.pad_to_multiple_of


@dataclass(frozen=True)
class Padded(Collator):
    """One row per sequence, padded to the longest of the batch. Every model takes this layout.

    The mask is made from lengths and not from the pad id, so a pad token that equals EOS does no harm.
    """

    side: Literal["right", "left"] = "right"
    """The padded side; on either side, position 0 is the first token of a sequence."""

    def count_tokens(self, sizes: RowSizes) -> np.ndarray[Any, Any]:
        """The number of answers times the length of the longest, prompt included."""
        return sizes.counts * sizes.lengths

    def tensors(self, groups: Sequence[Sequence[TokenSequence]]) -> dict[str, Any]:
        """Write one sequence per row, in the order of their numbers."""
        sequences = sorted(sequence for group in groups for sequence in group)
        width = self.width(max(len(sequence.ids) for sequence in sequences))
        rows = BatchWriter(len(sequences), width)
        for row, sequence in enumerate(sequences):
            start = 0 if self.side == "right" else width - len(sequence.ids)
            rows.write(row, start, sequence.ids, 0)
            rows.score(sequence, [(row * width + start, len(sequence.ids))])
        return rows.fields(())


class Trees(Collator):
    """Base of the collators that store the common beginning of a group of sequences once.

    A group becomes a tree: a trunk, the common beginning, and a branch for the rest of each sequence. The attention
    mask lets a branch see the trunk and itself, but no other branch.
    """

    @abstractmethod
    def groups(self, groups: Sequence[Sequence[TokenSequence]]) -> list[Sequence[TokenSequence]]:
        """Regroup the sequences, given by row of the data set, into those that share a trunk."""

    @abstractmethod
    def arrange(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """For trees of these lengths, in tokens: the row of the batch and the first column of each."""

    def tensors(self, groups: Sequence[Sequence[TokenSequence]]) -> dict[str, Any]:
        """Write all trees; the last token of a sequence is left out, since nothing is predicted from it."""
        groups = self.groups(groups)
        trunks = [count_shared_ids([sequence.ids for sequence in group]) for group in groups]
        shapes = [(trunk, [len(s.ids[trunk:-1]) for s in group]) for trunk, group in zip(trunks, groups, strict=True)]
        lengths = [trunk + sum(branches) for trunk, branches in shapes]
        corners = self.arrange(lengths)
        ends = [start + length for (_, start), length in zip(corners, lengths, strict=True)]
        rows = BatchWriter(corners[-1][0] + 1, self.width(max(ends)))
        trees = []
        for group, (trunk, branches), (row, start) in zip(groups, shapes, corners, strict=True):
            rows.write(row, start, group[0].ids[:trunk], 0)
            place = start + trunk
            for sequence, length in zip(group, branches, strict=True):
                rows.write(row, place, sequence.ids[trunk:-1], trunk)
                base = row * rows.width
                rows.score(sequence, [(base + start, trunk), (base + place, length)])
                place += length
            trees.append(Tree(row, start, trunk, tuple(branches), tuple(sequence.number for sequence in group)))
        return rows.fields(tuple(trees))


@dataclass(frozen=True)
class SharedPrefix(Trees):
    """One row per pair: the common beginning once, then the rest of either answer; padded to the longest pair."""

    def count_tokens(self, sizes: RowSizes) -> np.ndarray[Any, Any]:
        """Count the common beginning of the answers once; see `count_tree_tokens`."""
        return count_tree_tokens(sizes)

    def groups(self, groups: Sequence[Sequence[TokenSequence]]) -> list[Sequence[TokenSequence]]:
        """Keep the answers of a row together: they share the prompt."""
        return list(groups)

    def arrange(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Put each tree into a row of its own."""
        return [(row, 0) for row in range(len(lengths))]


@dataclass(frozen=True)
class Packed(Trees):
    """All sequences in one row without padding; none attends to another."""

    def count_tokens(self, sizes: RowSizes) -> np.ndarray[Any, Any]:
        """Count the prompt with each answer; the last token of a sequence is never an input and does not count."""
        return sizes.counts * (sizes.prompts - 1) + sizes.totals

    def groups(self, groups: Sequence[Sequence[TokenSequence]]) -> list[Sequence[TokenSequence]]:
        """Make every sequence a group of its own, so that nothing is shared."""
        return [[sequence] for group in groups for sequence in group]

    def arrange(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Put the trees one after another into row 0."""
        starts = [0]
        for length in lengths[:-1]:
            starts.append(starts[-1] + length)
        return [(0, start) for start in starts]


@dataclass(frozen=True)
class PackedSharedPrefix(Packed):
    """All pairs in one row, with the common beginning of each pair once: no padding, no token computed twice."""

    def count_tokens(self, sizes: RowSizes) -> np.ndarray[Any, Any]:
        """Count the common beginning of the answers once; see `count_tree_tokens`."""
        return count_tree_tokens(sizes)

    def groups(self, groups: Sequence[Sequence[TokenSequence]]) -> list[Sequence[TokenSequence]]:
        """Keep the answers of a row together: they share the prompt."""
        return list(groups)


def select_collator(chosen: Collator | None, *, takes_trees: bool) -> Collator:
    """The chosen collator if the model takes its batches; otherwise the one that computes the fewest tokens."""
    if chosen is not None and (takes_trees or not isinstance(chosen, Trees)):
        return chosen
    return PackedSharedPrefix() if takes_trees else Padded()


def count_tree_tokens(sizes: RowSizes) -> np.ndarray[Any, Any]:
    """Tokens of rows whose answers share their common beginning, `[rows]`: trunk once, plus all branches.

    The last token of a sequence is never an input and does not count.
    """
    return sizes.prompts + sizes.totals - sizes.counts - (sizes.counts - 1) * sizes.shared


class BatchWriter:
    """Writes tokens, positions and scored tokens of a batch into tensors of `count` rows of `width` tokens."""

    def __init__(self, count: int, width: int) -> None:
        self.width = width
        self.input_ids = torch.zeros(count, width, dtype=torch.long)
        self.position_ids = torch.zeros(count, width, dtype=torch.long)
        self.mask = torch.zeros(count, width, dtype=torch.bool)
        self.scored: list[tuple[int, int, int]] = []

    def write(self, row: int, start: int, ids: Sequence[int], position: int) -> None:
        """Write tokens into a row from column `start` on; `position` is that of the first one in its sequence."""
        span = slice(start, start + len(ids))
        self.input_ids[row, span] = torch.tensor(ids, dtype=torch.long)
        self.position_ids[row, span] = torch.arange(position, position + len(ids))
        self.mask[row, span] = True

    def score(self, sequence: TokenSequence, stretches: Sequence[tuple[int, int]]) -> None:
        """Record the scored tokens of a sequence, whose tokens are in stretches `(first place, length)` of the batch.

        A place is a flat index, row * width + column.
        """
        places = [place for first, length in stretches for place in range(first, first + length)]
        self.scored += [(places[place], id_, sequence.number) for place, id_ in sequence.scored_tokens()]

    def fields(self, trees: tuple[Tree, ...]) -> dict[str, Any]:
        """The fields of a `Batch`; scored tokens are sorted by sequence."""
        scored = torch.tensor(sorted(self.scored, key=lambda token: token[2]), dtype=torch.long).reshape(-1, 3)
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "mask": self.mask,
            **dict(zip(("places", "targets", "sequence_ids"), scored.T.contiguous(), strict=True)),
            "trees": trees,
        }
