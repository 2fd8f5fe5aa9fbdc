"""Are the numbers of this device those of float64 on the CPU, in every layout, precision and kind of training?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.models import FAMILIES, make_config, make_model, write_folder
from benchmarks.gpu.report import Report
from benchmarks.gpu.scratch import scratch_folder

FLOAT32, BF16 = 1e-5, 6e-2
"""Largest relative errors of losses and gradients; ten products in a row, of numbers with eight bits, give 1e-2."""

START, TRAJECTORY = 1e-6, 1e-3
"""Largest absolute differences: of the starting loss, and of the losses of the steps in float32."""

BETA = 0.1
STEPS = 10
LENGTHS = ((150, 40, 25), (3, 9, 130), (70, 1, 60), (128, 128, 128))
"""Tokens of prompt, chosen and rejected answer: shorter than a window, longer than it, and whole blocks."""


KERNELS = [(16, None, None), (64, 100, 2.0), (96, 100, None), (128, None, None), (256, None, None)]
"""Size of a head, window and softcap: each is compiled, forward and backward, in each data type."""


class Result(NamedTuple):
    """A loss and its gradient with respect to all weights, on the CPU in float64."""

    loss: float
    gradient: Tensor


def measure(report: Report, device: str) -> None:
    """Compare the starts and the first steps of runs, layouts, compiled layers, and attention kernels."""
    with report.attempt("runs"):
        compare_runs(report, device)
    for name, (kind, options) in FAMILIES.items():
        with report.attempt(name):
            compare_layouts(report, device, name, make_config("toy", kind, **options))
    with report.attempt("attention by blocks"):
        compare_attention(report, device)


def make_pairs(vocabulary: int) -> list[Any]:
    """Make pairs of random tokens of `LENGTHS`."""
    from dpo_lightning.data.examples import EncodedAnswer, Origin
    from dpo_lightning.data.kinds.pairs import EncodedPair

    draw = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(1, vocabulary, (length,), generator=draw).tolist()

    return [
        EncodedPair(
            Origin("pairs", line), ids(prompt), [EncodedAnswer(ids(length), [True] * length) for length in answers]
        )
        for line, (prompt, *answers) in enumerate(LENGTHS)
    ]


def compute(model: Any, batch: Any, head: Any, bf16: bool) -> Result:
    """Compute a DPO loss against a reference that gives every answer the same log-probability."""
    from dpo_lightning.logps import score

    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=bf16):
        sums = score(model, batch, head).sums
    return differentiate(model, *sums.chunk(2))


def compute_exactly(model: Any, pairs: Sequence[Any]) -> Result:
    """Compute the same by a plain call of the model for each answer, one sequence without padding at a time."""
    sums = []
    for place in (0, 1):
        for pair in pairs:
            ids = torch.tensor([*pair.prompt_ids, *pair.answers[place].ids])
            logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])
            sums.append(logps[len(pair.prompt_ids) - 1 :].sum())
    return differentiate(model, *torch.stack(sums).chunk(2))


def differentiate(model: Any, chosen: Tensor, rejected: Tensor) -> Result:
    """Return the loss of pairs and its gradient."""
    model.zero_grad()
    loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return Result(loss.item(), torch.cat([gradient.double().cpu().flatten() for gradient in gradients]))


def compare_layouts(report: Report, device: str, name: str, config: Any) -> None:
    """Compare every layout in float32 and bf16, eager and compiled, with padded rows in float64 on the CPU."""
    from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix
    from dpo_lightning.models.attention_backend import install
    from dpo_lightning.models.compilation import compile_layers
    from dpo_lightning.models.lm_head import find_head

    pairs = make_pairs(config.vocab_size)
    exact = make_model(config, "cpu").double()
    expected = compute_exactly(exact, pairs)
    for compiled in (False, True):
        model = make_model(config, "cpu")  # the same weights for every device
        model = model.to(device).train()
        reason = install(model)
        if reason:
            report.add(f"{name}: takes every layout", reason, passed=False)
            return
        head = find_head(model)
        if compiled:
            compile_layers(model)
        layouts = (Padded(), Packed(), SharedPrefix(), PackedSharedPrefix())
        for bf16, limit in ((False, FLOAT32), (True, BF16)):
            errors: dict[str, float] = {}
            what = f"{name}, {'bf16' if bf16 else 'fp32'}{', compiled' * compiled}"
            for layout in (layouts[0], layouts[-1]) if compiled else layouts:
                layout_name = type(layout).__name__
                with report.attempt(f"{what}, {layout_name}"):
                    batch = layout.collate(pairs, range(len(pairs))).to(device)
                    found = compute(model, batch, head, bf16)
                    apart = (found.gradient - expected.gradient).norm() / expected.gradient.norm()
                    errors[f"loss of {layout_name}"] = abs(found.loss - expected.loss) / expected.loss
                    errors[f"gradient of {layout_name}"] = float(apart)
            report.worst(what, errors, limit)
        if report.toy and name != next(iter(FAMILIES)):
            return  # compiling takes long on a CPU


def compare_attention(report: Report, device: str) -> None:
    """Compare FlexAttention and attention by pieces with softmax under the dense mask in float64."""
    from dpo_lightning.attention.flex import Forest, attend_by_blocks
    from dpo_lightning.attention.tree import AttentionParams, attend_by_pieces
    from dpo_lightning.batches import Tree

    trees = (Tree(0, 0, 200, (70, 3), (0, 1)), Tree(0, 273, 5, (130, 0), (2, 3)), Tree(1, 0, 0, (300, 50), (4, 5)))
    rows, width, draw = 2, 430, torch.Generator().manual_seed(0)
    errors: dict[tuple[str, torch.dtype], dict[str, float]] = {}
    for size, window, softcap in KERNELS:
        *parts, weights = (torch.randn(rows, heads, width, size, generator=draw) for heads in (6, 2, 2, 6))
        params = AttentionParams(size**-0.5, softcap=softcap, window=window)
        exact = attend_exactly(parts, weights, trees, params)
        for dtype in (torch.float32, torch.bfloat16):
            given = [part.to(device, dtype).requires_grad_() for part in parts]
            kernels: dict[str, Any] = {"by pieces": lambda q, k, v: attend_by_pieces(q, k, v, trees, params)}  # noqa: B023
            if device == "cuda":  # on a CPU it has no backward pass
                mask = Forest(trees, rows, width).block_mask(window, given[0].device)
                kernels["by blocks"] = lambda q, k, v: attend_by_blocks(q, k, v, mask, params.scale, softcap)  # noqa: B023
            for kernel, attend in kernels.items():
                case = f"head {size}, window {window}, softcap {softcap}"
                with report.attempt(f"attention {kernel}, {dtype}, {case}"):
                    found = weigh(attend(*given).transpose(1, 2), given, weights.to(given[0]), trees)
                    apart = max(relative_error(one, other) for one, other in zip(found, exact, strict=True))
                    errors.setdefault((kernel, dtype), {})[case] = apart
    for (kernel, dtype), cases in errors.items():
        what = f"attention {kernel}, {dtype}, values and gradients"
        report.worst(what, cases, FLOAT32 if dtype == torch.float32 else BF16)


def weigh(out: Tensor, parts: Sequence[Tensor], weights: Tensor, trees: Any) -> list[Tensor]:
    """Return the values of all tokens of trees, and the gradients of their weighted sum."""
    spans = [(tree.row, slice(tree.start, tree.start + tree.trunk + sum(tree.branches))) for tree in trees]
    real = torch.cat([out[row, :, span] for row, span in spans], 1)
    weight = torch.cat([weights[row, :, span] for row, span in spans], 1)
    return [real.detach(), *torch.autograd.grad((real * weight).sum(), parts)]


def attend_exactly(parts: Sequence[Tensor], weights: Tensor, trees: Any, params: Any) -> list[Tensor]:
    """Compute `weigh` of attention under the dense mask, in float64 on the CPU."""
    from dpo_lightning.attention.masks import tree_rule

    exact = [part.double().requires_grad_() for part in parts]
    query, key, value = exact
    rows, heads, width, _ = query.shape
    at = torch.meshgrid(torch.arange(rows), torch.arange(width), torch.arange(width), indexing="ij")
    sees = tree_rule(trees, rows, width, torch.device("cpu"), params.window)(at[0], at[0], at[1], at[2])
    keys, values = (part.repeat_interleave(heads // key.shape[1], 1) for part in (key, value))
    scores = query @ keys.mT * params.scale
    if params.softcap is not None:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    out = scores.masked_fill(~sees[:, None], -torch.inf).softmax(-1) @ values
    return weigh(out, exact, weights.double(), trees)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, as a share of the expected norm."""
    return float((found.detach().double().cpu() - expected).norm() / expected.norm())


def compare_runs(report: Report, device: str) -> None:
    """Train ten steps on pairs, unpaired rows and ranked lists: the starting loss, and the losses of a CPU."""
    from benchmarks.gpu.runs import KINDS, train, write_rows
    from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix

    with scratch_folder() as folder:
        model = write_folder(folder / "model", make_config("toy"), "cpu")
        for kind, start in KINDS.items():
            rows = write_rows(folder / f"{kind}.jsonl", kind)
            layouts = (Padded(), Packed(), SharedPrefix(), PackedSharedPrefix()) if kind == "pairs" else (None,)
            expected = train(kind, model, rows, folder, "cpu", "32-true", layouts[0], STEPS)
            for layout, precision in itertools.product(layouts, ("32-true", "bf16-mixed")):
                what = ", ".join([kind, *([type(layout).__name__] if layout else []), precision])
                with report.attempt(what):
                    losses = train(kind, model, rows, folder, device, precision, layout, STEPS)
                    report.at_most(f"{what}: starting loss less {start:.6f}", abs(losses[0] - start), START)
                    apart = max(abs(one - other) for one, other in zip(losses, expected, strict=True))
                    limit = TRAJECTORY if precision == "32-true" else BF16
                    report.at_most(f"{what}: losses of {STEPS} steps", apart, limit)
