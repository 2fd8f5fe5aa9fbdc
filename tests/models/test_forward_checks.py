"""A model whose numbers would be wrong without a word is refused, and what is taken gives those of its plain calls."""

from types import SimpleNamespace

import pytest
import torch
from support import short_runs, tiny_models
from support.batch_layouts import LAYOUTS
from support.forward_passes import logps, plain
from support.model_families import BART, BERT, FAMILIES, IDS, PHI, REFUSED, VOCAB, build, make
from support.refusals import refused

from dpo_lightning.attention.tree import tree_attention
from dpo_lightning.data.collate import Padded
from dpo_lightning.models import attention_backend as model_attention
from dpo_lightning.models import forward_checks as model_checks
from dpo_lightning.models.attention_backend import install, takes_trees
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.dropout import without_dropout
from dpo_lightning.models.forward_checks import (
    check_left_padding,
    check_model,
    check_training_mode,
    measure_causal_leak,
    plain_logits,
)
from dpo_lightning.models.lm_head import find_head
from dpo_lightning.models.probe import make_probe

# What is right


@pytest.mark.parametrize("family", [*FAMILIES, *(name for name in REFUSED)])
def test_every_layout_gives_what_plain_calls_give(family):
    name, options = REFUSED[family][:2] if family in REFUSED else (family, {})
    model = make(name, **options).eval()
    expected = plain(model)
    check_model(model)
    install(model)
    check_left_padding(model, Padded(side="left"))
    without_dropout(model.train())
    check_training_mode(model)
    head = find_head(model)
    for layout in LAYOUTS.values():
        if isinstance(layout, Padded) or takes_trees(model):
            for parts in (None, head):
                torch.testing.assert_close(logps(model, layout, parts), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [*FAMILIES])
def test_half_precision_is_not_taken_for_another_model(family, dtype):
    model = make(family).to(dtype)
    check_model(model)
    check_training_mode(model)


@pytest.mark.parametrize(
    "check", [check_model, check_training_mode, lambda model: check_left_padding(model, Padded(1, "left"))]
)
def test_numbers_that_are_none_are_not_blamed_on_the_model(check):
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    check(model)


def test_a_check_leaves_the_model_and_the_random_numbers_as_they_were():
    model = build("opt", hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, dropout=0.0, **IDS)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    check_model(model)
    check_training_mode(model)  # its layers draw a number in train mode, to which nothing comes
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())


def test_ids_with_a_meaning_are_not_in_the_probe():
    model = make("llama", pad_token_id=1)
    ids = {id_ for row in make_probe(VOCAB)[0] for answer in row.answers for id_ in (*row.prompt_ids, *answer.ids)}
    model.config.image_token_id, model.config.eos_token_id = max(ids), sorted(ids)[:3]
    batch = model_checks.plain_probe(model, Padded())
    assert max(ids) not in batch.input_ids
    assert batch.mask.sum(-1).tolist() == [12, 9, 10, 7]


def test_ids_to_which_the_config_around_the_language_model_gives_a_meaning():
    """As that of pictures; where all ids have one, they stay."""
    from transformers import LlavaConfig

    ids = torch.cat([torch.tensor([*row.prompt_ids, *row.answers[0].ids]) for row in make_probe(VOCAB)[0]])
    config = LlavaConfig(text_config=make("llama").config, image_token_index=int(ids.max()))
    model = SimpleNamespace(config=config, device=torch.device("cpu"))
    assert int(ids.max()) not in model_checks.plain_probe(model, Padded()).input_ids
    assert {id_ for row in make_probe(3, {0, 1, 2})[0] for id_ in row.prompt_ids} <= {0, 1, 2}


def test_the_probe_is_made_where_numbers_are():
    """Lightning makes another device the default while a model is built."""
    model = make("llama")
    with torch.device("meta"):
        assert not model_checks.probe_batch(model, Padded()).input_ids.is_meta
        check_model(model)
        assert install(model) == ""


# Not causal, or positions of its own


@pytest.mark.parametrize("ids", [[5, 6, 7, 5], [5, 6, 7, 6], [5, 6, 7, 8]])
def test_the_last_token_is_another_one_whatever_it_was(ids):
    model, ids = build("bert", **BERT).eval(), torch.tensor(ids)
    with torch.no_grad():
        assert measure_causal_leak(model, ids, plain_logits(model, ids)) > 0


ENCODERS = {
    "bert": BERT,
    "roberta": BERT,
    "big_bird": BERT,
    "electra": BERT | {"embedding_size": 32},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48} | IDS,
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4} | IDS,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_model_in_which_a_token_sees_later_ones_is_refused(kind, dtype):
    model = build(kind, initializer_range=0.02, **ENCODERS[kind]).to(dtype)
    message = refused(check_model, model, "folder")
    assert f"{kind} is not a causal language model: the last token changes earlier logits" in message


def test_an_encoder_is_refused_before_training(file, tmp_path):
    """With the small weights that a new model has, whose earlier logits move by a thousandth."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / "bert"
    BertForMaskedLM(BertConfig(vocab_size=tiny_models.VOCAB, max_position_embeddings=256, **BERT)).save_pretrained(
        folder
    )
    tiny_models.make_chat_tokenizer().save_pretrained(folder)
    message = refused(short_runs.fit, short_runs.module(folder), file, tmp_path / "run")
    assert "bert is not a causal language model" in message
    assert str(folder) in message
    assert len(message) < 400


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "data2vec-text", "roberta-prelayernorm"])
def test_a_model_that_counts_positions_its_own_way_is_refused(kind):
    message = refused(check_model, build(kind, is_decoder=True, **BERT))
    assert f"{kind} gives log-probabilities in padded rows that differ" in message


def test_what_a_models_code_raises_is_a_refusal():
    model = make("llama")
    model.forward = lambda input_ids, **options: [].pop()
    assert "llama cannot score rows of token ids: IndexError pop from empty list" in refused(check_model, model)


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory"), MemoryError(), torch.OutOfMemoryError()])
@pytest.mark.parametrize("call", [check_model, install])
def test_lack_of_memory_is_no_fault_of_the_model(call, error):
    model = make("llama")

    def forward(*_, **__):
        raise error

    model.forward = model.model.forward = forward
    with pytest.raises(type(error)) as raised:
        call(model)
    assert raised.value is error


def test_a_model_whose_code_asserts_what_trees_are_not_keeps_padded_rows():
    model = build("xlm", causal=True, emb_dim=32, n_layers=2, n_heads=4, **IDS).eval()
    expected = plain(model)
    check_model(model)
    assert "xlm fails with the package's attention: AssertionError" in install(model)
    torch.testing.assert_close(logps(model, Padded(), find_head(model)), expected, rtol=0, atol=2e-5)


def test_an_encoder_with_a_decoder_is_refused_in_one_line(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    tiny_models.save(
        tmp_path,
        T5ForConditionalGeneration(T5Config(vocab_size=tiny_models.VOCAB, **sizes)),
        tiny_models.make_tokenizer(),
    )
    for use in ("config", "tokenizer", "build"):
        message = refused(getattr(CausalLM(str(tmp_path)), use))
        assert "t5 is not a causal language model but an encoder-decoder" in message
        assert len(message) < 400


# A backbone that is none, and logits that are all given


@pytest.mark.parametrize("kind", ["modernbert-decoder", "rembert", "trocr", "whisper"])
def test_whole_logits_where_a_model_does_not_come_apart(kind, capsys):
    options = {
        "modernbert-decoder": PHI,
        "rembert": BERT | {"is_decoder": True, "input_embedding_size": 16, "output_embedding_size": 24},
        "trocr": BART,
        "whisper": {"max_target_positions": 64} | BART,
    }[kind]
    model = build(kind, **options).eval()
    expected = plain(model)
    check_model(model)
    install(model)
    head = find_head(model)
    if kind in ("modernbert-decoder", "rembert"):
        assert head is None
        assert "note: " in capsys.readouterr().out
    for parts in (None, head):
        torch.testing.assert_close(logps(model, Padded(), parts), expected, rtol=0, atol=2e-5)


# The probe


def test_a_leak_from_one_pair_into_the_next_is_found(monkeypatch):
    """As it is with two pairs in a row: one by itself would not show it."""

    def leaking(query, key, value, trees, kernel):
        out = tree_attention(query, key, value, trees, kernel)
        for tree in trees[1:]:
            out[tree.row, tree.start] += value[tree.row, 0, 0].mean()
        return out

    monkeypatch.setattr(model_attention, "tree_attention", leaking)
    assert "llama gives log-probabilities in packed rows that differ" in install(make("llama"))
