"""optimi's AdamW, which carries small updates of bfloat16 weights over: it trains, and its runs resume exactly."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import quiet_bench, refused
from support.run_results import find_difference, read_run

IN_BFLOAT16 = ("--model.policy.dtype=bfloat16", "--model.learning_rate=1e-5", "--trainer.max_epochs=4")
CARRYING = (*IN_BFLOAT16, "--model.optimizer=optimi.AdamW", "--model.optimizer.weight_decay=0")


@pytest.fixture
def bench(tmp_path, tiny_llama):
    return quiet_bench(tmp_path, tiny_llama)


def count_moved(run, start):
    """The share of weights that a run has changed."""
    (file,) = (run / "final_model").glob("model.safetensors")
    before, after = (load_file(path) for path in (start / "model.safetensors", file))
    moved = [(after[name] != value.to(after[name].dtype)).sum() for name, value in before.items()]
    return float(sum(moved) / sum(value.numel() for value in before.values()))


def test_small_updates_move_weights(bench, tiny_llama, tmp_path):
    carried = bench.fit(*CARRYING, out="carried")
    assert carried.code == 0, carried
    assert "were lost" not in carried.out
    lost = bench.fit(*IN_BFLOAT16, out="lost")
    assert "of the updates of bfloat16 weights were lost" in lost.out
    assert count_moved(tmp_path / "carried", tiny_llama) > 3 * count_moved(tmp_path / "lost", tiny_llama)


def test_a_resumed_run_is_the_one_that_was_not_stopped(bench, tmp_path):
    assert bench.fit(*CARRYING, out="whole").code == 0
    assert bench.fit(*CARRYING, "--trainer.max_steps=3", out="resumed").code == 0
    assert bench.fit(*CARRYING, "--trainer.max_steps=-1", out="resumed").code == 0
    whole, resumed = (read_run(tmp_path / name) for name in ("whole", "resumed"))
    assert find_difference(whole._replace(curves={}, metrics={}), resumed._replace(curves={}, metrics={})) == ""
    assert any(value.dtype == torch.bfloat16 for value in whole.weights.values())


def test_without_the_package_it_is_named(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimi", None)
    refused(
        bench.fit(*CARRYING),
        64,
        "the package optimi is not installed at model.optimizer",
        "pip install 'dpo-lightning[kahan]'",
    )
