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

from benchmarks.gpu.models import make_config, scratch_folder, write_folder, write_pairs
from benchmarks.gpu.report import Report
from benchmarks.workers import Settings, Worker

SHAPES = [(128, 256), (512, 256), (2048, 256), (128, 1024), (512, 1024), (2048, 1024)]
"""Tokens of prompt and of each answer."""

STEPS = 3
"""Steps that count; one more before them warms up, and one before that compiles."""

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
    """A model, what is trained of it, and the sides."""

    shape: str
    batch: int
    common: Mapping[str, Any]
    sides: Sequence[Side]


OURS = Side("ours", "ours", ("", "Padded"))
COMPILED = Side("ours, compiled", "ours", options={"compiled": True})
TRL = Side("TRL", "trl", options={"checkpointing": True})
BEST = Side("TRL, precomputed", "trl", options={"precomputed": True})
PLANS = {
    "1B": Plan("1B", 4, {}, (OURS, BEST, COMPILED, TRL)),
    "8B, LoRA": Plan("8B", 2, {"lora": 16, "dtype": "bfloat16", "checkpointing": True}, (OURS, BEST, COMPILED)),
}
"""Whole weights in float32 under bf16 autocast, and an adapter on bf16 weights with recomputed activations."""


def measure(report: Report, device: str) -> None:
    """Run the sides of both models, one process at a time."""
    peak = product_speed(device)
    report.add("speed of bf16 matrix products, TFLOP/s", peak / 1e12)
    has_trl = importlib.util.find_spec("trl") is not None
    if not has_trl:
        report.add("TRL", "not installed, not compared")
    for name, plan in PLANS.items():
        config = make_config("toy" if report.toy else plan.shape)
        shapes = [(prompt // 16, answer // 16) for prompt, answer in SHAPES[:2]] if report.toy else SHAPES
        with report.attempt(name), scratch_folder(2.2 * count_values(config)) as folder:
            model = write_folder(folder / "model", config, device, torch.bfloat16)
            if device == "cuda":
                torch.cuda.empty_cache()  # for the processes that follow
            places = write_pairs(folder / "rows.jsonl", shapes, plan.batch * (STEPS + 2), config.vocab_size)
            speeds: dict[tuple[str, tuple[int, int]], float] = {}
            for side in plan.sides[:2] if report.toy else plan.sides:
                if side.side == "ours" or has_trl:
                    run_side(report, device, f"{name}, {side.name}", side, plan, model, places, speeds)
            compare(report, name, plan, config, speeds, peak)


def run_side(
    report: Report,
    device: str,
    name: str,
    side: Side,
    plan: Plan,
    model: Path,
    places: Mapping[tuple[int, int], range],
    speeds: dict[tuple[str, tuple[int, int]], float],
) -> None:
    """Take the steps of one process, short rows first, and report each shape."""
    longest = max(prompt + answer for prompt, answer in places)
    options = {**plan.common, **side.options, "bf16": True, "accelerator": "gpu" if device == "cuda" else "cpu"}
    settings = Settings(side.side, str(model), str(model.parent / "rows.jsonl"), plan.batch, longest, 2, **options)
    with report.attempt(name):
        worker = Worker(settings)
        try:
            for shape, lines in sorted(places.items(), key=lambda item: sum(item[0])):
                batches = [lines[k : k + plan.batch] for k in range(0, len(lines), plan.batch)]
                for layout in side.layouts:
                    what = f"{name}{layout and f', {layout}'}, prompt {shape[0]}, answers {shape[1]}"
                    steps = [worker.step(batch, layout) for batch in batches][-STEPS:]
                    seconds = statistics.median(step["seconds"] for step in steps)
                    speeds[f"{side.name}{layout and f', {layout}'}", shape] = plan.batch / seconds
                    tokens = 2 * plan.batch * sum(shape) / seconds
                    memory = max(step["peak_mib"] for step in steps) / 1024
                    report.add(what, f"{tokens:,.0f} tokens/s, {plan.batch / seconds:.3g} pairs/s, {memory:.3g} GiB")
        except SystemExit as error:  # the process has ended, for lack of memory for instance
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
) -> None:
    """Compare our best speed for each shape with TRL's, and with the speed of matrix products."""
    for shape in sorted({shape for _, shape in speeds}):
        ours = {side: speed for (side, other), speed in speeds.items() if other == shape and side.startswith("ours")}
        theirs = [speed for (side, other), speed in speeds.items() if other == shape and side.startswith("TRL")]
        best = max(ours, key=lambda side: ours[side])
        where = f"prompt {shape[0]}, answers {shape[1]}"
        if theirs:
            goal = AGAINST_TRL if shape[0] >= 512 else 1.0
            report.at_least(f"{name}: {best}, times TRL's best, {where}", ours[best] / max(theirs), goal)
        share = ours[best] * operations(config, shape, bool(plan.common.get("lora"))) / peak
        if plan.shape == "8B":
            report.at_least(f"{name}: {best}, share of matrix products, {where}", share, SHARE)
        else:
            report.add(f"{name}: {best}, share of matrix products, {where}", share)


def count_values(config: Any) -> int:
    """Count the values of all matrices of a Llama-shaped model."""
    ends = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return ends + config.num_hidden_layers * layer_values(config)


def layer_values(config: Any) -> int:
    """Count the values of a layer's matrices."""
    heads = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return config.hidden_size * (2 * heads + 2 * keys + 3 * config.intermediate_size)


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


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
