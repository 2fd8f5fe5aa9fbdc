"""A model whose numbers would be wrong without a word is refused, and what is taken gives those of its plain calls."""

from types import SimpleNamespace

import pytest
import torch
from support import short_runs, tiny_models
from support.batch_layouts import LAYOUTS
from support.model_families import BART, BERT, FAMILIES, IDS, PAIRS, PHI, REFUSED, VOCAB, build, make, save
from support.precomputed import data, loaded, scoring_of

from dpo_lightning.attention.tree import tree_attention
from dpo_lightning.data.collate import Padded
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import token_logps
from dpo_lightning.models import attention_backend as model_attention
from dpo_lightning.models import forward_checks as model_checks
from dpo_lightning.models.attention_backend import install, takes_trees
from dpo_lightning.models.causal_lm import CausalLM, Lora
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
from dpo_lightning.references import FrozenCopy
from dpo_lightning.references.precomputed import Precomputed

NUMBERS = range(len(PAIRS))


def plain(model):
    """Log-probabilities of the pairs' scored tokens, by a plain call for each unpadded sequence."""
    found = []
    for side in (0, 1):
        for row in PAIRS:
            said = row.answers[side]
            ids = [*row.prompt_ids, *said.ids]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            first = len(row.prompt_ids)
            found += [logits[first + k - 1, id_] for k, id_ in enumerate(said.ids) if said.scored[k]]
    return torch.stack(found)


def logps(model, layout, head=None):
    """Of the same tokens, by a batch."""
    with torch.no_grad():
        return token_logps(model, layout.collate(PAIRS, NUMBERS), head).values


def refused(call, *args, code=ExitCode.MODEL):
    """The message of a refusal."""
    with pytest.raises(UserError) as raised:
        call(*args)
    assert raised.value.code == code
    assert raised.value.fix
    return str(raised.value)


def fitting(made, rows, folder):
    """A call that trains two steps."""
    return lambda: short_runs.fit(made, None, folder, data=rows, enable_checkpointing=False)


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


# Padding on the left


LEFT = {
    "bart": BART,
    "marian": BART,
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2} | IDS,
    "recurrent_gemma": PHI | {"lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
}


@pytest.mark.parametrize("kind", LEFT)
def test_rows_padded_on_the_left_are_refused_where_the_numbers_are_others(kind):
    model = build(kind, **LEFT[kind]).eval()
    expected = plain(model)
    check_model(model)
    torch.testing.assert_close(logps(model, Padded()), expected, rtol=0, atol=2e-5)
    assert (logps(model, Padded(side="left")) - expected).abs().max() > 0.05
    check_left_padding(model, Padded())
    assert f"{kind} gives log-probabilities in rows padded on the left that differ" in refused(
        check_left_padding, model, Padded(side="left")
    )


def test_so_they_are_in_a_run_and_for_a_reference(file, tiny_llama, tmp_path):
    folder = save(tmp_path / "bart", "bart", max_position_embeddings=256, **BART)
    left = data(file, collator=Padded(side="left"))
    assert "at data.collator" in refused(fitting(short_runs.module(folder), left, tmp_path / "run"))
    other = short_runs.module(tiny_llama, FrozenCopy(str(folder)))
    assert "bart gives" in refused(fitting(other, left, tmp_path / "other"))
    made = loaded(folder, Precomputed(path=str(tmp_path / "ref.safetensors")))
    assert "bart gives" in refused(made.reference.look_up, made.policy, scoring_of(made, left))
    assert not (tmp_path / "ref.safetensors").exists()
    fitting(short_runs.module(folder), data(file, collator=Padded()), tmp_path / "right")()


# Noise in train mode


def test_a_routers_jitter_is_switched_off(file, tmp_path, capsys):
    sizes = {"max_position_embeddings": 256, "vocab_size": tiny_models.VOCAB, "router_jitter_noise": 0.2}
    model = make("mixtral", **sizes)
    assert not torch.equal(logps(model, Padded()), logps(model, Padded()))
    folder = tiny_models.save(tmp_path / "mixtral", model, tiny_models.make_chat_tokenizer())
    made = short_runs.module(folder)
    short_runs.fit(made, file, tmp_path / "run", enable_checkpointing=False)
    assert "self-check: passed (starting loss 0.693147, margins 0" in capsys.readouterr().out
    assert made.policy.training
    assert torch.equal(logps(made.policy, Padded()), logps(made.policy, Padded()))
    assert made.policy.config.router_jitter_noise == 0.2


@pytest.mark.parametrize("reference", [None, Precomputed()])
@pytest.mark.parametrize("lora", [None, Lora(r=2, target_modules=["q_proj"])])
@pytest.mark.usefixtures("place")
def test_a_router_that_draws_its_experts_is_refused(lora, reference, tmp_path):
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    folder = save(tmp_path / "phimoe", "phimoe", max_position_embeddings=256, **PHI | sizes)
    message = refused(short_runs.module(folder, reference, lora=lora).configure_model)
    assert "phimoe differs in train mode" in message
    assert "it draws random numbers there" in message


class Drawing(torch.nn.Module):
    """Noise in train mode, below what rounding is allowed in half precision."""

    def forward(self, hidden):
        return hidden * (1 + 0.01 * torch.rand(()) * self.training)


class Steady(torch.nn.Module):
    """Another function in train mode that draws nothing."""

    def forward(self, hidden):
        return hidden * (1 + 0.5 * self.training)


class Normed(torch.nn.BatchNorm1d):
    """By the numbers of the batch in train mode."""

    def __init__(self):
        super().__init__(32)

    def forward(self, hidden):
        return super().forward(hidden.mT).mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Drawing, Steady, Normed])
def test_any_part_that_is_another_function_in_train_mode_is_found(kind, dtype):
    model = make("llama")
    model.model.norm = kind()
    message = refused(check_training_mode, model.to(dtype))
    assert "llama differs in train mode by up to" in message
    assert ("it draws random numbers there" in message) == (kind is Drawing)


class Seldom(torch.nn.Module):
    """Draws in every pass in train mode, and is the same function as in eval mode in two of five."""

    def forward(self, hidden):
        return hidden * (1 + 0.5 * (torch.rand(()) < 0.6)) if self.training else hidden


def test_noise_that_two_passes_may_miss_is_found():
    model = make("llama")
    model.model.norm = Seldom()
    for seed in range(30):
        torch.manual_seed(seed)
        assert "it draws random numbers there" in refused(check_training_mode, model)


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
