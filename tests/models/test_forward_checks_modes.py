"""A model that computes other numbers in rows padded on the left or in train mode is refused."""

import pytest
import torch
from support import short_runs, tiny_models
from support.forward_passes import logps, plain
from support.model_families import BART, IDS, PHI, build, make, save
from support.precomputed import data, loaded, scoring_of
from support.refusals import refused

from dpo_lightning.data.collate import Padded
from dpo_lightning.models.causal_lm import Lora
from dpo_lightning.models.forward_checks import check_left_padding, check_model, check_training_mode
from dpo_lightning.references import FrozenCopy
from dpo_lightning.references.precomputed import Precomputed


def fitting(made, rows, folder):
    """A call that trains two steps."""
    return lambda: short_runs.fit(made, None, folder, data=rows, enable_checkpointing=False)


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
