"""Which models are switched to our attention, which are not and why, and that nothing else changes for either."""

import json
from types import SimpleNamespace

import pytest
import torch
from support import short_runs, tiny_models
from support.batch_layouts import LAYOUTS, TREES
from support.model_families import FAMILIES, PAIRS, REFUSED, make
from torch.nn.attention.flex_attention import flex_attention

from dpo_lightning.attention import flex
from dpo_lightning.attention.flex import Forest
from dpo_lightning.attention.tree import AttentionParams, tree_attention
from dpo_lightning.batches import Tree
from dpo_lightning.data.collate import PackedSharedPrefix, Padded
from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import token_logps
from dpo_lightning.models import attention_backend as model_attention
from dpo_lightning.models.attention_backend import ATTENTION_NAME, attention, install, takes_trees
from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model
from dpo_lightning.models.generation import answer
from dpo_lightning.models.lm_head import find_head
from dpo_lightning.models.probe import FLOAT32_TOLERANCE, HALF_TOLERANCE, evaluation_mode, rounding_tolerance
from dpo_lightning.sampling import Sampling


def logps(model, layout=None, head=None):
    """Of every scored token."""
    with torch.no_grad():
        return token_logps(model.eval(), (layout or Padded()).collate(PAIRS, range(len(PAIRS))), head).values


# Models that are switched


@pytest.mark.parametrize("family", FAMILIES)
def test_a_switched_model_takes_trees_and_its_padded_rows_stay_as_they_were(family):
    model = make(family)
    before = logps(model)
    assert not takes_trees(model)
    assert install(model.train()) == ""
    assert takes_trees(model)
    assert model.training
    assert torch.equal(logps(model), before)
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma2"])
def test_plain_rows_are_bit_identical_to_sdpa(family, mixed, side):
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        model = make(family)
        assert model.config._attn_implementation == "sdpa"
        padded = Padded(16, side)
        before = logps(model, padded)
        whole = model(torch.arange(24).reshape(2, 12)).logits
        assert install(model) == ""
        assert torch.equal(logps(model, padded), before)
        assert torch.equal(model(torch.arange(24).reshape(2, 12)).logits, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama", "mistral"])
def test_models_in_half_precision_are_switched_as_well(family, dtype):
    model = make(family).to(dtype)
    expected = logps(model)
    assert install(model) == ""
    for name in TREES:
        assert (logps(model, LAYOUTS[name]) - expected).abs().max() < 0.15, name


GREEDY = Sampling(max_new_tokens=12, temperature=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_switched_model_answers_as_before(family, chat_tokenizer):
    prompts = ([40], [7, 30, 41, 9, 11], [5] * 20, [60, 61, 62])
    model = make(family)
    expected = answer(model, chat_tokenizer, prompts, GREEDY, frozenset([2]))
    assert len(set(expected)) >= 3
    assert install(model) == ""
    assert answer(model, chat_tokenizer, prompts, GREEDY, frozenset([2])) == expected
    drawn = Sampling(12, temperature=1.0, seed=3)
    assert answer(model, chat_tokenizer, prompts, drawn, frozenset([2])) == answer(
        make(family), chat_tokenizer, prompts, drawn, frozenset([2])
    )


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_what_is_saved_does_not_tell_of_our_attention(lora, tiny_llama, chat_tokenizer, tmp_path):
    builder = CausalLM(str(tiny_llama), lora=lora)
    model = builder.build()
    assert takes_trees(model if lora is None else model.get_base_model())
    save_model(model, chat_tokenizer, tmp_path, str(tiny_llama))
    saved = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*config.json")}
    assert ("adapter_config.json" if lora else "config.json") in saved
    assert not [name for name, content in saved.items() if ATTENTION_NAME in map(str, content.values())]
    assert not [name for name, content in saved.items() if any("attn_implementation" in key for key in content)]
    if lora is None:
        again = CausalLM(str(tmp_path), attention="sdpa").build()
        assert again.config._attn_implementation == "sdpa"


@pytest.fixture
def by_blocks(monkeypatch):
    """Take FlexAttention, which is for CUDA devices, here as well, where it runs without being compiled."""
    called = []

    def kernel(*args, **options):
        called.append(options["block_mask"])
        return flex_attention(*args, **options)

    monkeypatch.setattr(model_attention, "BY_BLOCKS", {"cpu"})
    monkeypatch.setattr(model_attention, "SMALLEST_HEAD", 8)
    monkeypatch.setattr(flex, "compiled_kernel", lambda: kernel)
    return called


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 5.0}, {"sliding_window": 4}, {"sliding_window": 2, "softcap": 2.0}]
)
def test_blocks_are_the_same_attention(options, by_blocks):
    trees = (Tree(0, 0, 6, (2, 3), (0, 1)),)
    query, key, value = torch.randn(3, 1, 2, 11, 8, generator=torch.Generator().manual_seed(0))
    found, _ = attention(torch.nn.Module(), query, key, value, None, trees=Forest(trees, 1, 11), **options)
    assert len(by_blocks) == 1
    expected = tree_attention(
        query, key, value, trees, AttentionParams(8**-0.5, 0.0, options.get("softcap"), options.get("sliding_window"))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("enabled", [True, False])
def test_blocks_compute_in_the_precision_of_autocast(enabled, by_blocks):
    """Layers in 4 bits return float32 also under autocast."""
    trees = (Tree(0, 0, 6, (2, 3), (0, 1)),)
    query, key, value = torch.randn(3, 1, 2, 11, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        found, _ = attention(torch.nn.Module(), query, key, value, None, trees=Forest(trees, 1, 11))
    assert found.dtype == (torch.bfloat16 if enabled else torch.float32)


@pytest.mark.parametrize(("size", "dropout"), [(8, 0.5), (4, 0.0)])
def test_neither_dropout_nor_small_heads_are_computed_by_blocks(size, dropout, by_blocks):
    trees = (Tree(0, 0, 6, (2, 3), (0, 1)),)
    query, key, value = torch.randn(3, 1, 2, 11, size, generator=torch.Generator().manual_seed(0))
    attention(torch.nn.Module(), query, key, value, None, trees=Forest(trees, 1, 11), dropout=dropout)
    assert not by_blocks


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("trees", [None, Forest((Tree(0, 0, 6, (2, 3), (0, 1)),), 1, 11)])
def test_a_layer_that_names_no_scale_divides_by_the_root_of_its_width(trees, softcap):
    query, key, value = torch.randn(3, 1, 2, 11, 8, generator=torch.Generator().manual_seed(0))
    options = {"trees": trees, "softcap": softcap}
    module = torch.nn.Module()
    module.is_causal = True
    found, _ = attention(module, query, key, value, None, **options)
    expected, _ = attention(module, query, key, value, None, 8**-0.5, **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_give_the_same_by_blocks(family, by_blocks):
    model = make(family)
    assert install(model) == ""
    expected = logps(model)
    by_blocks.clear()
    for name in TREES:
        torch.testing.assert_close(logps(model, LAYOUTS[name]), expected, rtol=0, atol=1e-5)
    assert len(by_blocks) == len(TREES) * model.config.num_hidden_layers


# Models that are not


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_is_told_and_goes_on_in_padded_rows(name):
    family, options, reason = REFUSED[name]
    model = make(family, **options)
    own, before = model.config._attn_implementation, logps(model)
    assert reason in install(model)
    assert not takes_trees(model)
    assert model.config._attn_implementation == own
    assert torch.equal(logps(model), before)
    head = find_head(model)
    torch.testing.assert_close(logps(model, head=head), before, rtol=0, atol=1e-5)
    token_logps(model.train(), Padded().collate(PAIRS, range(len(PAIRS)))).values.sum().backward()
    assert any(value.grad is not None and value.grad.any() for value in model.parameters())


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen2"])
@pytest.mark.parametrize("window", [4, 4096])
def test_a_window_that_attention_is_not_told_of_is_caught(family, window):
    """In padded rows a mask tells it. The trial's sequences do not reach a window of 4096: no number could show it."""
    kinds = ["sliding_attention", "sliding_attention"]  # one of which is told
    model = make(family, sliding_window=window, use_sliding_window=True, layer_types=kinds)
    assert install(model) == ""
    model = make(family, sliding_window=window, use_sliding_window=True, layer_types=kinds)
    model.model.layers[0].self_attn.sliding_window = None
    before = logps(model)
    reason = install(model)
    if window == 4:
        assert "gives log-probabilities in packed rows that differ by" in reason
    else:
        assert "does not pass its sliding window to the attention function" in reason
    assert not takes_trees(model)
    assert torch.equal(logps(model), before)


def test_a_model_without_positions_of_its_own_is_caught():
    """One that counts along the row, whatever it is told."""
    model = make("gpt2")
    wpe = model.transformer.wpe
    wpe.register_forward_pre_hook(lambda _, args: (torch.arange(args[0].shape[1]).expand_as(args[0]),))
    reason = install(model)
    assert "gpt2 gives log-probabilities in packed rows that differ by" in reason
    assert not takes_trees(model)


def test_a_run_in_mixed_precision_is_measured_in_the_models_own():
    model = make("llama").train()
    with torch.autocast("cpu", torch.bfloat16):
        with evaluation_mode(model):
            assert model(torch.tensor([[5, 6, 7]])).logits.dtype == torch.float32
        assert model(torch.tensor([[5, 6, 7]])).logits.dtype == torch.bfloat16


def test_rounding_is_that_of_the_number_type():
    """Layers of 8 bits are rounded as half precision, whatever the type of what is around them."""
    model = make("llama")
    assert rounding_tolerance(model) == FLOAT32_TOLERANCE
    model.is_loaded_in_8bit = True
    assert rounding_tolerance(model) == HALF_TOLERANCE
    for dtype in (torch.bfloat16, torch.float16):
        assert rounding_tolerance(make("llama").to(dtype)) == HALF_TOLERANCE


@pytest.mark.parametrize(("off", "taken"), [(7e-4, True), (9e-4, False)])
def test_layouts_may_differ_by_a_part_of_the_largest_log_probability(off, taken, monkeypatch):
    real, calls = token_logps, []

    def moved(model, batch):
        calls.append(real(model, batch))
        return SimpleNamespace(values=torch.full((4,), -8.0 - off * (len(calls) > 1)))

    monkeypatch.setattr(model_attention, "token_logps", moved)
    model = make("llama")
    assert (install(model) == "") == takes_trees(model) == taken


def test_layers_that_do_not_pass_trees_on_are_caught():
    """Its attention is called, and never for a tree."""
    model = make("llama")
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, options: (args, options | {"trees": None}), with_kwargs=True
        )
    assert install(model) == "llama does not use transformers' attention functions"
    assert not takes_trees(model)


def test_numbers_that_are_none_are_no_agreement():
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    assert "gives log-probabilities in packed rows that differ by nan" in install(model)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_kernel_that_was_asked_for_is_left_alone(attention, tiny_llama, capsys):
    model = CausalLM(str(tiny_llama), attention=attention).build()
    assert model.config._attn_implementation == attention
    assert "layout" not in capsys.readouterr().out


def test_a_run_with_a_model_that_cannot_says_why_and_pads(tmp_path, capsys):
    family, options, _ = REFUSED["bloom"]
    folder = tiny_models.save(
        tmp_path / "bloom", make(family, **options, vocab_size=tiny_models.VOCAB), tiny_models.make_chat_tokenizer()
    )
    file = short_runs.write_pairs(tmp_path / "pairs.jsonl")
    data = PreferenceDataModule(train=str(file), batch_size=4, max_length=128)
    short_runs.fit(short_runs.module(folder), file, tmp_path, data=data, enable_checkpointing=False)
    told = capsys.readouterr().out
    assert "layout: padded rows (bloom fails with the package's attention" in told
    assert "self-check: passed" in told
    assert data.collator == Padded()
    asked = PreferenceDataModule(train=str(file), batch_size=4, max_length=128, collator=PackedSharedPrefix())
    with pytest.raises(UserError, match=r"does not take PackedSharedPrefix batches at data\.collator") as raised:
        short_runs.fit(short_runs.module(folder), file, tmp_path, data=asked, enable_checkpointing=False)
    assert raised.value.code == ExitCode.MODEL == 67
    assert "--data.collator Padded" in raised.value.fix
