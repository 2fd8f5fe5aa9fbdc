"""One step of this package alone: its share of the machine's matrix-product speed, its growth, and its profile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from dpo_lightning.batches import Batch
from dpo_lightning.data.collate import Collator, PackedSharedPrefix, Padded
from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.pairs import EncodedPair
from dpo_lightning.hardware import settle_memory
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.lm_head import causal_lm, find_head

SHAPES = {"pairs": (1, 2, 4, 8), "response": (64, 128, 256, 512), "prompt": (64, 128, 256, 512)}
"""What grows, in pairs or tokens, while the others stay: 2 pairs, responses and prompts of 128 tokens."""


@dataclass
class Step:
    """A policy whose loss is a sum of log-probabilities: what any preference loss costs."""

    path: str
    bf16: bool

    def __post_init__(self) -> None:
        """Load the policy, and settle memory as training does."""
        settle_memory(keep=True)
        self.policy = CausalLM(self.path).build().train()
        self.head = find_head(self.policy)

    def forward(self, batch: Batch) -> Tensor:
        """Chosen less rejected log-probabilities."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            sums = score(self.policy, batch, self.head).sums
        chosen, rejected = sums.chunk(2)
        return (chosen - rejected).sum()

    def __call__(self, batch: Batch) -> None:
        """Forward and backward."""
        self.forward(batch).backward()
        self.policy.zero_grad()

    def reference(self, batch: Batch) -> None:
        """Forward without a graph."""
        with torch.no_grad():
            self.forward(batch)


def useful_operations(step: Step, batch: Batch) -> float:
    """Operations of a forward pass over unique tokens: linear layers, attention to what is seen, scored logits."""
    model = causal_lm(step.policy)
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters() if p.ndim > 1) - embedding
    seen = 0
    for tree in batch.trees:
        seen += tree.trunk * (tree.trunk + 1) // 2
        seen += sum(n * tree.trunk + n * (n + 1) // 2 for n in tree.branches)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    attention = 4 * seen * width * config.num_hidden_layers
    return float(2 * body * int(batch.mask.sum()) + attention + 2 * embedding * len(batch.targets))


def synthetic(pairs: int, prompt: int, response: int, vocabulary: int) -> list[EncodedPair]:
    """Pairs of random tokens of one shape."""
    draw = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(vocabulary, (length,), generator=draw).tolist()

    def answer() -> EncodedAnswer:
        return EncodedAnswer(ids(response), [True] * response)

    return [EncodedPair(Origin("synthetic", k), ids(prompt), (answer(), answer())) for k in range(pairs)]


def timed(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of several pieces of work, one after the other `repeats` times; once more before that to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def share(path: str, rows: Sequence[EncodedPair], pairs: int, repeats: int, bf16: bool) -> dict[str, Any]:
    """The share of the best matrix product's speed that a step reaches.

    Args:
        path: the model.
        rows: pairs to take batches from.
        pairs: per batch.
        repeats: batches that count.
        bf16: mixed precision or float32.
    """
    step = Step(path, bf16)
    dtype = torch.bfloat16 if bf16 else torch.float32
    square = [torch.randn(2048, 2048, dtype=dtype) for _ in range(2)]
    output = causal_lm(step.policy).get_output_embeddings().weight.detach().to(dtype)
    hidden = torch.randn(512, output.shape[1], dtype=dtype)
    batches = [PackedSharedPrefix().collate(rows[k : k + pairs], range(pairs)) for k in range(0, len(rows), pairs)]
    speeds: dict[str, list[float]] = {"square": [], "head": [], "training": [], "reference": []}
    for k in range(repeats + 1):
        batch = batches[k % len(batches)]
        operations = useful_operations(step, batch)
        works: dict[str, tuple[Callable[[], Any], float]] = {
            "square": (lambda: square[0] @ square[1], 2 * 2048.0**3),
            "head": (lambda: hidden @ output.T, 2.0 * 512 * output.numel()),
            "training": (lambda: step(batch), 3 * operations),  # noqa: B023 - called at once
            "reference": (lambda: step.reference(batch), operations),  # noqa: B023
        }
        for name, (work, count) in works.items():
            start = time.perf_counter()
            work()
            if k:
                speeds[name].append(count / (time.perf_counter() - start) / 1e9)
    best = max(speeds["square"])
    medians = {f"{name}_gflops": statistics.median(values) for name, values in speeds.items()}
    whole = statistics.median(
        4 / (3 / training + 1 / reference)
        for training, reference in zip(speeds["training"], speeds["reference"], strict=True)
    )
    shares = {name: statistics.median(speeds[name]) / best for name in ("training", "reference")}
    return {"best_square_gflops": best, **medians, "shares": shares | {"step": whole / best}}


def growth(path: str, repeats: int, bf16: bool) -> dict[str, Any]:
    """Exponents of operations and seconds with the number of pairs, and the length of responses and of prompts."""
    step = Step(path, bf16)
    vocabulary = causal_lm(step.policy).config.get_text_config().vocab_size
    layouts: dict[str, Collator] = {"packed shared prefix": PackedSharedPrefix(), "padded": Padded()}
    found: dict[str, Any] = {}
    for what, sizes in SHAPES.items():
        for name, layout in layouts.items():
            batches = []
            for size in sizes:
                shape = {"pairs": 2, "prompt": 128, "response": 128} | {what: size}
                rows = synthetic(**shape, vocabulary=vocabulary)
                batches.append(layout.collate(rows, range(len(rows))))
            operations = [counted(step, batch) for batch in batches]
            works = {str(size): (lambda b=batch: step(b)) for size, batch in zip(sizes, batches, strict=True)}
            seconds = [statistics.median(values) for values in timed(works, repeats).values()]
            found[f"{name}, {what}"] = {
                "sizes": sizes,
                "operations": operations,
                "seconds": seconds,
                "exponent_of_operations": exponent(sizes, operations),
                "exponent_of_seconds": exponent(sizes, seconds),
            }
    return found


def counted(step: Step, batch: Batch) -> float:
    """Operations of matrix products in a step; torch does not count its fused attention for CPUs, so that is off."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(batch)
    return float(counter.get_total_flops())


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def profiled(path: str, rows: Sequence[EncodedPair], pairs: int, bf16: bool) -> dict[str, Any]:
    """Where the time of a step goes: the share of each operator, the second of two steps."""
    step = Step(path, bf16)
    batch = PackedSharedPrefix().collate(rows[:pairs], range(pairs))
    step(batch)
    with profile() as recorded:
        step(batch)
    events = [(event.key, event.self_cpu_time_total) for event in recorded.key_averages()]
    total = sum(time for _, time in events)
    top = sorted(events, key=lambda event: -event[1])[:14]
    return {"tokens": int(batch.mask.sum()), "seconds": total / 1e6, "shares": {key: t / total for key, t in top}}
