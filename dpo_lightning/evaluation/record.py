"""What a model's record says of its last training stage: the reference, the loss, and the quantization of its base."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpo_lightning import losses
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.losses import DPOLoss, PairwiseLoss, PreferenceLoss
from dpo_lightning.models.causal_lm import Quantization
from dpo_lightning.models.folder_checks import looks_like_hub_id
from dpo_lightning.runs.lineage import UNRECORDED, Stage, folder_digest

REFERENCE = "reference"
NO_REFERENCE = "none"
EXPORT = "export"
LOSS = "loss"


@dataclass(frozen=True)
class Record:
    """The last training stage of a model.

    Attributes:
        stage: the stage; None for a model without a record.
    """

    stage: Stage | None

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> Record:
        """Choose the last training stage of those that made a model."""
        trained = [stage for stage in stages if stage.what != EXPORT]
        return cls(trained[-1] if trained and trained[-1].what != UNRECORDED else None)

    def find_reference(self) -> tuple[str | None, str]:
        """Return the path of the reference that the stage was trained with, and the reason in a few words.

        The path is None if the stage names no reference: it was no preference training.

        Raises:
            UserError: the reference is not there any more, or its weights have changed.
        """
        if self.stage is None:
            return None, "the model has no record of its training"
        named = self.stage.settings.get(REFERENCE)
        if named is None:
            return None, f"{self.stage.what} trains without a reference"
        other = named.partition(" ")[2]
        if Path(other).is_file():  # a file of log-probabilities, which records of earlier versions named
            other = ""
        path = other or str(self.stage.policy.get("path"))
        if Path(path).exists():
            self._check_unchanged(path, other)
        elif not looks_like_hub_id(path):
            raise UserError(
                ExitCode.INPUT_MISSING,
                Problem("the reference that the model's record names is not there", "--reference", path),
                fix="run in the folder where the model was trained, or --reference PATH, or --reference none",
            )
        return path, "named in the model's record"

    def _check_unchanged(self, path: str, other: str) -> None:
        start = self.stage.start if self.stage is not None and not other else ""
        if start and folder_digest(path) != start:
            what = "the weights of the reference are not those that the model's training started from"
            raise UserError(
                ExitCode.MODEL,
                Problem(what, "--reference", path),
                fix="--reference PATH names the model to compare with, --reference none compares with no model",
            )

    def make_loss(self, beta: float | None) -> PairwiseLoss:
        """Return the loss to report: that of the stage, if its value for a pair does not depend on other pairs.

        Args:
            beta: in place of the stage's.
        """
        loss = None if self.stage is None else parse_loss(self.stage.settings.get(LOSS, ""))
        if loss is not None:
            usable = not loss.statistics and loss.state is None and loss.accepts_weights
            if usable and beta is None:
                return loss
            if usable and beta is not None and isinstance(loss, PreferenceLoss):
                return replace(loss, beta=beta)
            reason = "has no beta" if usable else "needs more than sums of one pair"
            logger.info(f"note: {type(loss).__name__} {reason}: the loss of DPO is reported")
        return DPOLoss(beta=getattr(loss, "beta", 0.1) if beta is None else beta)

    def make_quantization(self) -> Quantization | None:
        """Return how the base of an adapter was quantized when it was trained; None if it was not."""
        options = None if self.stage is None else self.stage.policy.get("quantization")
        return Quantization(**options) if isinstance(options, Mapping) else None


def parse_loss(text: str) -> PairwiseLoss | None:
    """Make the loss whose `repr` a record has; None if it is not that of a loss of pairs."""
    try:
        found = _build(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, AttributeError, UserError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, PairwiseLoss) else None


def _build(node: ast.expr) -> Any:
    """Evaluate a literal, or a call of a class of `dpo_lightning.losses` with keywords.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    if not isinstance(node.func, ast.Name) or node.args or node.func.id not in losses.__all__:
        raise ValueError(ast.dump(node))
    return getattr(losses, node.func.id)(**{str(each.arg): _build(each.value) for each in node.keywords})
