"""What is told of a run's memory before it is loaded, against what is there when it is."""

from dataclasses import replace
from pathlib import Path

import pytest
from bitsandbytes.optim import AdamW8bit
from support import short_runs, tiny_models
from torch.optim import SGD, AdamW

from dpo_lightning.models.causal_lm import CausalLM, Lora, Quantization, save_model
from dpo_lightning.models.folder_checks import count_values
from dpo_lightning.runs.memory_estimate import MemoryEstimate, shapes_of

KINDS = {
    "llama": tiny_models.make_llama,
    "untied": lambda: tiny_models.make_llama(tie_word_embeddings=False),
    "gpt2": tiny_models.make_gpt2,
}
ADAPTERS = [
    None,
    Lora(r=2),
    Lora(r=4, use_dora=True),
    Lora(r=2, modules_to_save=["lm_head"]),
    Lora(init_lora_weights="pissa"),
]
BITS = [Quantization(), Quantization(double_quant=True), Quantization(bits=8)]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    return tiny_models.save(place, KINDS[request.param](), tiny_models.make_chat_tokenizer())


def held(model):
    """Bytes of a model's tensors, scales and tables of quantized ones included."""
    found = {}
    for name, value in model.state_dict().items():
        if not name.endswith(("weight_format", "quant_state.bitsandbytes__nf4")):
            found[value.data_ptr()] = value.numel() * value.element_size()
    return sum(found.values())


def a_run(model, **options):
    return MemoryEstimate(model, "32-true", **options)


def test_values_are_those_of_the_files(folder):
    assert shapes_of(CausalLM(str(folder))).values == count_values(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_exact(folder, dtype):
    run = a_run(CausalLM(str(folder), dtype=dtype))
    assert run.weights(run.shapes) == held(run.model.build())


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_quantized_weights_are_exact(bits, tiny_llama):
    """A nested scale has an offset of 4 bytes, which is not in the state dict as a tensor of its own."""
    run = a_run(CausalLM(str(tiny_llama), quantization=bits))
    offsets = 14 * 4 if bits.double_quant else 0
    assert run.weights(run.shapes) == held(run.model.build()) + offsets


@pytest.mark.parametrize("lora", ADAPTERS, ids=str)
def test_gradients_and_states_are_exact(folder, lora):
    model = CausalLM(str(folder), lora=replace(lora, r=2) if lora else None)
    built = model.build()
    trained = [value for value in built.parameters() if value.requires_grad]
    for value in trained:
        value.grad = value.detach().clone()
    for kind in (AdamW, SGD, AdamW8bit):
        optimizer = kind(trained, lr=1e-3)
        optimizer.step()
        run = a_run(model, optimizer=f"somewhere.{kind.__name__}")
        assert run.gradients() == sum(value.numel() * value.element_size() for value in trained)
        states = [state for value in trained for state in optimizer.state[value].items()]
        kept = sum(v.numel() * v.element_size() for k, v in states if k not in ("step", "qmap1", "qmap2"))
        assert run.states() == kept


def test_an_adapter_folder_counts_its_own_values(tiny_llama, tmp_path):
    made = short_runs.ready(tiny_llama, lora=Lora(r=3))
    save_model(made.policy, made.tokenizer, tmp_path, str(tiny_llama))
    further, new = (a_run(CausalLM(str(path), lora=lora)) for path, lora in ((tmp_path, None), (tiny_llama, Lora(r=3))))
    assert further.adapts
    assert sum(further.shapes.trained) == sum(new.shapes.trained)
    assert further.shapes.adapted == new.shapes.adapted
    assert further.total() == new.total()


def test_a_configuration_without_weights_is_enough(tmp_path):
    """13B: the numbers that a person would work out."""
    from transformers import LlamaConfig

    wide = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
    LlamaConfig(vocab_size=32000, tie_word_embeddings=False, **wide).save_pretrained(tmp_path)
    whole = a_run(CausalLM(str(tmp_path), dtype="bfloat16"), reference="copy")
    assert whole.shapes.values == 13_015_864_320
    parts = {part.name: part.bytes for part in whole.parts()}
    assert parts["weights"] == parts["gradients"] == parts["reference"] == 2 * 13_015_864_320
    assert parts["optimizer"] == 4 * 13_015_864_320
    qlora = MemoryEstimate(
        CausalLM(str(tmp_path), lora=Lora(), quantization=Quantization(double_quant=True), gradient_checkpointing=True),
        "bf16-mixed",
        "bitsandbytes.optim.PagedAdamW8bit",
        sequences=2,
        max_length=512,
    )
    assert sum(qlora.shapes.trained) == 62_586_880
    parts = {part.name: part.bytes for part in qlora.parts()}
    assert 6.5e9 < parts["weights"] < 8.5e9  # half a byte a weight, and 1.3 GB of embeddings and head in float32
    assert qlora.total() < 16e9


@pytest.fixture(scope="module")
def middling(tmp_path_factory):
    """A configuration in which weights and activations both count; it has no weights."""
    from transformers import LlamaConfig

    place = tmp_path_factory.mktemp("middling")
    wide = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8}
    LlamaConfig(vocab_size=8000, **wide).save_pretrained(place)
    return place


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize(
    "less",
    [
        {"lora": Lora(r=2), "reference": ""},
        {"lora": Lora(r=2), "reference": "", "quantization": Quantization(double_quant=True)},
        {"gradient_checkpointing": True},
        {"reference": ""},
        {"sequences": 2},
        {"max_length": 128},
        {"max_tokens": 512},
        {"optimizer": "AdamW8bit"},
        {"optimizer": "SGD"},
    ],
    ids=str,
)
def test_every_knob_takes_less(less, precision, middling):
    of_model = {name: less[name] for name in less if name in CausalLM.__dataclass_fields__}
    whole = MemoryEstimate(CausalLM(str(middling)), precision, reference="copy", sequences=8, max_length=256)
    rest = {name: less[name] for name in less if name not in of_model}
    other = replace(whole, model=replace(whole.model, **of_model), **rest)
    assert 0 < other.total() < whole.total()


def test_more_bits_and_eager_attention_take_more(tiny_llama):
    lora = CausalLM(str(tiny_llama), lora=Lora(r=2))
    totals = [a_run(replace(lora, quantization=bits)) for bits in (BITS[1], BITS[0], BITS[2], None)]
    weights = [run.weights(run.shapes) for run in totals]
    assert weights[1] < weights[2] < weights[3]
    assert a_run(replace(lora, attention="eager")).total() > a_run(lora).total()


def test_a_named_reference_is_counted_as_it_is(tiny_llama, tiny_gpt2):
    run = a_run(CausalLM(str(tiny_llama)), reference="model", other=str(tiny_gpt2))
    assert run.reference_weights() == 4 * count_values(Path(tiny_gpt2))
