"""Tokens per second and peak memory of training steps, beside TRL on the same rows."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import count_values, layer_values, make_config, write_folder, write_pairs
from benchmarks.gpu.report import OUT_OF_MEMORY, Report
from benchmarks.gpu.runs import synchronize
from benchmarks.gpu.scratch import scratch_folder
from benchmarks.workers import Settings, Worker

SHAPES = [(128, 256), (512, 256), (2048, 256), (128, 1024), (512, 1024), (2048, 1024)]
"""Tokens of prompt and of each answer."""

ROWS = "rows.jsonl"

STEPS = 2
"""Steps that count; one before them warms up."""

AGAINST_TRL = 2.0
"""Goal: times the speed of TRL's best settings, for prompts of 512 tokens and more."""

SHARE = 0.5
"""Goal: share of the measured speed of matrix products, for the 8B model with an adapter."""


@dataclass(frozen=True)
class Side:
    """A trainer and its settings."""

    name: str
    side: str
    layouts: Sequence[str] = ("",)
    """Layouts that one process measures; the first one is the default."""

    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A model, the pairs of a step, and what is trained."""

    shape: str
    batch: int
    common: Mapping[str, Any]


OURS = Side("ours", "ours", ("", "Padded"))
COMPILED = Side("ours, compiled", "ours", options={"compiled": True})
TRL = Side("TRL", "trl", options={"checkpointing": True})
BEST = Side("TRL, precomputed", "trl", options={"precomputed": True})
PLANS = {
    "8B, LoRA": Plan("8B", 2, {"lora": 16, "dtype": "bfloat16", "checkpointing": True}),
    "1B": Plan("1B", 2, {}),
}
"""An adapter on bf16 weights with recomputed activations, and whole weights in float32 under bf16 autocast."""

ORDER = [
    ("8B, LoRA", OURS), ("8B, LoRA", BEST), ("1B", OURS), ("1B", BEST), ("1B", COMPILED), ("8B, LoRA", COMPILED),
    ("1B", TRL),
]  # fmt: skip
"""What has goals first: the time limit may leave out the rest."""


def measure(report: Report, device: str) -> None:
    """Run the sides of both models, one process at a time."""
    peak = product_speed(device)
    report.add("speed of bf16 matrix products, TFLOP/s", peak / 1e12)
    has_trl = importlib.util.find_spec("trl") is not None
    if not has_trl:
        report.add("TRL", "not installed, not compared")
    configs = {name: make_config("toy" if report.toy else plan.shape) for name, plan in PLANS.items()}
    shapes = [(prompt // 16, answer // 16) for prompt, answer in SHAPES[:2]] if report.toy else SHAPES
    speeds: dict[str, dict[tuple[str, tuple[int, int]], float]] = {name: {} for name in PLANS}
    with scratch_folder(2.2 * sum(map(count_values, configs.values()))) as folder:
        for name, side in ORDER[:4] if report.toy else ORDER:
            if side.side == "trl" and not has_trl:
                continue
            plan, config, model = PLANS[name], configs[name], folder / name
            if not model.exists():
                write_folder(model, config, device, torch.bfloat16)
                write_pairs(model / ROWS, shapes, plan.batch * (STEPS + 1), config.vocab_size)
                if device == "cuda":
                    torch.cuda.empty_cache()  # for the processes that follow
            run_side(report, device, f"{name}, {side.name}", side, plan, model, shapes, speeds[name])
            if side in (OURS, BEST):
                compare(report, name, plan, config, speeds[name], peak, side)


def run_side(
    report: Report,
    device: str,
    name: str,
    side: Side,
    plan: Plan,
    model: Path,
    shapes: Sequence[tuple[int, int]],
    speeds: dict[tuple[str, tuple[int, int]], float],
) -> None:
    """Take the steps of one process, short rows first, and report each shape."""
    longest = max(map(sum, shapes))
    options = {**plan.common, **side.options, "bf16": True, "accelerator": "gpu" if device == "cuda" else "cpu"}
    settings = Settings(side.side, str(model), str(model / ROWS), plan.batch, longest, 2, **options)
    with report.attempt(name):
        worker = Worker(settings)
        try:
            for shape in sorted(shapes, key=sum):
                first = 1 + shapes.index(shape) * plan.batch * (STEPS + 1)
                batches = [range(first + k * plan.batch, first + (k + 1) * plan.batch) for k in range(STEPS + 1)]
                for layout in side.layouts:
                    what = f"{name}{layout and f', {layout}'}, prompt {shape[0]}, answers {shape[1]}"
                    steps = [worker.step(batch, layout) for batch in batches][1:]
                    seconds = statistics.median(step["seconds"] for step in steps)
                    speeds[f"{side.name}{layout and f', {layout}'}", shape] = plan.batch / seconds
                    tokens = 2 * plan.batch * sum(shape) / seconds
                    memory = max(step["peak_mib"] for step in steps) / 1024
                    report.add(what, f"{tokens:,.0f} tokens/s, {plan.batch / seconds:.3g} pairs/s, {memory:.3g} GiB")
        except SystemExit as error:
            if worker.process.returncode == OUT_OF_MEMORY:
                raise MemoryError from None
            raise RuntimeError(str(error)) from None
        finally:
            worker.close()


def compare(
    report: Report,
    name: str,
    plan: Plan,
    config: Any,
    speeds: Mapping[tuple[str, tuple[int, int]], float],
    peak: float,
    side: Side,
) -> None:
    """Compare our best speed for each shape with that of matrix products, or with TRL's best."""
    for shape in sorted({shape for _, shape in speeds}):
        ours = {name: speed for (name, other), speed in speeds.items() if other == shape and name.startswith("ours")}
        theirs = [speed for (name, other), speed in speeds.items() if other == shape and name.startswith("TRL")]
        if not ours:
            continue
        best = max(ours, key=lambda name: ours[name])
        where = f"prompt {shape[0]}, answers {shape[1]}"
        if side == OURS:
            share = ours[best] * operations(config, shape, bool(plan.common.get("lora"))) / peak
            what = f"{name}: {best}, share of matrix products, {where}"
            if plan.shape == "8B":
                report.at_least(what, share, SHARE)
            else:
                report.add(what, share)
        elif theirs:
            goal = AGAINST_TRL if shape[0] >= 512 else 1.0
            report.at_least(f"{name}: {best}, times TRL's best, {where}", ours[best] / max(theirs), goal)


def operations(config: Any, shape: tuple[int, int], adapter: bool) -> float:
    """Count the operations of a pair that are needed once: each token's, its attention, and the scored logits.

    A forward pass of the policy and one of the reference; backward passes to inputs, and to weights without an adapter.
    """
    prompt, answer = shape
    tokens = prompt + 2 * answer
    seen = prompt * (prompt + 1) / 2 + 2 * (answer * prompt + answer * (answer + 1) / 2)
    width = config.num_attention_heads * config.head_dim
    layers = config.num_hidden_layers * (2 * layer_values(config) * tokens + 4 * seen * width)
    logits = 2 * config.vocab_size * config.hidden_size * 2 * answer
    return (layers + logits) * (3 if adapter else 4)


def product_speed(device: str) -> float:
    """Return the best of ten bf16 matrix products, in operations per second."""
    size = 8192 if device == "cuda" else 512
    one, other = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        one @ other
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
