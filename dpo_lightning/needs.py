"""What a loss needs of its reference and of the rows, looked at before a weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_lightning.console import say
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.examples import EncodedPair
from dpo_lightning.losses import PairwiseLoss
from dpo_lightning.losses.base import PolicyLoss
from dpo_lightning.references import KEY, ReferenceFree, ReferencePolicy


def check_wanted(loss: PolicyLoss, reference: ReferencePolicy | None) -> None:
    """Refuse a reference that the loss would not ask, and a loss whose reference is none.

    Raises:
        UserError: that is so.
    """
    if reference is None or loss.reference_free == isinstance(reference, ReferenceFree):
        return
    name, given = type(loss).__name__, type(reference).__name__
    what = (
        f"{name} asks no reference, and {given} would be held in vain"
        if loss.reference_free
        else (f"{name} measures the policy against a reference, and {given} is none")
    )
    raise UserError(ExitCode.CONFIG, Problem(what, KEY), fix=f"leave --{KEY} out")


def check_columns(loss: PairwiseLoss, rows: Sequence[EncodedPair]) -> None:
    """Refuse rows without a margin for a loss that needs one, and weights for one that cannot count pairs unequally.

    Raises:
        UserError: that is so, naming the rows.
    """
    name = type(loss).__name__
    if "margin" in loss.statistics:
        bad = [row for row in rows if row.margin is None or row.margin < 0]
        what = f"{name} needs a margin of 0 or more, here "
        problems = [Problem(what + ("none" if row.margin is None else f"{row.margin}"), str(row.origin)) for row in bad]
        fix = "a column `margin` (--data.columns.margin NAME): by how much the chosen answer was found better"
    else:
        problems = [
            Problem(f"{name} compares pairs with one another: a weight of {row.weight} has no meaning", str(row.origin))
            for row in ([] if loss.weighted else rows)
            if row.weight != 1
        ]
        fix = "another loss, or rows without `weight`"
    if problems:
        raise UserError(ExitCode.DATA, problems, fix)


def tell_columns(loss: PairwiseLoss, name: str, rows: Sequence[EncodedPair]) -> None:
    """Say what becomes of the columns `weight` and `margin`."""
    weights = [row.weight for row in rows]
    if name == "train" and set(weights) != {1.0}:
        span = f"{min(weights):g} to {max(weights):g}"
        say(f"note: pairs count by their `weight`, {span}, in the loss; other measures count each once")
    if "margin" not in loss.statistics and any(row.margin is not None for row in rows):
        say(f"note: {name}: {type(loss).__name__} does not use the column `margin`")
