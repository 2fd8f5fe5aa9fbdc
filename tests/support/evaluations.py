"""Evaluations of tiny models from the command line, and what two of them have to have in common."""

from __future__ import annotations

from typing import Any

import pytest

from support.command_line import Bench, Ran, run

SMALL = ("--precision", "32-true", "--accelerator", "cpu", "--max_new_tokens", 6, "--max_length", 128)
COUNTS = ("accuracy/reward", "ties/reward", "accuracy/likelihood", "accuracy/likelihood/reference", "ended")


def evaluate(bench: Bench, output: Any, *more: Any, model: Any = None, data: Any = None) -> Ran:
    """Evaluate the model of a run on its held-out rows, or others."""
    model = bench.folder / "run" / "final_model" if model is None else model
    data = bench.eval if data is None else data
    return run("evaluate", "--model", model, "--data", data, "--output", output, *SMALL, *more)


def check_same(one: Any, other: Any) -> None:
    """Check that two results have equal texts and counts, and equal numbers but for rounding."""
    for item, found in zip(one.items, other.items, strict=True):
        for name, value in item.items():
            if isinstance(value, float):
                assert found[name] == pytest.approx(value, abs=1e-4), name
            else:
                assert found[name] == value, name
    for name in COUNTS:
        assert other.summary["measures"][name] == one.summary["measures"][name]
