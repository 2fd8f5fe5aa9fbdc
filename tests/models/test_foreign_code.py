"""Every key of a model folder that decides what is run or read: each alone is refused, and harmless values are not."""

from pathlib import Path

import pytest

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.foreign_code import ANYWHERE, OF_ADAPTERS, check_rules, check_special_tokens

WHERE = Path("folder/config.json")
KEYS = {
    "auto_map custom_pipelines custom_generate": {"a": "evil/repo--code.Model"},
    "attn_implementation _attn_implementation _attn_implementation_internal": "evil/kernel",
    "experts_implementation _experts_implementation _experts_implementation_internal": "evil/kernel",
    "quantization_config": {"quant_method": "gptq"},
    "configuration_files fast_tokenizer_files transformers_weights gguf_file backbone init_inputs": "other",
    "dtype torch_dtype": "load",
    "tokenizer_class": "pipeline",
}
"""Keys of any file, each with a value that is refused."""

ADAPTER_KEYS = {
    "auto_mapping": {"parent_library": "antigravity"},
    "init_lora_weights": "corda",
    "megatron_config layer_replication corda_config lora_ga_config arrow_config use_bdlora velora_config": [1],
    "alora_invocation_tokens monteclora_config kasa_config runtime_config custom_module_mapping": [1],
    "_custom_modules adapters tokenizer_name_or_path tokenizer_kwargs prompt_tuning_init_state_dict_path": [1],
}
"""Those of an adapter's configuration."""

HARMLESS = {
    "auto_map": (None, {}, []),
    "gguf_file": ("", None),
    "custom_generate": (False,),
    "attn_implementation": (None, "sdpa", "paged|eager", {"": "sdpa", "text_config": None}),
    "quantization_config": (None,),
    "dtype": (None, "auto", "half", "double", "bfloat16", "float8_e4m3fn", "uint8", {"": "float32", "vision": None}),
    "torch_dtype": ("torch.float16",),
    "tokenizer_class": (None, "LlamaTokenizer", "LlamaTokenizerFast", "TokenizersBackend"),
    "num_hidden_layers": (4096, 4096.0, "many", None),
}
HARMLESS_IN_ADAPTERS = {
    "auto_mapping": (None, {}, "text", {"parent_library": None}, {"parent_library": "transformers.models.llama"}),
    "init_lora_weights": (None, True, "default", "gaussian", "orthogonal", "mica", "olora", "eva", "pissa"),
    "arrow_config": (None, {}),
}
HARMFUL = {
    "auto_map": (1, "x"),
    "attn_implementation": (1, ["sdpa"], {"": "sdpa", "text_config": "evil/kernel"}),
    "quantization_config": ({}, False),
    "dtype": (1, ["float32"], "torch.load", {"": "float32", "vision": "load"}),
    "tokenizer_class": (1, ["LlamaTokenizer"], "AutoTokenizer", "RagTokenizer", "RagTokenizerFast"),
    "layers": (4097,),
    "n_layer": (4097, 1e300),
    "experts": (4097,),
    "num_expert": (10**30,),
}


def pairs(table):
    """Each key with each value."""
    return [(key, value) for key, values in table.items() for value in values]


def keys(table):
    """Each key with the value of its line."""
    return [(key, value) for several, value in table.items() for key in several.split()]


@pytest.mark.parametrize(("key", "value"), [*keys(KEYS), *pairs(HARMFUL)])
def test_a_key_is_refused_wherever_it_stands(key, value):
    for content in ({key: value}, {"text_config": {key: value}}, {"parts": [1, [{"deeper": {key: value}}]]}):
        with pytest.raises(UserError, match="at folder/config") as raised:
            check_rules(content, ANYWHERE, WHERE)
        assert raised.value.code == ExitCode.MODEL


@pytest.mark.parametrize(("key", "value"), [*keys(ADAPTER_KEYS), ("auto_mapping", {"parent_library": "transformersx"})])
def test_a_key_of_an_adapter_is_refused(key, value):
    with pytest.raises(UserError, match=key):
        check_rules({key: value}, OF_ADAPTERS, WHERE)


@pytest.mark.parametrize(("key", "value"), [*pairs(HARMLESS), *pairs(HARMLESS_IN_ADAPTERS)])
def test_a_value_that_names_nothing_foreign_is_not(key, value):
    check_rules({key: value, "parts": [{key: value}]}, ANYWHERE + OF_ADAPTERS, WHERE)


def test_a_map_of_special_tokens_holds_tokens_alone():
    check_special_tokens({"eos_token": "</s>", "additional_special_tokens": ["<x>"]}, WHERE)
    with pytest.raises(UserError, match="this key is not a special token") as raised:
        check_special_tokens({"eos_token": "</s>", "tokenizer_file": "/etc/hostname"}, WHERE)
    assert raised.value.problems[0].text == "tokenizer_file"
