"""Every layout of a batch, and what a position of one sees by the rule that `Tree` states, as slowly as it is said."""

from __future__ import annotations

import torch

from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix
from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.pairs import EncodedPair

LAYOUTS = {
    "padded": Padded(),
    "padded on the left": Padded(side="left"),
    "packed": Packed(),
    "shared prefix": SharedPrefix(),
    "packed shared prefix": PackedSharedPrefix(),
}
TREES = [name for name, layout in LAYOUTS.items() if not isinstance(layout, Padded)]
ORIGIN = Origin("pairs.jsonl", 7)


def answer(*ids, scored=None, cut=False):
    """An answer, all of it scored where nothing else is said."""
    return EncodedAnswer(ids, [True] * len(ids) if scored is None else scored, cut)


def pair(prompt, chosen, rejected):
    """A pair of answers, given as ids or as `answer`s."""
    answers = (a if isinstance(a, EncodedAnswer) else answer(*a) for a in (chosen, rejected))
    return EncodedPair(ORIGIN, prompt, tuple(answers))


def visible(batch):
    """`[row, position, position]`: whether the first position sees the second."""
    rows, width = batch.input_ids.shape
    if not batch.trees:
        earlier = torch.ones(width, width, dtype=torch.bool).tril()
        return earlier & batch.mask[:, None, :] & batch.mask[:, :, None]
    sees = torch.zeros(rows, width, width, dtype=torch.bool)
    for tree in batch.trees:
        owners = ["trunk"] * tree.trunk + [k for k, length in enumerate(tree.branches) for _ in range(length)]
        for one, own in enumerate(owners):
            for other, whose in enumerate(owners[: one + 1]):
                sees[tree.row, tree.start + one, tree.start + other] = whose in ("trunk", own)
    return sees


def read_back(batch):
    """For each sequence, what its scored tokens are predicted from and what they are: ids, positions, target."""
    width, sees = batch.input_ids.shape[1], visible(batch)
    found = [[] for _ in range(batch.num_sequences)]
    scored = zip(batch.places.tolist(), batch.targets.tolist(), batch.sequence_ids.tolist(), strict=True)
    for place, target, number in scored:
        row, own = place // width, sees[place // width, place % width]
        found[number].append((batch.input_ids[row][own].tolist(), batch.position_ids[row][own].tolist(), target))
    return found


def expected(pairs):
    """What `read_back` finds in a right batch of pairs, from the pairs alone."""
    sequences = []
    for side in (0, 1):
        for row in pairs:
            prompt, said = list(row.prompt_ids), row.answers[side]
            ids, scored = prompt + list(said.ids), [False] * len(prompt) + list(said.scored)
            told = [(ids[:at], list(range(at)), ids[at]) for at in range(1, len(ids)) if scored[at]]
            sequences.append(told)
    return sequences
