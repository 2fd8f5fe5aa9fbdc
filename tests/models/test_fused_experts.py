"""Mixtures whose experts are fused into one tensor: LoRA, its recipe, resuming, exporting, and the router's loss."""

import json
import warnings

import pytest
import torch
from support import tiny_models
from support.command_line import CONFIGS, ON_CPU, QUIET, exported, json_lines, pairs, run
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.models.fused_experts import experts_one_by_one
from dpo_lightning.models.merging import probe_logits

SIZES = {
    "vocab_size": tiny_models.VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "num_experts_per_tok": 2,
}
MODELS = {
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """The folder of a tiny model."""
    kind, config, options = MODELS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = kind(config(**SIZES, **options))
    assert any(value.dim() == 3 for value in made.parameters())
    return tiny_models.save(tmp_path_factory.mktemp(request.param), made, tiny_models.make_chat_tokenizer())


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Pairs, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    return json_lines(tmp_path / "train.jsonl", pairs(8))


def fit(model, rows, *more, out="run"):
    """The recipe of LoRA as it is, on few rows."""
    return run(
        *("fit", "--config", CONFIGS / "dpo-lora.yaml", "--output_dir", out, "--model.policy.path", model),
        *("--data.train", rows, "--data.eval", "null", "--trainer.log_every_n_steps", 1, *QUIET, *ON_CPU, *more),
    )


def test_the_recipe_of_lora(model, rows, tmp_path):
    """With the router's loss; the run is resumed where it stopped, and exported as one model."""
    balanced = ("--model.policy.router_aux_loss_coef", 0.01, "--model.learning_rate", 1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        ran = fit(model, rows, *balanced)
    assert ran.code == 0, ran
    for line in ("lora_dropout is 0 here", "AdapterDisabled", "self-check: passed", "router loss: 0.01 x"):
        assert line in ran.out, ran.out
    assert json.loads((tmp_path / "run/final_model/adapter_config.json").read_text())["lora_dropout"] == 0
    assert fit(model, rows, *balanced, "--trainer.max_steps", 1, out="parts").code == 0
    ran = fit(model, rows, *balanced, "--ckpt_path", "parts/checkpoints/last.ckpt", out="resumed")
    assert ran.code == 0, ran
    trained, resumed = (CausalLM(str(tmp_path / run / "final_model")).build() for run in ("run", "resumed"))
    for (name, one), other in zip(trained.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name
    ran = exported("run/final_model", "whole")
    assert ran.code == 0, ran
    whole = AutoModelForCausalLM.from_pretrained("whole")
    ids = torch.randint(tiny_models.VOCAB, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = trained.eval()(input_ids=ids).logits, whole.eval()(input_ids=ids).logits
        before = AutoModelForCausalLM.from_pretrained(model).eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (before - expected).abs().max() > 1e-2


def test_experts_are_compared_in_float64(model):
    """Their grouped products take none: they are computed one by one meanwhile, with the same results."""
    made = CausalLM(str(model)).build()
    before = made.get_experts_implementation()
    logits = probe_logits(made)
    assert made.get_experts_implementation() == before != {"": "eager"}
    made.set_experts_implementation("eager")
    with experts_one_by_one(made):
        assert torch.equal(probe_logits(made), logits)
    assert made.get_experts_implementation() == {"": "eager"}


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "v_proj"]])
def test_dropout_of_adapters(model, target):
    """Only an adapter of the experts goes without."""
    policy = CausalLM(str(model), lora=Lora(r=2, target_modules=target)).build()
    assert policy.peft_config["default"].lora_dropout == (0 if target == "all-linear" else 0.05)
