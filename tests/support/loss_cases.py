"""Every loss of pairs that the package exports, some with typical options, and pairs to compute them on."""

import math
from inspect import isabstract

import make_losses
import torch

import dpo_lightning.losses
from dpo_lightning.losses import (
    AlphaPOLoss,
    AOTLoss,
    AOTUnpairedLoss,
    APODownLoss,
    APOZeroLoss,
    BCOPairLoss,
    BetaDPOLoss,
    CalDPOLoss,
    ChiPOLoss,
    CPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    HingeLoss,
    IPOLoss,
    LDDPOLoss,
    LNDPOLoss,
    NCALoss,
    ODPOLoss,
    ORPOLoss,
    PairwiseLoss,
    PolicyLoss,
    RDPOLoss,
    RobustLoss,
    SFTLoss,
    SimPOLoss,
    SPPOLoss,
    TDPO1Loss,
    TDPO2Loss,
    WeightedSum,
    WPOLoss,
)
from dpo_lightning.losses.divergences import AlphaDivergence, ForwardKL, JensenShannon
from dpo_lightning.types import PairLogps

KINDS = [
    kind
    for kind in map(dpo_lightning.losses.__dict__.get, dpo_lightning.losses.__all__)
    if issubclass(kind, PolicyLoss) and not isabstract(kind)
]
"""Every loss that the package exports: of pairs, single answers and lists."""


def mpo(beta=0.1):
    """Wang et al. 2024: preference, quality and generation."""
    return WeightedSum([DPOLoss(beta), BCOPairLoss(beta), SFTLoss()], [0.8, 0.2, 1.0])


FAMILY = {
    "dpo": DPOLoss(),
    "cdpo": DPOLoss(label_smoothing=0.1),
    "dpo, forward kl": DPOLoss(divergence=ForwardKL()),
    "dpo, jensen-shannon": DPOLoss(divergence=JensenShannon()),
    "dpo, alpha 1/2": DPOLoss(divergence=AlphaDivergence(0.5)),
    "dpo, alpha 1/4": DPOLoss(divergence=AlphaDivergence(0.25)),
    "robust": RobustLoss(label_smoothing=0.1),
    "hinge": HingeLoss(),
    "ipo mean": IPOLoss(),
    "ipo sum": IPOLoss(normalization="sum"),
    "ln-dpo": LNDPOLoss(0.1),
    "exo": EXOLoss(label_smoothing=0.1),
    "nca": NCALoss(),
    "bco": BCOPairLoss(),
    "sppo": SPPOLoss(),
    "aot": AOTLoss(label_smoothing=0.1),
    "aot unpaired": AOTUnpairedLoss(label_smoothing=0.1),
    "apo zero": APOZeroLoss(),
    "apo down": APODownLoss(),
    "discopop": DiscoPOPLoss(),
    "sft, tokens": SFTLoss(),
    "sft, sequences": SFTLoss("sequence_mean"),
    "sft, sums": SFTLoss("sequence_sum"),
    "mpo": mpo(),
    "wpo": WPOLoss(),
    "ld-dpo 1/2": LDDPOLoss(alpha=0.5),
    "ld-dpo 0": LDDPOLoss(alpha=0.0),
    "simpo": SimPOLoss(2.0, 0.5),
    "cpo": CPOLoss(nll_weight=0.0),
    "cpo with likelihood": CPOLoss(),
    "orpo": ORPOLoss(),
    "alphapo": AlphaPOLoss(2.0, 0.5, 0.25),
    "dpop": DPOPLoss(penalty=5.0),
    "r-dpo": RDPOLoss(alpha=0.01),
    "odpo": ODPOLoss(),
    "odpo, log": ODPOLoss(scaling="log"),
    "beta-dpo": BetaDPOLoss(),
    "beta-dpo, nearest": BetaDPOLoss(keep=0.5),
    "cal-dpo": CalDPOLoss(),
    "chi-po": ChiPOLoss(),
    "tdpo 1": TDPO1Loss(),
    "tdpo 2": TDPO2Loss(),
}
STARTS = {
    "hinge": 1.0,
    "ipo mean": 25.0,
    "ipo sum": 25.0,
    "exo": 0.5 * (math.log(0.5 / 0.9) + math.log(0.5 / 0.1)),
    "nca": 2 * math.log(2),
    "bco": 2 * math.log(2),
    "sppo": 50.0,
    "apo zero": 1.0,
    "apo down": 1.0,
    "discopop": (math.log(2) + 1) / 2,
    "cal-dpo": 50 + math.log(2),
}
"""Starting values other than ln 2, at the options above."""
REFERENCE_FREE = [name for name, loss in FAMILY.items() if loss.reference_free]
COMPARING = [name for name, loss in FAMILY.items() if not loss.reference_free]
OF_MARGIN = (
    "dpo",
    "cdpo",
    "robust",
    "hinge",
    "ipo sum",
    "ipo mean",
    "ln-dpo",
    "discopop",
    "exo",
    "aot",
    "aot unpaired",
    "r-dpo",
    "odpo",
    "beta-dpo",
    "tdpo 1",
    "tdpo 2",
)
"""Losses in which one pair of equally long answers has a part by the difference of both log-ratios alone."""

NEW = [kind for kind in KINDS if issubclass(kind, PairwiseLoss) and kind not in {type(one) for one in FAMILY.values()}]
"""Losses of pairs that are not listed above: tests that hold for every loss take them at their default options."""
FAMILY |= {kind.__name__: kind() for kind in NEW}
CHECKS = {kind: make_losses.parse_entry(kind).check_numbers for kind in KINDS}
"""The check numbers of the docstrings: losses at default options for the rows of docs/check_rows.py."""


def pairs(policy, reference, lengths=None, dtype=torch.float64, collision=-0.25, kl=None, margins=None):
    """Pairs from `(chosen, rejected)` rows of numbers; a token each where no lengths are given.

    Log-probabilities are spread evenly over an answer's tokens; `collision` is that of each token.
    """
    count = len(policy[0])
    lengths = [[1] * count] * 2 if lengths is None else lengths
    rows = [torch.as_tensor(row, dtype=dtype) for row in (*policy, *reference, *lengths)]
    sizes = torch.cat(rows[4:])
    width = int(max(1, sizes.max()))
    within = torch.arange(width) < sizes[:, None]

    def spread(one, other):
        each = torch.cat([one, other]) / sizes.clamp(min=1)
        return torch.where(within, each[:, None], torch.zeros((), dtype=dtype))

    return PairLogps(
        *rows,
        given_margins=torch.ones(count, dtype=dtype) if margins is None else torch.as_tensor(margins, dtype=dtype),
        policy_tokens=spread(rows[0], rows[1]),
        reference_tokens=spread(rows[2], rows[3]),
        collisions=collision * sizes,
        kl=torch.zeros(2 * count, dtype=dtype) if kl is None else torch.as_tensor(kl, dtype=dtype),
    )


def pairs_of(h, dtype=torch.float64):
    """Pairs of a token each whose difference of log-ratios is `h`, a list or a leaf tensor."""
    h = torch.as_tensor(h, dtype=dtype)
    zeros = torch.zeros_like(h)
    return pairs((h, zeros), (zeros, zeros), dtype=dtype)


POLICY = ([-0.5, -10.0, -1.0], [-0.1, -30.0, -21.0])
REFERENCE = ([-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1])
LENGTHS = ([1, 2, 4], [2, 5, 3])
TORCHTUNE = pairs(POLICY, REFERENCE)
WITH_LENGTHS = pairs(POLICY, REFERENCE, LENGTHS)
