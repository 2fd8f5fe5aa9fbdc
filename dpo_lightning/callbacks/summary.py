"""The summary of a run: `metrics.json`, and a few lines for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.callbacks.final_model import FinalModel, count_left_out
from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.callbacks.optimizer_log import OptimizerLog
from dpo_lightning.callbacks.preference_accuracy import PreferenceAccuracy
from dpo_lightning.callbacks.ranked_rewards import RankedRewards
from dpo_lightning.callbacks.samples import Samples
from dpo_lightning.callbacks.token_loss import TokenLoss
from dpo_lightning.callbacks.unpaired_rewards import UnpairedRewards
from dpo_lightning.data.readers.left_out import BAD_ROWS
from dpo_lightning.folder_names import METRICS
from dpo_lightning.intervals import wilson
from dpo_lightning.log import logger
from dpo_lightning.runs.earlier_run import FINAL

COUNTED: dict[type[MeasureCallback], str] = {
    PreferenceAccuracy: "eval/pairs",
    RankedRewards: "eval/lists",
    TokenLoss: "eval/tokens",
    UnpairedRewards: "eval/answers",
}
"""Measures that count evaluated rows -> the name of the count in `metrics.json`; `eval/rows` for others."""


def evaluate_final(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> None:
    """Evaluate the weights of the final model, unless the last evaluation of the training was of them."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    measures = [callback for callback in callbacks if isinstance(callback, MeasureCallback)]
    put_back = any(isinstance(callback, FinalModel) and callback.best for callback in callbacks)
    if put_back or any(callback.logged_evaluation == trainer.global_step for callback in measures):
        trainer.loggers = []  # the curves have this step: of the last weights, or of an earlier attempt
    if put_back or not any(callback.evaluated_step == trainer.global_step for callback in measures):
        trainer.validate(module, datamodule=data, verbose=False)


def summarize(trainer: Trainer) -> None:
    """Write `metrics.json` into the run's folder and log the summary of the last evaluation."""
    if not trainer.is_global_zero:
        return
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    metrics: dict[str, Any] = {
        name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if name.startswith("eval/")
    }
    for callback in callbacks:
        if isinstance(callback, (MeasureCallback, OptimizerLog)):
            metrics |= callback.logged
    metrics["step"] = trainer.global_step
    final = next((callback for callback in callbacks if isinstance(callback, FinalModel)), FinalModel())
    best = final.best
    metrics |= {} if final.weights == "last" else {FINAL: final.weights}
    metrics |= {} if best is None else {"final_model_step": best.step}
    counted = [(name, c.evaluated) for c in callbacks for kind, name in COUNTED.items() if isinstance(c, kind)]
    others = [("eval/rows", c.evaluated) for c in callbacks if isinstance(c, MeasureCallback)]
    name, rows = max(counted or others, key=lambda one: one[1], default=("eval/rows", 0))
    metrics[name] = rows
    lines = ["", f"summary after {trainer.global_step} steps, {trainer.default_root_dir}"]
    lines += [] if best is None else [f"  final model         weights {best}"]
    if name == "eval/pairs" and "eval/rewards/accuracies" in metrics and rows:
        low, high = wilson(round(metrics["eval/rewards/accuracies"] * rows), rows)[1:]
        metrics["eval/rewards/accuracies_ci95"] = [low, high]
    lines += held_out_lines(metrics, rows)
    left_out = count_left_out(trainer)
    if left_out:
        metrics["left_out"] = left_out
        counts = ", ".join(f"{count:,} {name}" for name, count in left_out.items())
        lines.append(f"  bad rows left out   {counts} ({BAD_ROWS})")
    if "train/loss" in metrics:
        lines.append(f"  training loss       {metrics['train/loss']:.4f} over the last logged steps")
    for callback in callbacks:
        if isinstance(callback, Samples) and callback.drawn:
            lines += sample_lines(*callback.drawn[0])
    with open_atomic(Path(trainer.default_root_dir) / METRICS) as file:
        file.write(json.dumps(metrics, indent=1) + "\n")
    for line in lines:
        logger.info(line)


def held_out_lines(metrics: dict[str, Any], rows: int) -> list[str]:
    """Format the held-out measures of any kind of rows; return no lines without an evaluation."""
    if "eval/rewards/accuracies_ci95" in metrics:
        return preference_lines(metrics, rows)
    if "eval/rewards/best" in metrics:
        return ranking_lines(metrics, rows)
    if "eval/desirable" in metrics:
        return unpaired_lines(metrics, rows)
    if "eval/tokens" in metrics and "eval/loss" in metrics:
        return [f"  held-out loss       {metrics['eval/loss']:.4f} nats per token ({rows} tokens)"]
    return loss_lines(metrics)


def preference_lines(metrics: dict[str, Any], rows: int) -> list[str]:
    """Format accuracies and margins of pairs."""
    low, high = metrics["eval/rewards/accuracies_ci95"]
    known = metrics.get("eval/logps/ref_accuracies")  # a loss without a reference has none
    before = "" if known is None else f"{known:.3f} before, "
    score = "the loss's own score" if known is None else "implicit reward"
    nats = "" if known is None else f", {metrics['eval/logps/margins']:.3f} nats"
    return [
        f"  held-out accuracy   {metrics['eval/rewards/accuracies']:.3f} by {score}"
        f" (95 % interval {low:.3f} to {high:.3f}, {rows} pairs, {metrics['eval/rewards/ties']:.3f} ties)",
        f"  by likelihood       {before}{metrics['eval/logps/accuracies']:.3f} after",
        f"  margin              {metrics['eval/rewards/margins']:.4f} reward{nats}",
        *loss_lines(metrics),
    ]


def ranking_lines(metrics: dict[str, Any], lists: int) -> list[str]:
    """Format accuracies and margins of ranked lists."""
    return [
        f"  held-out order      {metrics['eval/rewards/accuracies']:.3f} of a list's pairs by implicit reward"
        f" ({lists} lists, {metrics['eval/rewards/ties']:.3f} ties)",
        f"  margin              {metrics['eval/rewards/margins']:.4f} reward, from the first answer to the last",
        *loss_lines(metrics),
    ]


def unpaired_lines(metrics: dict[str, Any], rows: int) -> list[str]:
    """Format mean rewards of good and of bad answers."""
    good = round(metrics["eval/desirable"] * rows)
    kinds = {"good": ("chosen", good), "bad": ("rejected", rows - good)}
    rewards = [
        f"{metrics[f'eval/rewards/{name}']:.4f} of {count} {kind} answers"
        for kind, (name, count) in kinds.items()
        if count
    ]
    known = metrics.get("eval/kl")  # only some losses measure it
    divergence = "" if known is None else f" (divergence {known:.4f} nats)"
    lines = [f"  held-out rewards    {', '.join(rewards)}", *loss_lines(metrics, divergence)]
    if "eval/rewards/margins" in metrics:
        lines.insert(1, f"  margin              {metrics['eval/rewards/margins']:.4f} reward")
    return lines


def loss_lines(metrics: dict[str, Any], more: str = "") -> list[str]:
    """Format the held-out loss; return no line where every held-out row has a weight of 0."""
    return [f"  held-out loss       {metrics['eval/loss']:.4f}{more}"] if "eval/loss" in metrics else []


def sample_lines(prompt: str, policy: str, reference: str) -> list[str]:
    """Format a prompt with the policy's and the reference's answer."""
    texts = {"prompt": prompt, "policy": policy} | ({"reference": reference} if reference else {})
    return [f"  {name:<20}{' '.join(text.split())}" for name, text in texts.items()]
