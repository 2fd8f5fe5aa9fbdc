"""Where the time of a training step goes: kernels, gaps between them, waits of the host, copies, compiled graphs."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import make_config, write_folder, write_pairs
from benchmarks.gpu.report import Report
from benchmarks.gpu.runs import make_trainer, synchronize
from benchmarks.gpu.scratch import scratch_folder

WARM, STEPS = 6, 4
"""Steps before the profile, in which kernels are compiled, and those that are profiled."""

SHAPES = [(prompt, answer) for prompt in (100, 300, 700, 1100) for answer in (60, 170, 410)]
"""Tokens of prompts and answers: no two batches have the same length."""


def measure(report: Report, device: str) -> None:
    """Profile DPO steps of whole weights, eager and with compiled layers."""
    config = make_config("toy" if report.toy else "1B")
    shapes = [(max(prompt // 8, 1), max(answer // 8, 2)) for prompt, answer in SHAPES] if report.toy else SHAPES
    with scratch_folder(4e9 if not report.toy else 0) as folder:
        model = write_folder(folder / "model", config, device, torch.bfloat16)
        rows = folder / "rows.jsonl"
        write_pairs(rows, shapes, 4, config.vocab_size)
        longest = max(prompt + answer for prompt, answer in shapes)
        for compiled in (False, True):
            name = "compiled" if compiled else "eager"
            with report.attempt(name):
                profile_steps(report, device, folder, model, rows, longest, name, compiled)


def profile_steps(
    report: Report, device: str, folder: Path, model: Path, rows: Path, longest: int, name: str, compiled: bool
) -> None:
    """Train, with a profile of the last steps."""
    from lightning.pytorch import Callback

    from dpo_lightning import DPOModule, PreferenceDataModule
    from dpo_lightning.models.causal_lm import CausalLM

    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    profiler = torch.profiler.profile(activities=activities)
    found: dict[str, Any] = {"graphs": 0, "seconds": 0.0}

    class Profile(Callback):
        """Profile the last steps, and record the waits of the host in them."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == WARM:
                synchronize(device)
                found["graphs"] = counters["stats"]["unique_graphs"]
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode("warn")
                profiler.__enter__()
                found["start"] = time.perf_counter()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            synchronize(device)
            found["seconds"] = time.perf_counter() - found["start"]
            profiler.__exit__(None, None, None)

    module = DPOModule(CausalLM(str(model), compile=compiled), learning_rate=1e-6)
    data = PreferenceDataModule(train=str(rows), batch_size=4, max_length=longest)
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        trainer = make_trainer(folder, device, "bf16-mixed", WARM + STEPS, Profile(), log_every_n_steps=1000)
        trainer.fit(module, datamodule=data)
    graphs = counters["stats"]["unique_graphs"] - found["graphs"]
    report.add(f"{name}: graphs compiled in {STEPS} steps of new lengths", graphs, "0", graphs == 0)
    report.add(f"{name}: graph breaks", sum(counters["graph_break"].values()))
    places = [
        f"{Path(wait.filename).name}:{wait.lineno}" for wait in waits if "called a synchronizing" in str(wait.message)
    ]
    report.add(f"{name}: waits of the host per step", len(places) / STEPS)
    for place in sorted(set(places)):
        report.add(f"{name}: the host waits at", f"{place}, {places.count(place)} times")
    summarize(report, name, profiler, found["seconds"], folder, device)


def summarize(report: Report, name: str, profiler: Any, seconds: float, folder: Path, device: str) -> None:
    """Add the share of time in kernels, the copies, and what took most time."""
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    copies = [event["name"] for event in events if event.get("cat") == "gpu_memcpy"]
    report.add(f"{name}: seconds per step", seconds / STEPS)
    if device == "cuda":
        busy = sum(event["dur"] for event in kernels) / 1e6 / seconds
        report.add(f"{name}: share of the time in which the GPU computes", busy)
        report.add(f"{name}: kernels per step", len(kernels) / STEPS)
        blocking = [copy for copy in copies if "HtoD" in copy and "Pageable" in copy]
        report.add(f"{name}: copies to the GPU from pageable memory, per step", len(blocking) / STEPS)
    self_time = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda event: -getattr(event, self_time))
    total = sum(getattr(event, self_time) for event in rows) or 1
    for event in rows[:8]:
        report.add(f"{name}: share of {event.key[:70]}", getattr(event, self_time) / total)
