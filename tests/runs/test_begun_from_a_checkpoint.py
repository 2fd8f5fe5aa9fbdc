"""A run that began from a checkpoint of another run, named by `--ckpt_path`, and was stopped."""

import torch
from safetensors.torch import load_file
from support.command_line import Bench


def test_the_same_command_goes_on_from_its_own_checkpoints(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, tiny_llama)
    assert bench.fit().code == 0
    named = ("--ckpt_path=run/checkpoints/last.ckpt", "--trainer.max_epochs=-1")
    assert bench.fit(*named, "--trainer.max_steps=3", out="further").code == 0
    ran = bench.fit(*named, "--trainer.max_steps=4", out="further")
    assert ran.code == 0, ran
    assert "continuing after step 3" in ran.out
    assert bench.fit(*named, "--trainer.max_steps=4", out="at-once").code == 0
    weights = [load_file(tmp_path / out / "final_model/model.safetensors") for out in ("further", "at-once")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
