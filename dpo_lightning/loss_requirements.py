"""Checks that a loss fits its reference and the rows' columns, before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_lightning.data.examples import Encoded
from dpo_lightning.data.kinds.pairs import EncodedPair
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.losses import PairwiseLoss
from dpo_lightning.losses.base import PolicyLoss
from dpo_lightning.references import REFERENCE_KEY, ReferenceFree, ReferencePolicy


def check_reference(loss: PolicyLoss, reference: ReferencePolicy | None) -> None:
    """Refuse a reference that the loss does not use, and `ReferenceFree` for a loss that needs a reference.

    Raises:
        UserError: loss and reference do not fit.
    """
    if reference is None or loss.reference_free == isinstance(reference, ReferenceFree):
        return
    name, given = type(loss).__name__, type(reference).__name__
    what = (
        f"{name} does not use a reference; {given} would only take memory"
        if loss.reference_free
        else (f"{name} compares the policy with a reference; {given} has none")
    )
    raise UserError(ExitCode.CONFIG, Problem(what, REFERENCE_KEY), fix=f"leave --{REFERENCE_KEY} out")


def check_columns(loss: PolicyLoss, rows: Sequence[Encoded], name: str = "train") -> None:
    """Refuse rows without a margin for a loss that needs one, and weights that cannot be used or leave nothing.

    Raises:
        UserError: rows lack a margin, or have weights that the loss cannot use; it names them.
    """
    _check_margins(loss, rows)
    kind = type(loss).__name__
    problems = [
        Problem(f"{kind} compares pairs with one another and cannot use a weight of {row.weight}", str(row.origin))
        for row in ([] if not isinstance(loss, PairwiseLoss) or loss.accepts_weights else rows)
        if row.weight != 1
    ]
    if problems:
        raise UserError(ExitCode.DATA, problems, "another loss, or rows without `weight`")
    if name == "train":
        check_weights(rows)


def check_weights(rows: Sequence[Encoded]) -> None:
    """Refuse training rows that all have a weight of 0.

    Raises:
        UserError: there are rows, and no weight is above 0.
    """
    if rows and not any(row.weight for row in rows):
        what = f"all {len(rows):,} training rows have a `weight` of 0: nothing would be trained"
        raise UserError(
            ExitCode.DATA,
            Problem(what, str(rows[0].origin)),
            fix="give the rows a `weight` above 0, or remove the column",
        )


def _check_margins(loss: PolicyLoss, rows: Sequence[Encoded]) -> None:
    if "margin" not in loss.statistics:
        return
    above = isinstance(loss, PairwiseLoss) and loss.needs_positive_margin
    margins = [(row, row.margin) for row in rows if isinstance(row, EncodedPair)]
    what = f"{type(loss).__name__} needs a margin {'above 0' if above else 'of 0 or more'}, here "
    problems = [
        Problem(what + ("none" if margin is None else f"{margin}"), str(row.origin))
        for row, margin in margins
        if margin is None or margin < 0 or (above and margin == 0)
    ]
    if problems:
        fix = "a column `margin` (--data.columns.margin NAME): by how much the chosen answer is better"
        raise UserError(ExitCode.DATA, problems, fix)


def report_columns(loss: PolicyLoss, name: str, rows: Sequence[Encoded]) -> None:
    """Report how the columns `weight` and `margin` are used."""
    if name == "train":
        report_weights(rows)
    if "margin" not in loss.statistics and any(isinstance(row, EncodedPair) and row.margin is not None for row in rows):
        logger.info(f"note: {name}: {type(loss).__name__} does not use the column `margin`")


def report_weights(rows: Sequence[Encoded]) -> None:
    """Report the range of the training rows' weights and where they count."""
    weights = [row.weight for row in rows]
    if set(weights) - {1.0}:
        span = f"{min(weights):g} to {max(weights):g}"
        logger.info(
            f"note: {rows[0].noun} count by their `weight`, {span}, in the loss; other measures count each once"
        )
