"""Encoded rows into batches. The shift by one, from a token to what it predicts, happens here and nowhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from dpo_lightning.batches import Batch, Tree
from dpo_lightning.data.examples import Encoded, EncodedAnswer
from dpo_lightning.errors import ExitCode, Problem, UserError


class Joined(NamedTuple):
    """Prompt and answer as one sequence; `number` is its place among the batch's sequences."""

    number: int
    ids: list[int]
    scored: list[bool]

    @classmethod
    def of(cls, number: int, prompt: Sequence[int], answer: EncodedAnswer) -> Joined:
        """Join a prompt and an answer."""
        return cls(number, [*prompt, *answer.ids], [False] * len(prompt) + list(answer.scored))

    def scored_tokens(self) -> Iterator[tuple[int, int]]:
        """The position that predicts each scored token, and the token; nothing predicts the first one."""
        for place, (id_, own) in enumerate(zip(self.ids[1:], self.scored[1:], strict=True)):
            if own:
                yield place, id_


@dataclass(frozen=True)
class Collator(ABC):
    """How rows become a batch. Whatever the collator, a batch gives the same log-probabilities."""

    pad_to_multiple_of: int = 1
    """Round the length of a batch's rows up to a multiple of this many tokens."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.pad_to_multiple_of < 1:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"pad_to_multiple_of={self.pad_to_multiple_of} is no length", "data.collator"),
                fix="--data.collator.pad_to_multiple_of 1 or more",
            )

    def __call__(self, items: Sequence[tuple[Encoded, int]]) -> Batch:
        """Collate rows that come with their indices, as `samplers.Rows` gives them."""
        rows, indices = zip(*items, strict=True)
        return self.collate(rows, indices)

    def collate(self, rows: Sequence[Encoded], indices: Sequence[int]) -> Batch:
        """Collate rows of one kind.

        Args:
            rows: the rows.
            indices: the data set's row of each, -1 for one that only fills up.
        """
        owners = [(row, place) for row, own in enumerate(rows) for place in range(len(own.answers))]
        if rows[0].answers_first:
            owners.sort(key=lambda owner: (owner[1], owner[0]))
        numbers = {owner: number for number, owner in enumerate(owners)}
        groups = [
            [Joined.of(numbers[row, place], own.prompt_ids, answer) for place, answer in enumerate(own.answers)]
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
    def tensors(self, groups: Sequence[Sequence[Joined]]) -> dict[str, Any]:
        """The tokens of a batch, `input_ids` to `trees`, from the sequences of each row of the data set."""

    @abstractmethod
    def tokens(self, row: Encoded) -> int:
        """How many tokens a model computes for a row, padding to other rows left aside."""

    def width(self, longest: int) -> int:
        """The length of the batch's rows."""
        return -(-max(longest, 1) // self.pad_to_multiple_of) * self.pad_to_multiple_of


@dataclass(frozen=True)
class Padded(Collator):
    """A row per sequence, padded to the longest of the batch: what every model takes.

    Padding is told by lengths and never by an id, so a pad token that equals EOS hides nothing.
    """

    side: Literal["right", "left"] = "right"
    """The side that is padded; positions are counted from each sequence's first token either way."""

    def tokens(self, row: Encoded) -> int:
        """Every answer takes as much as the longest."""
        return len(row.answers) * row.length

    def tensors(self, groups: Sequence[Sequence[Joined]]) -> dict[str, Any]:
        """Sequences in the order of their numbers."""
        sequences = sorted(sequence for group in groups for sequence in group)
        width = self.width(max(len(sequence.ids) for sequence in sequences))
        rows = Rows(len(sequences), width)
        for row, sequence in enumerate(sequences):
            start = 0 if self.side == "right" else width - len(sequence.ids)
            rows.write(row, start, sequence.ids, 0)
            rows.score(sequence, [(row * width + start, len(sequence.ids))])
        return rows.fields(())


class Trees(Collator):
    """What the collators without repetition share: sequences of a group have their common beginning once."""

    @abstractmethod
    def groups(self, groups: Sequence[Sequence[Joined]]) -> list[Sequence[Joined]]:
        """The groups whose sequences share a trunk."""

    @abstractmethod
    def arrange(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """The row and the first position of each tree."""

    def tokens(self, row: Encoded) -> int:
        """Trunks once and all branches."""
        answers = [Joined.of(number, (), answer) for number, answer in enumerate(row.answers)]
        trees = [
            (common_prefix(group), [len(sequence.ids) - 1 for sequence in group]) for group in self.groups([answers])
        ]
        return sum(len(row.prompt_ids) + sum(lengths) - (len(lengths) - 1) * trunk for trunk, lengths in trees)

    def tensors(self, groups: Sequence[Sequence[Joined]]) -> dict[str, Any]:
        """Lay the trees out; the last token of a sequence predicts nothing and is left out."""
        groups = self.groups(groups)
        shapes = [(trunk := common_prefix(group), [len(s.ids[trunk:-1]) for s in group]) for group in groups]
        lengths = [trunk + sum(branches) for trunk, branches in shapes]
        corners = self.arrange(lengths)
        ends = [start + length for (_, start), length in zip(corners, lengths, strict=True)]
        rows = Rows(corners[-1][0] + 1, self.width(max(ends)))
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
    """A row per pair: what both answers begin with once, then the rest of either; padded to the longest pair."""

    def groups(self, groups: Sequence[Sequence[Joined]]) -> list[Sequence[Joined]]:
        """The answers to one prompt."""
        return list(groups)

    def arrange(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """A row for each."""
        return [(row, 0) for row in range(len(lengths))]


@dataclass(frozen=True)
class Packed(Trees):
    """All sequences in one row, none of which sees another: no padding."""

    def groups(self, groups: Sequence[Sequence[Joined]]) -> list[Sequence[Joined]]:
        """Each sequence by itself."""
        return [[sequence] for group in groups for sequence in group]

    def arrange(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """One after the other."""
        starts = [0]
        for length in lengths[:-1]:
            starts.append(starts[-1] + length)
        return [(0, start) for start in starts]


@dataclass(frozen=True)
class PackedSharedPrefix(Packed):
    """All pairs in one row, what both answers begin with once: no padding and no token computed twice."""

    def groups(self, groups: Sequence[Sequence[Joined]]) -> list[Sequence[Joined]]:
        """The answers to one prompt."""
        return list(groups)


def collator_for(chosen: Collator | None, *, takes_trees: bool) -> Collator:
    """The collator that was chosen where a model takes its batches, else the one with the fewest tokens."""
    if chosen is not None and (takes_trees or not isinstance(chosen, Trees)):
        return chosen
    return PackedSharedPrefix() if takes_trees else Padded()


class Rows:
    """The tensors of a batch while it is written."""

    def __init__(self, count: int, width: int) -> None:
        """Begin with nothing but padding."""
        self.width = width
        self.input_ids = torch.zeros(count, width, dtype=torch.long)
        self.position_ids = torch.zeros(count, width, dtype=torch.long)
        self.mask = torch.zeros(count, width, dtype=torch.bool)
        self.scored: list[tuple[int, int, int]] = []

    def write(self, row: int, start: int, ids: Sequence[int], position: int) -> None:
        """Put tokens into a row, the first of them at `position` of its sequence."""
        span = slice(start, start + len(ids))
        self.input_ids[row, span] = torch.tensor(ids, dtype=torch.long)
        self.position_ids[row, span] = torch.arange(position, position + len(ids))
        self.mask[row, span] = True

    def score(self, sequence: Joined, stretches: Sequence[tuple[int, int]]) -> None:
        """Note what predicts the sequence's scored tokens; it lies in stretches `(first place, length)`."""
        places = [place for first, length in stretches for place in range(first, first + length)]
        self.scored += [(places[place], id_, sequence.number) for place, id_ in sequence.scored_tokens()]

    def fields(self, trees: tuple[Tree, ...]) -> dict[str, Any]:
        """The batch's fields."""
        scored = torch.tensor(sorted(self.scored, key=lambda token: token[2]), dtype=torch.long).reshape(-1, 3)
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "mask": self.mask,
            **dict(zip(("places", "targets", "sequence_ids"), scored.T.contiguous(), strict=True)),
            "trees": trees,
        }


def common_prefix(group: Sequence[Joined]) -> int:
    """How many tokens all of the sequences begin with, their last ones left aside."""
    columns = zip(*(sequence.ids[:-1] for sequence in group), strict=False)
    shortest = max(0, min(len(sequence.ids) for sequence in group) - 1)
    return next((n for n, column in enumerate(columns) if len(set(column)) > 1), shortest)
