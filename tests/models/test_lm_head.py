"""A model in two parts gives the numbers of the whole, or it is not taken apart."""

from types import SimpleNamespace

import pytest
import torch
from support import tiny_models
from support.batch_layouts import LAYOUTS, pair
from support.model_families import FAMILIES, PAIRS, make, with_adapter

from dpo_lightning import logps
from dpo_lightning.data.collate import Padded
from dpo_lightning.logps import token_logps
from dpo_lightning.models.attention_backend import install
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.models.lm_head import SplitHead, causal_lm, find_head

NUMBERS = range(len(PAIRS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_taken_apart(family, capsys):
    model = make(family)
    head = find_head(model)
    assert head.output is model.get_output_embeddings()
    assert head.backbone is model.get_decoder()
    assert head.scale == {"granite": 0.25, "cohere": 0.25}.get(family, 1.0)
    assert head.softcap == (5.0 if family == "gemma2" else None)
    assert capsys.readouterr().out == ""
    assert model.training
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "lm_head"], ["lm_head"]])
@pytest.mark.parametrize("family", ["cohere", "gemma2", "llama"])
def test_an_adapter_on_the_output_layer_is_trained(family, modules, rows, monkeypatch):
    monkeypatch.setattr(logps, "CHUNK", rows * 96)
    model = make(family, tie_word_embeddings=False)
    policy = with_adapter(model, target_modules=modules)
    head = find_head(policy)
    assert len(head.weights()) == (2 if "lm_head" in modules else 0)
    found = []
    for parts in (None, head):
        policy.zero_grad(set_to_none=True)
        values = token_logps(policy, Padded().collate(PAIRS, NUMBERS), parts).values
        values.square().mean().backward()
        named = policy.named_parameters()
        found.append((values.detach(), {name: value.grad for name, value in named if value.requires_grad}))
    (whole, expected), (chunked, gradients) = found
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)
    assert all(value is not None for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-5, msg=name)
    with policy.disable_adapter(), torch.no_grad():
        plain = token_logps(policy, Padded().collate(PAIRS, NUMBERS), head).values
        torch.testing.assert_close(
            plain, token_logps(make(family, tie_word_embeddings=False), Padded().collate(PAIRS, NUMBERS)).values
        )
    assert (plain - chunked).abs().max() > 0.01


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_an_output_layer_that_is_trained_whole_beside_an_adapter(saved, tied, tmp_path):
    folder = tiny_models.save(
        tmp_path, tiny_models.make_llama(tie_word_embeddings=tied), tiny_models.make_chat_tokenizer()
    )
    policy = CausalLM(str(folder), lora=Lora(r=2, modules_to_save=saved)).build()
    head, batch = find_head(policy), Padded().collate([pair([5, 6], [7, 8, 2], [9, 2])], [0])
    found = []
    for parts in (None, head):
        policy.zero_grad(set_to_none=True)
        token_logps(policy, batch, parts).values.square().sum().backward()
        named = policy.named_parameters()
        found.append({name: value.grad for name, value in named if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert any("modules_to_save" in name for name in found[0])
    largest = max(float(value.abs().max()) for value in found[0].values())  # in float32: some hundred
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6 * largest, msg=name)


def changed(model, change):
    """A model whose forward pass does something to its logits."""
    forward = model.forward

    def other(*args, **options):
        out = forward(*args, **options)
        out.logits = change(out.logits)
        return out

    model.forward = other
    return model


CHANGES = {
    "doubled": lambda logits: 2 * logits,
    "one raised": lambda logits: logits + torch.nn.functional.one_hot(torch.tensor(7), logits.shape[-1]),
    "capped": lambda logits: 5 * (logits / 5).tanh(),
    "capped far out": lambda logits: 30 * (logits / 30).tanh(),  # logits of the model itself hardly meet it
    "clamped": lambda logits: logits.clamp(max=20.0),
    "cut": lambda logits: logits[..., :-1],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_a_model_does_to_its_logits_keeps_it_whole(family, change, capsys):
    policy = changed(make(family), CHANGES[change])
    assert find_head(policy) is None
    assert capsys.readouterr().out.startswith(f"note: {family} changes its logits in an unknown way")
    rows = [pair([11, 12, 13], [14, 15, 16], [17])]  # no target is the id that is cut
    plain = make(family)
    with torch.no_grad():
        logits = CHANGES[change](plain(torch.tensor([[11, 12, 13, 14, 15, 16]])).logits[0]).log_softmax(-1)
        assert install(policy) == ""
        for layout in LAYOUTS.values():
            found = token_logps(policy, layout.collate(rows, [0]), find_head(policy)).values
            expected = [logits[2, 14], logits[3, 15], logits[4, 16], logits[2, 17]]
            torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["cohere", "gemma2", "granite"])
def test_a_cap_or_scale_under_another_name_is_found(family, monkeypatch, capsys):
    """Taken for granted, a head without it would give other numbers."""
    model, batch = make(family), Padded().collate(PAIRS, NUMBERS)
    expected = token_logps(model, batch).values
    trusted = SplitHead(model.get_decoder(), model.get_output_embeddings(), model.config.vocab_size)
    assert (token_logps(model, batch, trusted).values - expected).abs().max() > 0.1
    said = SimpleNamespace(model_type=family, vocab_size=model.config.vocab_size)
    monkeypatch.setattr(type(model.config), "get_text_config", lambda *_, **__: said)
    assert find_head(model) is None
    assert f"{family} changes its logits in an unknown way" in capsys.readouterr().out
    assert torch.equal(token_logps(model, batch).values, expected)


def test_a_cap_that_the_models_own_logits_hardly_meet_is_looked_for_with_large_ones():
    """Gemma 2's 30: with the logits of a tiny model, a head without it would pass."""
    model = make("gemma2", final_logit_softcapping=30.0, initializer_range=0.02)
    head = find_head(model)
    assert head.softcap == 30.0
    uncapped = SplitHead(head.backbone, head.output, head.vocabulary)
    with torch.no_grad():
        hidden = head.hidden(input_ids=torch.arange(8)[None])[0]
        small = head.logits(hidden) - uncapped.logits(hidden)
        large = head.logits(hidden * 400) - uncapped.logits(hidden * 400)
    assert small.abs().max() < 1e-3
    assert large.abs().max() > 1


def test_a_model_without_an_output_layer_is_left_whole(capsys):
    model = make("llama")
    model.get_output_embeddings = lambda: None
    assert find_head(model) is None
    assert "llama has no separate output layer; all logits are computed at once" in capsys.readouterr().out
    model = make("llama")
    model.get_decoder = lambda: model
    assert find_head(model) is None


def test_the_model_below_an_adapter():
    model = make("llama")
    assert causal_lm(model) is model
    assert causal_lm(with_adapter(model)) is model


def test_a_copy_that_is_cast_keeps_its_head():
    """A head holds the modules of a model and no copy of their weights."""
    model = make("llama")
    head = find_head(model)
    model.to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        values = token_logps(model, Padded().collate(PAIRS, NUMBERS), head).values
        whole = token_logps(model, Padded().collate(PAIRS, NUMBERS)).values
    assert head.logits(torch.zeros(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    torch.testing.assert_close(values, whole, rtol=0, atol=0.05)
