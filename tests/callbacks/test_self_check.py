"""The self-check names every wrong version of model, reference and loss that is put before it."""

from dataclasses import dataclass

import pytest
import torch
from support import short_runs, tiny_models
from support.refusals import problems

from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.errors import ExitCode
from dpo_lightning.losses import DPOLoss, HingeLoss, IPOLoss, RobustLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references import AdapterDisabled, FrozenCopy

# What passes


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("lora", [None, Lora(r=2, lora_dropout=0.5)])
def test_a_sound_run_passes(lora, precision, tiny_gpt2, file, tmp_path, capsys):
    made = short_runs.module(tiny_gpt2, lora=lora)
    short_runs.fit(made, file, tmp_path, precision=precision, enable_checkpointing=False)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("self-check")]
    assert told == ["self-check: passed (starting loss 0.693147, margins 0, tokens sound)"]


@pytest.mark.parametrize("loss", [DPOLoss(label_smoothing=0.2), IPOLoss(), HingeLoss(), RobustLoss()])
def test_every_loss_has_its_own_start(loss, tiny_llama, file, tmp_path, capsys):
    short_runs.fit(short_runs.module(tiny_llama, loss=loss), file, tmp_path, enable_checkpointing=False)
    assert "self-check: passed" in capsys.readouterr().out


# What is not one function at the start


@dataclass(frozen=True)
class Noisy(CausalLM):
    """A model with noise in its forward pass, as a router's jitter is."""

    def build(self):
        model = super().build()
        model.get_input_embeddings().register_forward_hook(lambda part, args, out: out + 0.01 * torch.randn_like(out))
        return model


class HalfCopy(FrozenCopy):
    """A copy in half the precision, to save memory."""

    def bind(self, policy, builder):
        super().bind(policy, builder)
        self._held[0].to(torch.bfloat16)


class OtherStart(FrozenCopy):
    """A copy of something else that takes itself for the policy's start."""

    def bind(self, policy, builder):
        super().bind(policy, builder)
        self._held, self._head = [tiny_models.make_llama(seed=1)], None


@dataclass(frozen=True)
class Random(DPOLoss):
    """A loss that gives another number each time."""

    def __call__(self, logps):
        output = super().__call__(logps)
        return output._replace(losses=output.losses + 0.01 * torch.rand(()))


@dataclass(frozen=True)
class Broken(DPOLoss):
    """A loss that is no number."""

    def __call__(self, logps):
        output = super().__call__(logps)
        return output._replace(losses=output.losses * float("nan"))


@dataclass(frozen=True)
class Unanchored(DPOLoss):
    """Rewards that forget the reference."""

    def __call__(self, logps):
        rewards = self.beta * logps.policy_chosen.detach()
        return super().__call__(logps)._replace(chosen_rewards=rewards)


def noise(folder):
    made = short_runs.module(folder)
    made.spec = Noisy(str(folder))
    return made


WRONG = {
    "noise": (noise, "the starting loss is"),
    "reference in half precision": (lambda folder: short_runs.module(folder, HalfCopy()), "the starting loss is"),
    "another reference": (lambda folder: short_runs.module(folder, OtherStart()), "the starting loss is"),
    "random loss": (lambda folder: short_runs.module(folder, loss=Random()), "the starting loss is"),
    "rewards": (lambda folder: short_runs.module(folder, loss=Unanchored()), "before the first step and not 0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_starts_apart_is_named(wrong, tiny_llama, file, tmp_path):
    make, told = WRONG[wrong]
    message = problems(make(tiny_llama), file, tmp_path, ExitCode.MODEL)
    assert told in message
    assert "dropout, noise or state" in message
    if wrong in ("noise", "reference in half precision", "another reference"):
        assert "a margin is" in message
        assert "equal log-probabilities give 0.693147" in message


def test_a_loss_that_is_no_number_is_left_to_the_check_of_the_step(tiny_llama, file, tmp_path):
    """Which names the rows; nothing need be random about the model."""
    made = short_runs.module(tiny_llama, loss=Broken())
    message = problems(made, file, tmp_path, ExitCode.DIVERGED, accumulate_grad_batches=2)
    assert "the loss of step 1 is NaN or infinite; its rows are at" in message


def test_dropout_that_was_left_on_is_named(tiny_gpt2, file, tmp_path, monkeypatch):
    monkeypatch.setattr("dpo_lightning.preference_module.without_dropout", lambda model: 0)
    message = problems(short_runs.module(tiny_gpt2), file, tmp_path, ExitCode.MODEL)
    assert "a margin is" in message


def test_an_adapter_that_is_not_switched_off_is_named(tiny_llama, file, tmp_path, monkeypatch):
    made = short_runs.module(tiny_llama, lora=Lora(r=2))
    made.configure_model()
    with torch.no_grad():
        for name, value in made.policy.named_parameters():
            if "lora_B" in name:
                value += 0.1  # an adapter that is not nothing at the start
    assert isinstance(made.reference, AdapterDisabled)
    assert "a margin is" in problems(made, file, tmp_path, ExitCode.MODEL)


# Where it is left out


def test_it_is_left_out_of_a_run_that_goes_on(tiny_llama, file, tmp_path, capsys):
    short_runs.fit(short_runs.module(tiny_llama), file, tmp_path, steps=1)
    capsys.readouterr()
    short_runs.fit(
        short_runs.module(tiny_llama), file, tmp_path / "2", steps=2, ckpt=tmp_path / "checkpoints/step=1.ckpt"
    )
    assert "self-check: left out (the run goes on)" in capsys.readouterr().out


def test_it_can_be_switched_off(tiny_llama, file, tmp_path, capsys):
    made = short_runs.module(tiny_llama, HalfCopy())
    short_runs.fit(made, file, tmp_path, steps=1, callbacks=[SelfCheck(enabled=False)], enable_checkpointing=False)
    assert "self-check: left out (switched off)" in capsys.readouterr().out
