"""Optimizers and schedulers by the options of a config, and those that this package's training steps cannot use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dpo_lightning.errors import ExitCode, Problem, UserError, lacks_memory
from dpo_lightning.log import logger

KEY = "model.optimizer"
SCHEDULER = "model.lr_scheduler"

MISTAKES = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError)
"""What optimizers and schedulers raise for options that they do not take."""


def make_optimizer(kind: Callable[..., Optimizer], parameters: list[Any], rate: float, *, on_cpu: bool) -> Optimizer:
    """An optimizer over the parameters that are trained.

    Raises:
        UserError: it does not take its options, or a step of this package is none that it can make.
    """
    with blaming(KEY):
        optimizer = kind(parameters, rate)
    options, what = optimizer.defaults, ""
    if isinstance(optimizer, LBFGS):
        what = "LBFGS computes the loss several times a step, which the sums over a step's micro-batches do not allow"
    elif isinstance(optimizer, SparseAdam):
        what = "SparseAdam takes sparse gradients, and those of a language model are dense"
    elif options.get("differentiable"):
        what = "`differentiable` is for gradients through the optimizer's step, which changes weights in place here"
    elif options.get("capturable") and on_cpu:
        what = "`capturable` is for graphs of a GPU"
    if what:
        raise UserError(ExitCode.CONFIG, Problem(what, KEY), fix=f"--{KEY} torch.optim.AdamW, or leave the option out")
    if getattr(optimizer, "is_paged", False) and on_cpu:
        logger.info("optimizer: its states are not paged, as they lie in the memory of the CPU anyway")
    return optimizer


def make_scheduler(kind: Callable[..., Any], optimizer: Optimizer) -> dict[str, Any]:
    """A scheduler, in Lightning's form for one that is stepped once per optimizer step.

    Raises:
        UserError: it does not take its options, or needs a measure at every step.
    """
    with blaming(SCHEDULER):
        scheduler = kind(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        what = "ReduceLROnPlateau needs a measure at every step, and held-out rows are not evaluated at each"
        raise UserError(
            ExitCode.CONFIG,
            Problem(what, SCHEDULER),
            fix=f"--{SCHEDULER} with one that depends on the step alone, such as LinearLR or CosineAnnealingLR",
        )
    return {"scheduler": scheduler, "interval": "step"}


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Turn what an optimizer or a scheduler raises for its options into an error that names the key."""
    try:
        yield
    except MISTAKES as error:
        if lacks_memory(error):
            raise
        reason = " ".join(next(iter(str(error).splitlines()), "").split()) or type(error).__name__
        raise UserError(ExitCode.CONFIG, Problem(reason, key), fix=f"--{key} with other options") from error


def without_fusing(optimizer: Optimizer) -> None:
    """Make an optimizer step unfused: in fp16 a fused one unscales the gradients itself, after they were clipped."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        logger.info("optimizer: not fused, since fp16 gradients have to be unscaled before they are clipped")
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        for group in [optimizer.defaults, *optimizer.param_groups]:
            group["fused"] = False
