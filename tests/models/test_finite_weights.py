"""Weights of a folder that are NaN or infinite: found while the model loads."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.command_line import Bench, refused

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import CausalLM, Quantization

NAME = "model.layers.1.mlp.up_proj.weight"


def spoil(folder, value, name=NAME):
    """Set one weight of a folder."""
    file = folder / "model.safetensors"
    state = load_file(file)
    state[name][0, 3] = value
    save_file(state, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [NAME, "model.embed_tokens.weight"])
def test_a_weight_that_is_not_finite_is_refused(value, name, folder):
    with pytest.raises(UserError) as raised:
        CausalLM(str(spoil(folder, value, name))).build()
    assert raised.value.code == ExitCode.MODEL
    assert f"first: {name} (float32) at model.policy.path" in str(raised.value)


def test_weights_whose_sum_overflows_are_accepted(folder):
    state = load_file(folder / "model.safetensors")
    state[NAME][:] = 3e38
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    CausalLM(str(folder)).build()


def test_weights_beyond_float16_are_refused_with_the_precisions_that_hold_them(folder):
    spoil(folder, 1e5)
    CausalLM(str(folder)).build()
    with pytest.raises(UserError, match="dtype bfloat16 or float32"):
        CausalLM(str(folder), dtype="float16").build()


def test_a_base_is_checked_in_four_bits_too(tmp_path):
    folder = tiny_models.save(
        tmp_path, tiny_models.make_llama(hidden_size=64, intermediate_size=64), tiny_models.make_chat_tokenizer()
    )
    builder = CausalLM(str(folder), quantization=Quantization())
    assert isinstance(builder.build(), torch.nn.Module)
    spoil(folder, math.nan)
    with pytest.raises(UserError, match="NaN or infinite"):
        builder.build()


def test_a_run_is_refused_and_no_learning_rate_blamed(folder, tmp_path, monkeypatch):
    """Though its reference is another model."""
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, spoil(folder, math.nan))
    ran = bench.fit()
    refused(ran, ExitCode.MODEL, "NaN or infinite", NAME)
    assert "learning_rate" not in ran.err
    assert not (tmp_path / "run").exists()


def test_a_reference_is_checked_too(folder, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = Bench(tmp_path, tiny_llama).fit(
        "--model.reference=FrozenCopy", f"--model.reference.path={spoil(folder, math.nan)}"
    )
    refused(ran, ExitCode.MODEL, "NaN or infinite", NAME)
