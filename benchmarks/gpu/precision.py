"""Which precision is chosen and why, fp16 with its scaler, and what float32 products are computed in."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.models import make_config, write_folder
from benchmarks.gpu.report import Report
from benchmarks.gpu.runs import make_run, make_trainer, record_losses, write_rows
from benchmarks.gpu.scratch import scratch_folder

FLOAT32 = 1e-6
"""Largest relative error of a float32 product; in TF32 it is 1e-4 and more."""


def measure(report: Report, device: str) -> None:
    """Report the choice, here and on a card without bf16, then train in fp16."""
    from dpo_lightning.hardware import choose_precision

    report.add("precision that is chosen", ", ".join(choose_precision(device)))
    with report.attempt("a card without bf16"):
        old = {"is_available": True, "device_count": 1, "get_device_capability": (7, 5), "get_device_name": "old card"}
        with mock.patch.multiple(torch.cuda, **{name: mock.Mock(return_value=value) for name, value in old.items()}):
            chosen = choose_precision("cuda")[0]
        report.add("precision on a card of compute capability 7.5", chosen, "16-mixed", chosen == "16-mixed")
    with report.attempt("float32 products"):
        report.add("torch.get_float32_matmul_precision", torch.get_float32_matmul_precision())
        report.at_most("error of a float32 product", product_error(device), FLOAT32)
    if device == "cpu":
        report.add("fp16 with a scaler", "not on a CPU")
        return
    with report.attempt("fp16 with a scaler"):
        train_in_fp16(report, device)


def product_error(device: str) -> float:
    """Return the relative error of a float32 matrix product."""
    one, other = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = (one.float().to(device) @ other.float().to(device)).double().cpu()
    exact = one.float().double() @ other.float().double()
    return float((found - exact).norm() / exact.norm())


def train_in_fp16(report: Report, device: str) -> None:
    """Train ten steps with a loss scale, which a step with infinite gradients lowers."""
    callback, losses = record_losses()
    with scratch_folder() as folder:
        model = write_folder(folder / "model", make_config("toy"), "cpu")
        module, data = make_run("pairs", model, write_rows(folder / "rows.jsonl", "pairs"))
        trainer: Any = make_trainer(folder, device, "16-mixed", 10, callback)
        trainer.fit(module, datamodule=data)
    report.at_most("fp16: starting loss less ln 2", abs(losses[0] - math.log(2)), 1e-6)
    finite = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    report.add("fp16: losses", f"{losses[0]:.4f} to {losses[-1]:.4f}", "finite, falling", finite)
    report.add("fp16: loss scale after ten steps", trainer.precision_plugin.scaler.get_scale())
