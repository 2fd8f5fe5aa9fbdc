"""Loading a policy: what does not fit is refused by name, and what is silent in other trainers is not."""

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.tiny_models import change_json
from torch import nn

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import ORIGIN_FILE, CausalLM, Lora, save_model
from dpo_lightning.models.dropout import without_dropout


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory):
    """An adapter folder whose adapter was moved away from nothing."""
    folder = tmp_path_factory.mktemp("adapter")
    builder = CausalLM(str(tiny_llama), lora=Lora(r=2))
    model = builder.build()
    move(model)
    save_model(model, builder.tokenizer(), folder, str(tiny_llama))
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """An adapter folder of the test's own."""
    return shutil.copytree(trained, tmp_path / "adapter")


def move(model):
    """Change what is trained, as training would."""
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))


def refused(builder, code=ExitCode.MODEL):
    """The message with which a model is refused."""
    with pytest.raises(UserError) as raised:
        builder.build()
    assert raised.value.code == code
    assert raised.value.fix
    return str(raised.value)


# Whole models


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 3}, "9 missing weights, first: model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "9 unknown weights, first: model.layers.1.input_layernorm.weight"),
        ({"hidden_size": 32}, "misshapen weights, first: ('model.embed_tokens.weight'"),
        ({"tie_word_embeddings": False}, "1 missing weights, first: lm_head.weight"),
    ],
)
def test_weights_that_are_not_the_configs_are_named(folder, changes, told):
    change_json(folder / "config.json", **changes)
    message = refused(CausalLM(str(folder)))
    assert told in message
    assert str(folder) in message


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "x"},
        {"num_attention_heads": 0},
        {"hidden_act": "nothing"},
        {"rope_parameters": "nothing"},
        {"model_type": "nothing"},
        {"model_type": "t5"},
        {"model_type": None},
    ],
)
def test_a_config_that_makes_no_model(folder, changes):
    change_json(folder / "config.json", **changes)
    assert "cannot be loaded" in refused(CausalLM(str(folder)))


def test_a_size_below_1(folder):
    change_json(folder / "config.json", vocab_size=-1)
    assert "vocab_size is not above 0" in refused(CausalLM(str(folder)))


def test_lack_of_memory_is_not_taken_for_a_broken_folder(tiny_llama, monkeypatch):
    from transformers import AutoModelForCausalLM

    def fail(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(RuntimeError, match="allocate memory"):
        CausalLM(str(tiny_llama)).build()


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="it is there")
def test_a_kernel_that_is_not_installed(tiny_llama):
    message = refused(CausalLM(str(tiny_llama), attention="flash_attention_2"), ExitCode.CONFIG)
    assert "--model.policy.attention sdpa" in message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_come_in_the_precision_that_was_asked_for(tiny_llama, dtype):
    model = CausalLM(str(tiny_llama), dtype=dtype).build()
    assert {value.dtype for value in model.parameters()} == {getattr(torch, dtype)}


# Adapters


def test_an_adapter_goes_on_being_trained(tiny_llama, trained, capsys):
    policy = CausalLM(str(trained), lora=Lora(r=4)).build()
    assert "a trained adapter and is trained further" in capsys.readouterr().out
    stored = load_file(trained / "adapter_model.safetensors")
    kept = {name: value for name, value in policy.named_parameters() if value.requires_grad}
    assert len(kept) == len(stored)
    for name, value in stored.items():
        assert torch.equal(kept[name.replace(".weight", ".default.weight")], value)
    assert CausalLM(str(trained)).count_trained_values() == 0
    assert CausalLM(str(trained)).base_path() == str(tiny_llama)


def test_the_adapters_own_tokenizer_is_taken(adapter, chat_tokenizer):
    assert CausalLM(str(adapter)).tokenizer().chat_template == chat_tokenizer.chat_template
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert CausalLM(str(adapter)).tokenizer().chat_template == "{{ messages[0]['content'] }}"
    (adapter / "tokenizer_config.json").unlink()
    assert CausalLM(str(adapter)).tokenizer().chat_template == chat_tokenizer.chat_template


def test_an_adapter_of_another_base_of_the_same_shape(adapter, tmp_path):
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    message = refused(CausalLM(str(adapter)))
    assert "trained on another base" in message
    assert str(other) in message


def test_an_adapter_of_another_shape(adapter, tmp_path):
    other = tiny_models.save(
        tmp_path / "other", tiny_models.make_llama(hidden_size=32), tiny_models.make_chat_tokenizer()
    )
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    (adapter / ORIGIN_FILE).unlink()  # as an adapter that peft wrote
    assert str(adapter) in refused(CausalLM(str(adapter)))


@pytest.mark.parametrize("wrong", ["lora_X", "lora_A.default"])
def test_renamed_adapter_weights_are_not_ignored(adapter, wrong):
    file = adapter / "adapter_model.safetensors"
    save_file({name.replace("lora_A", wrong): value for name, value in load_file(file).items()}, file)
    message = refused(CausalLM(str(adapter)))
    assert "adapter weights do not match the model, first: base_model.model.model.layers.0" in message


def test_adapter_weights_that_are_left_out_are_missed(adapter):
    file = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "q_proj" not in name}, file)
    assert "4 adapter weights do not match the model" in refused(CausalLM(str(adapter)))


@pytest.mark.parametrize("base", [None, "", 3])
def test_an_adapter_without_a_base(adapter, base):
    change_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    assert "does not name its base" in refused(CausalLM(str(adapter)))


def test_an_adapter_whose_base_is_gone(adapter, tmp_path):
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in refused(CausalLM(str(adapter)), ExitCode.INPUT_MISSING)


@pytest.mark.parametrize(
    "changes", [{"peft_type": "nothing"}, {"r": "x"}, {"r": 3}, {"target_modules": ["nothing"]}, {"rank_pattern": 3}]
)
def test_an_adapter_config_that_makes_no_adapter(adapter, changes):
    change_json(adapter / "adapter_config.json", **changes)
    assert "cannot be loaded" in refused(CausalLM(str(adapter)))


def test_adapter_weights_that_are_damaged_missing_or_pickled(adapter):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "damaged" in refused(CausalLM(str(adapter)))
    file.unlink()
    assert f"missing at {file}" in refused(CausalLM(str(adapter)))
    (adapter / "adapter_model.bin").write_bytes(b"")
    assert "may run code" in refused(CausalLM(str(adapter)))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"r": 0}, "lora.r"),
        ({"lora_alpha": 0}, "lora.lora_alpha"),
        ({"lora_dropout": 1.0}, "lora.lora_dropout"),
        ({"lora_dropout": float("nan")}, "lora.lora_dropout"),
    ],
)
def test_ranges_of_an_adapters_options(options, key):
    with pytest.raises(UserError, match=key) as raised:
        Lora(**options)
    assert raised.value.code == ExitCode.CONFIG


def test_modules_that_the_model_does_not_have(tiny_llama):
    message = refused(CausalLM(str(tiny_llama), lora=Lora(target_modules=["nothing"])), ExitCode.CONFIG)
    assert "q_proj" in message
    lora = Lora(modules_to_save=["embed_tokens", "embed_tokans"])  # peft trains nothing for the second, silently
    assert "no module embed_tokans" in refused(CausalLM(str(tiny_llama), lora=lora), ExitCode.CONFIG)


# Dropout


def test_every_kind_of_dropout_is_silenced(tiny_llama, tmp_path):
    gpt2 = tiny_models.make_gpt2(dropout=0.5)
    llama = tiny_models.make_llama(attention_dropout=0.5)
    lora = CausalLM(str(tiny_llama), lora=Lora(r=2, lora_dropout=0.5)).build()
    for model in (gpt2, llama, lora):
        model.train()
        ids = torch.arange(40)[None]
        assert not torch.equal(model(ids).logits, model(ids).logits) or model is lora  # a fresh B hides it
        assert without_dropout(model) > 0
        assert without_dropout(model) == 0
        move(model)
        assert torch.equal(model(ids).logits, model(ids).logits)
        assert model.training
        assert not any(isinstance(part, nn.Dropout) and part.p for part in model.modules())
    assert gpt2.config.attn_pdrop == 0.5  # what is saved tells the model's own value
