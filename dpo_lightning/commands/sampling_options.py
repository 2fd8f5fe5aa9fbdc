"""Options of commands that sample answers."""

from __future__ import annotations

import argparse
from typing import Any

from dpo_lightning.sampling import Sampling


def add_sampling_options(group: Any, max_new_tokens: int, seed: str) -> None:
    """Add the options of `Sampling` to a parser or a group of its options.

    Args:
        group: to which they are added.
        max_new_tokens: the default.
        seed: what the seed is for.
    """
    group.add_argument("--max_new_tokens", type=int, default=max_new_tokens, help="length limit of an answer")
    group.add_argument("--temperature", type=float, default=0.7, help="0 always takes the most likely token")
    group.add_argument("--top_p", type=float, default=0.95)
    group.add_argument("--seed", type=int, default=0, help=seed)


def make_sampling(args: argparse.Namespace) -> Sampling:
    """Make the sampling of these options.

    Raises:
        UserError: 64, a value is out of range.
    """
    return Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
