"""Compiled decoder layers: the same numbers, one graph for batches of every shape."""

import shutil

import pytest
import torch
from support.short_runs import fit, module, write_pairs
from torch._dynamo.utils import counters

from dpo_lightning.data.collate import PackedSharedPrefix
from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.pairs import EncodedPair
from dpo_lightning.errors import UserError
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.models.compilation import compile_layers
from dpo_lightning.models.lm_head import find_head

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def batch(*shapes):
    """Pairs of `(prompt, chosen, rejected)` lengths."""
    draw = torch.Generator().manual_seed(0)

    def answer(length):
        return EncodedAnswer(torch.randint(9, 99, (length,), generator=draw).tolist(), [True] * length)

    rows = [
        EncodedPair(Origin("x", k), answer(prompt).ids, (answer(chosen), answer(rejected)))
        for k, (prompt, chosen, rejected) in enumerate(shapes)
    ]
    return PackedSharedPrefix().collate(rows, range(len(rows)))


def sums_and_gradients(model, pairs):
    """What a step needs of a model."""
    sums = score(model, pairs, find_head(model)).sums
    return sums.detach(), torch.autograd.grad(sums.sum() + sums[0], list(model.parameters()))


@needs_compiler
def test_compiled_layers_compute_the_same_in_one_graph_for_every_shape(tiny_llama):
    torch._dynamo.reset()
    model = CausalLM(str(tiny_llama)).build().train()
    batches = [batch((8, 6, 5), (4, 3, 9)), batch((7, 9, 5), (12, 6, 4), (5, 3, 8)), batch((6, 11, 7))]
    expected = [sums_and_gradients(model, pairs) for pairs in batches]
    compile_layers(model)
    graphs = []
    for pairs, (sums, gradients) in zip(batches, expected, strict=True):
        found, others = sums_and_gradients(model, pairs)
        assert torch.allclose(found, sums, atol=1e-5)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, others, strict=True))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert len(set(graphs[1:])) == 1, graphs  # one tree, two trees or three


@needs_compiler
@pytest.mark.parametrize("lora", [False, True])
def test_a_compiled_run_trains(lora, tiny_llama, tmp_path, capsys):
    torch._dynamo.reset()
    made = module(tiny_llama, compile=True, lora=Lora(r=2) if lora else None)
    fit(made, write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "run")
    assert "self-check: passed" in capsys.readouterr().out
    assert counters["stats"]["unique_graphs"] > 0


def test_without_a_compiler_it_is_refused(tiny_llama, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        compile_layers(CausalLM(str(tiny_llama)).build())
