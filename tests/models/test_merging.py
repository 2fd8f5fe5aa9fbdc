"""Merging: every kind of low-rank adapter, every tie of embeddings, and nothing lost between training and the file."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from support import tiny_models
from transformers import AutoModelForCausalLM

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.merging import (
    check_mergeable,
    check_shard_size,
    compare_logits,
    merge_adapter,
    probe_logits,
    retie,
    untie,
    write_model,
)


def base(folder, **options):
    """A tiny model's folder."""
    return tiny_models.save(folder / "base", tiny_models.make_llama(**options), tiny_models.make_chat_tokenizer())


def trained(base, folder, config):
    """An adapter that peft made and a few steps moved: its logits as they were trained, and its folder."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    ids = torch.randint(tiny_models.VOCAB, (2, 24))
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (-model(input_ids=ids).logits.float().softmax(-1)[..., :40].sum(-1).log().mean()).backward()
        optimizer.step()
    model.eval().save_pretrained(folder / "adapter")
    return probe_logits(model), folder / "adapter"


KINDS = {
    "plain": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "pissa": {"target_modules": "all-linear", "init_lora_weights": "pissa"},
    "olora": {"target_modules": "all-linear", "init_lora_weights": "olora"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "embedding, tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "whole both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "whole, tied": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4, 5]},
}
STAY_TIED = {"plain", "rslora", "dora", "pissa", "olora", "whole, tied", "embedding, tied", "tokens"}
"""Kinds that leave a tied embedding and its head equal."""


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:.*ensure_weight_tying.*")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_written_model_is_what_was_trained(kind, tied, tmp_path, capsys):
    """Merging in place changes both ends of a tie, where peft is left alone with it."""
    folder = base(tmp_path, tie_word_embeddings=tied)
    expected, adapter = trained(folder, tmp_path, LoraConfig(r=2, task_type="CAUSAL_LM", **KINDS[kind]))
    untouched = probe_logits(AutoModelForCausalLM.from_pretrained(folder))
    assert (expected - untouched).abs().max() > 0.1
    builder = CausalLM(str(adapter), attention="eager")
    model = merge_adapter(builder.build())
    out = tmp_path / "out"
    write_model(model, builder.tokenizer(), out, "float32", "5GB")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert (probe_logits(loaded) - expected).abs().max() < 1e-4
    stays = tied and kind in STAY_TIED
    assert loaded.config.tie_word_embeddings == stays
    stored = CausalLM(str(out)).build()
    assert (stored.lm_head.weight is stored.model.embed_tokens.weight) == stays
    assert ("written untied" in capsys.readouterr().out) == (tied and not stays)


@pytest.mark.parametrize("part", ["a rounding", 1e-6, 1e-4, 1e-3])
@pytest.mark.parametrize("end", ["embed_tokens", "lm_head"])
def test_the_least_difference_makes_two_of_a_tie(part, end, tmp_path, capsys):
    """No comparison of logits would see it: the probe may not even hold the token whose row was trained."""
    model = tiny_models.make_llama()
    untie(model)
    weight = model.get_submodule(end if end == "lm_head" else f"model.{end}").weight
    with torch.no_grad():
        weight[7, 3] = torch.nextafter(weight[7, 3], torch.tensor(9.0)) if part == "a rounding" else weight[7, 3] + part
    expected = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    retie(model)
    assert "written untied" in capsys.readouterr().out
    write_model(model, tiny_models.make_chat_tokenizer(), tmp_path, "float32", "5GB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not loaded.config.tie_word_embeddings
    assert torch.equal(loaded.get_input_embeddings().weight, expected[0])
    assert torch.equal(loaded.get_output_embeddings().weight, expected[1])


def test_every_module_of_a_tie_gets_weights_of_its_own():
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4)))
    model[1].weight = model[2].weight = model[0].weight
    before = [part.weight for part in model]
    untie(model)
    assert len({part.weight.data_ptr() for part in model}) == 4
    assert model[0].weight is before[0]
    assert model[3].weight is before[3]
    assert all(torch.equal(part.weight, old) for part, old in zip(model, before, strict=True))


def test_a_hardly_trained_head_is_not_lost(tmp_path):
    """Its change is smaller than what logits may differ by."""
    folder = base(tmp_path)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["lm_head"])
    )
    layer = model.base_model.model.lm_head
    torch.nn.init.constant_(layer.lora_B["default"].weight, 1e-6)
    head = layer.base_layer.weight + layer.get_delta_weight("default")
    model.save_pretrained(tmp_path / "adapter")
    found = merge_adapter(CausalLM(str(tmp_path / "adapter"), attention="eager").build())
    assert torch.equal(found.lm_head.weight, head)
    assert torch.equal(found.model.embed_tokens.weight, layer.base_layer.weight)
    assert 0 < (head - layer.base_layer.weight).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_plain_peft_would_lose_it(tmp_path):
    """Why ties are cut before: an adapter of a tied head that is merged in place changes the embedding as well."""
    folder = base(tmp_path)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["lm_head"])
    expected, adapter = trained(folder, tmp_path, config)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter))
    assert (probe_logits(plain.merge_and_unload()) - expected).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_and_no_more(dtype, tmp_path):
    folder = base(tmp_path)
    expected, adapter = trained(folder, tmp_path, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear"))
    builder = CausalLM(str(adapter), attention="eager")
    write_model(merge_adapter(builder.build()), builder.tokenizer(), tmp_path / "out", dtype, "5GB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)
    near = compare_logits(expected, probe_logits(loaded.float()), dtype)
    assert near.holds
    assert near.difference > 1e-4
    assert not compare_logits(expected, probe_logits(AutoModelForCausalLM.from_pretrained(folder)), dtype).holds


@pytest.mark.parametrize(("dtype", "near", "far"), [("float32", 9e-6, 1.1e-5), ("float16", 0.019, 0.021)])
def test_how_far_two_models_may_be_apart(dtype, near, far):
    """A part of the largest logit, whatever its size."""
    logits = torch.tensor([[[100.0, -3.0]]], dtype=torch.float64)
    assert compare_logits(logits, logits + 100 * near, dtype).holds
    assert not compare_logits(logits, logits + 100 * far, dtype).holds


def test_what_is_no_number_does_not_agree():
    logits = torch.ones(1, 1, 2)
    assert compare_logits(logits, logits, "float32").holds
    assert not compare_logits(logits, logits * torch.nan, "float32").holds
    assert not compare_logits(logits * 1e-3, logits * 1e-3 + 2e-4, "float32").holds


@pytest.mark.parametrize(
    ("largest", "dtype", "allowed"),
    [
        (50.0, "float32", 5e-4),  # a hundred-thousandth of the largest logit
        (50.0, "bfloat16", 5.0),
        (50.0, "float16", 1.0),
        (0.5, "float32", 1e-4),  # and never less than rounding is
        (0.0, "float16", 1e-4),
    ],
)
def test_how_far_logits_may_be_apart(largest, dtype, allowed):
    """By the largest of all, whichever sign it has, at one place of one position."""
    logits = torch.zeros(2, 3, 5, dtype=torch.float64)
    logits[1, 2, 4] = -largest
    for part, holds in ((0.99, True), (1.01, False)):
        other = logits.clone()
        other[0, 1, 3] -= part * allowed
        found = compare_logits(logits, other, dtype)
        assert found.allowed == pytest.approx(allowed)
        assert found.difference == pytest.approx(part * allowed)
        assert found.holds == holds
        assert str(found) == f"{part * allowed:.1e}, where {allowed:.1e} is allowed"


def refused(act):
    with pytest.raises(UserError) as raised:
        act()
    assert raised.value.code == ExitCode.MODEL
    assert raised.value.fix
    return str(raised.value)


def test_a_quantized_base_is_refused(tmp_path):
    """Merging into four bits rounds the adapter away."""
    folder = base(tmp_path)
    _, adapter = trained(folder, tmp_path, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace("{", '{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true},', 1)
    )
    for path in (adapter, folder):
        said = refused(lambda path=path: check_mergeable(CausalLM(str(path))))
        assert "weights are stored quantized" in said
        assert str(folder / "config.json") in said


def test_a_quantized_base_of_a_hub_is_refused(tmp_path, monkeypatch):
    """Only its configuration, once it is fetched, tells of it."""
    _, adapter = trained(base(tmp_path), tmp_path, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/model"}))
    monkeypatch.setattr(CausalLM, "config", lambda _: SimpleNamespace(quantization_config={"load_in_4bit": True}))
    said = refused(lambda: check_mergeable(CausalLM(str(adapter))))
    assert "base is quantized" in said
    assert "adapter_config.json" in said
    assert "base is quantized" in refused(lambda: check_mergeable(CausalLM("some/model")))


def test_a_learned_prompt_is_refused(tmp_path):
    folder = base(tmp_path)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    model.save_pretrained(tmp_path / "adapter")
    assert "learned prompt" in refused(lambda: check_mergeable(CausalLM(str(tmp_path / "adapter"))))


def test_what_peft_cannot_merge_is_refused(tmp_path):
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear", lora_bias=True)
    _, adapter = trained(base(tmp_path), tmp_path, config)
    policy = CausalLM(str(adapter), attention="eager").build()
    assert "the base layer has no bias" in refused(lambda: merge_adapter(policy))


def test_a_product_beyond_all_numbers_is_refused(tmp_path):
    """Each matrix of the adapter is finite."""
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear")
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base(tmp_path)), config)
    for name, value in policy.named_parameters():
        if ".lora_" in name:
            torch.nn.init.constant_(value, 1e30)
    assert "peft cannot merge this adapter" in refused(lambda: merge_adapter(policy))


def test_a_start_that_no_one_can_repeat_is_refused(tmp_path):
    """A random decomposition of the base is drawn anew at loading: another model, and peft says nothing."""
    folder = base(tmp_path)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights="pissa_niter_4")
    expected, adapter = trained(folder, tmp_path, config)
    torch.manual_seed(9)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter))
    assert (probe_logits(plain) - expected).abs().max() > 0.1
    assert "random decomposition" in refused(CausalLM(str(adapter)).build)


@pytest.mark.parametrize("text", ["5GB", "200MB", "1KB"])
def test_sizes_of_shards(text):
    assert check_shard_size(text) == text


@pytest.mark.parametrize("text", ["", "5", "0GB", "-1GB", "5gb", "5 GB", "many"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="not a size"):
        check_shard_size(text)
