"""Optimizers and schedulers by the options of a config, and those that this package's training steps cannot use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import OneCycleLR, PolynomialLR, ReduceLROnPlateau

from dpo_lightning.errors import ExitCode, Problem, UserError, lacks_memory
from dpo_lightning.log import logger
from dpo_lightning.models.folder_files import is_adapter_folder
from dpo_lightning.schedules import WarmupSchedule, describe_idle_steps, describe_length
from dpo_lightning.sharding import is_split

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
    if any(parameter.dtype == torch.float16 for parameter in parameters):
        what = "float16 is not trained: small gradients and updates vanish in it"
        fix = "--model.policy.dtype float32 with --trainer.precision bf16-mixed, or 16-mixed on a GPU without bfloat16"
        raise UserError(ExitCode.CONFIG, Problem(what, "model.policy.dtype and trainer.precision"), fix=fix)
    options = optimizer.defaults
    what = ", ".join(f"`{name}` is {value}" for name, value in options.items() if not is_finite(value))
    if what:
        what += ", which is no number to compute with"
    elif isinstance(optimizer, LBFGS):
        what = "LBFGS computes the loss several times a step, which the sums over a step's micro-batches do not allow"
    elif isinstance(optimizer, SparseAdam):
        what = "SparseAdam takes sparse gradients, and those of a language model are dense"
    elif options.get("differentiable"):
        what = "`differentiable` is for gradients through the optimizer's step, which changes weights in place here"
    elif options.get("capturable") and on_cpu:
        what = "`capturable` is for graphs of a GPU"
    elif type(optimizer).__module__.startswith("bitsandbytes") and any(map(is_split, parameters)):
        what = "optimizers of bitsandbytes do not take parameters that are sharded over ranks"
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


def plan_schedules(trainer: Any) -> None:
    """Set the number of steps of schedules that follow the run's, once its batches are known.

    Raises:
        UserError: 64, a schedule would fail before the run ends.
    """
    steps = trainer.estimated_stepping_batches
    for scheduler in (each.scheduler for each in trainer.lr_scheduler_configs):
        if isinstance(scheduler, WarmupSchedule):
            scheduler.plan(steps)
            misfits = list(scheduler.find_misfits(steps))
        elif isinstance(scheduler, OneCycleLR) and scheduler.total_steps < steps:
            what = (
                f"a step after total_steps={scheduler.total_steps} would fail, and the run has {describe_length(steps)}"
            )
            fix = f"--{SCHEDULER}.total_steps {steps}" if math.isfinite(steps) else "--trainer.max_steps"
            if trainer.ckpt_path is not None:  # a run goes on with its own schedule only
                fix = "begin a new run from its weights: --model.policy.path RUN/final_model --output_dir ANOTHER"
            raise UserError(ExitCode.CONFIG, Problem(what, SCHEDULER), fix=fix)
        elif isinstance(scheduler, PolynomialLR) and scheduler.total_iters < steps:
            misfits = [f"total_iters={scheduler.total_iters}: {describe_idle_steps(scheduler.total_iters, steps)}"]
        else:
            misfits = []
        for misfit in misfits:
            logger.warning(f"{SCHEDULER}: {misfit}")


def check_options(module: Any, trainer: Any) -> None:
    """Try the options of a module's optimizer and scheduler on one small matrix, before any weights are loaded.

    Args:
        module: the module, without weights.
        trainer: the options of the trainer, which some commands do not make.

    Raises:
        UserError: as `make_optimizer` and `make_scheduler`.
    """
    spec = module.spec
    adapted = spec.lora is not None or is_adapter_folder(spec.path)  # peft keeps adapters in float32
    half = trainer.precision == "16-true" or (spec.dtype == "float16" and not adapted)
    weights = nn.Parameter(torch.zeros(2, 2, dtype=torch.float16 if half else torch.float32))
    tried = make_optimizer(module.optimizer, [weights], module.learning_rate, on_cpu=False)
    if module.lr_scheduler is not None:
        with warnings.catch_warnings(), blaming(SCHEDULER):
            warnings.simplefilter("ignore")  # of a step without one of the optimizer
            made = make_scheduler(module.lr_scheduler, tried)["scheduler"]
            if isinstance(made, WarmupSchedule) and trainer.max_steps < 0 and trainer.max_epochs == -1:
                made.plan(math.inf)
            made.step()


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


def is_settled_later(name: str, options: Mapping[str, Any]) -> bool:
    """Whether an option of an optimizer is left to its first step, as those of optimi leave what suits the weights."""
    return "kahan_sum" in options and (options[name] is None or name == "setup")


def is_finite(value: Any) -> bool:
    """Whether an option has no number that is infinite or NaN."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return all(math.isfinite(number) for number in several if isinstance(number, float))


def without_fusing(optimizer: Optimizer) -> None:
    """Make an optimizer step unfused: in fp16 a fused one unscales the gradients itself, after they were clipped."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        logger.info("optimizer: not fused, since fp16 gradients have to be unscaled before they are clipped")
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        for group in [optimizer.defaults, *optimizer.param_groups]:
            group["fused"] = False
