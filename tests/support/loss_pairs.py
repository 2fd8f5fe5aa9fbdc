"""Pairs to try losses on: log-probabilities of answers of unequal lengths, in float64 numpy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from dpo_lightning.types import PairLogps


class Answers(NamedTuple):
    """Log-probabilities of some answers' tokens, a list for each."""

    policy: list[np.ndarray]
    reference: list[np.ndarray]
    collisions: list[np.ndarray]
    kl: list[np.ndarray]


class Pairs(NamedTuple):
    """What a formula is written in."""

    chosen: Answers
    rejected: Answers
    margins: np.ndarray
    weights: np.ndarray

    w = property(lambda self: np.array([tokens.sum() for tokens in self.chosen.policy]))
    l = property(lambda self: np.array([tokens.sum() for tokens in self.rejected.policy]))  # noqa: E741
    rw = property(lambda self: np.array([tokens.sum() for tokens in self.chosen.reference]))
    rl = property(lambda self: np.array([tokens.sum() for tokens in self.rejected.reference]))
    nw = property(lambda self: np.array([len(tokens) for tokens in self.chosen.policy]))
    nl = property(lambda self: np.array([len(tokens) for tokens in self.rejected.policy]))
    a = property(lambda self: self.w - self.rw)
    r = property(lambda self: self.l - self.rl)
    h = property(lambda self: self.a - self.r)
    mw = property(lambda self: self.w / self.nw)
    ml = property(lambda self: self.l / self.nl)

    def tensors(self, dtype=torch.float64) -> PairLogps:
        """The same as losses are given it."""

        def rows(name):
            lists = [torch.as_tensor(tokens, dtype=dtype) for side in self[:2] for tokens in getattr(side, name)]
            return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)

        numbers = (self.w, self.l, self.rw, self.rl, self.nw, self.nl, self.weights, self.margins)
        return PairLogps(
            *(torch.as_tensor(value, dtype=dtype) for value in numbers),
            policy_tokens=rows("policy"),
            reference_tokens=rows("reference"),
            collisions=rows("collisions").sum(1),
            kl=rows("kl").sum(1),
        )


@st.composite
def pairs(draw, most=4, longest=6, lowest=-6.0, weighted=True):
    """Some pairs of answers of unequal lengths."""

    def answers(count):
        lengths = [draw(st.integers(1, longest)) for _ in range(count)]

        def tokens(low, high):
            number = st.floats(low, high, allow_subnormal=False)
            return [np.array(draw(st.lists(number, min_size=n, max_size=n))) for n in lengths]

        return Answers(tokens(lowest, -1e-6), tokens(lowest, -1e-6), tokens(-3, 0), tokens(0, 3))

    count = draw(st.integers(1, most))
    margins = np.array(draw(st.lists(st.floats(0.01, 5), min_size=count, max_size=count)))
    weight = st.sampled_from([0.0, 0.01, 0.5, 1.0, 2.0]) if weighted else st.just(1.0)
    return Pairs(
        answers(count), answers(count), margins, np.array(draw(st.lists(weight, min_size=count, max_size=count)))
    )
