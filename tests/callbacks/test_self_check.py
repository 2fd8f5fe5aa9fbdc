"""The self-check names every wrong version of model, reference, loss and tokens that is put before it."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from support import short_runs, tiny_models
from support.batch_layouts import LAYOUTS, answer, expected, pair

from dpo_lightning.callbacks.self_check import SelfCheck, scored_runs, sequences
from dpo_lightning.data.collate import Padded
from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import DPOLoss, HingeLoss, IPOLoss, RobustLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references import AdapterDisabled, FrozenCopy


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


def problems(made, file, folder, code, **options):
    """What the self-check of a run says."""
    with pytest.raises(UserError) as raised:
        short_runs.fit(made, file, folder, steps=1, enable_checkpointing=False, **options)
    assert raised.value.code == code
    return str(raised.value)


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
    "no number": (lambda folder: short_runs.module(folder, loss=Broken()), "the starting loss is nan"),
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


# Tokens


class Damaged(PreferenceDataModule):
    """Data whose encoded pairs are changed on their way."""

    def __init__(self, change, **options):
        super().__init__(**options)
        self.change = change

    def encode(self, encoder, examples):
        return [self.change(row) for row in super().encode(encoder, examples)]


def without_eos(row):
    chosen = replace(row.chosen, ids=row.chosen.ids[:-1], scored=row.chosen.scored[:-1])
    return replace(row, answers=(chosen, row.rejected))


def with_two_eos(row):
    answer = row.rejected
    rejected = replace(answer, ids=[*answer.ids, answer.ids[-1]], scored=[*answer.scored, True])
    return replace(row, answers=(row.chosen, rejected))


def with_text_behind_eos(row):
    answer = row.chosen
    chosen = replace(answer, ids=[*answer.ids, 7], scored=[*answer.scored, True])
    return replace(row, answers=(chosen, row.rejected))


def unscored(row):
    return replace(row, answers=(row.chosen, replace(row.rejected, scored=[False] * len(row.rejected.ids))))


def twice_begun(row):
    return replace(row, prompt_ids=[3, 3, *row.prompt_ids])


TURNS = answer(2, 3, 4, 0, scored=[True, False, False, True])

DAMAGE = {
    without_eos: "an answer scores EOS 0 times",
    with_two_eos: "an answer scores EOS 2 times",
    with_text_behind_eos: "or not at its end",
    unscored: "an answer has no scored token",
    twice_begun: "the text begins with two BOS tokens",
}


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """A model with a BOS, and a template that writes it."""
    words = tiny_models.make_tokenizer(
        template="{{ bos_token }}" + tiny_models.CHATML, eos=tiny_models.END, bos=tiny_models.BEGIN
    )
    return tiny_models.save(tmp_path_factory.mktemp("begin"), tiny_models.make_llama(), words)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", DAMAGE)
def test_damaged_tokens_are_named_with_their_rows(change, layout, beginning, file, tmp_path):
    data = Damaged(change, train=str(file), batch_size=2, max_length=128, shuffle=False, collator=LAYOUTS[layout])
    message = problems(short_runs.module(beginning), file, tmp_path, ExitCode.DATA, data=data)
    assert DAMAGE[change] in message
    assert f"at {file}:1" in message
    assert f"at {file}:2" in message
    assert f"{file}:3" not in message  # the second batch


@dataclass(frozen=True)
class TwoBeginnings(Padded):
    """Puts the BOS into the second place as well."""

    def collate(self, rows, indices):
        batch = super().collate(rows, indices)
        batch.input_ids[:, 1] = batch.input_ids[:, 0]
        return batch


def test_a_text_that_begins_twice_is_named(beginning, file, tmp_path):
    template = tmp_path / "once.jinja"
    template.write_text("{{ bos_token }}" + tiny_models.CHATML)
    options = {"chat_template": str(template), "max_length": 128, "collator": TwoBeginnings()}
    data = PreferenceDataModule(train=str(file), batch_size=2, **options)
    assert "two BOS tokens" in problems(short_runs.module(beginning), file, tmp_path, ExitCode.DATA, data=data)


@dataclass(frozen=True)
class OtherPrompt(Padded):
    """Puts another token into the prompts of the rejected answers."""

    def collate(self, rows, indices):
        batch = super().collate(rows, indices)
        batch.input_ids[len(rows) :, 2] = 99
        return batch


def test_prompts_that_differ_between_the_sides_are_named(tiny_llama, file, tmp_path):
    data = PreferenceDataModule(train=str(file), batch_size=2, max_length=128, collator=OtherPrompt())
    message = problems(short_runs.module(tiny_llama), file, tmp_path, ExitCode.DATA, data=data)
    assert "the answers to a prompt follow different prompt tokens" in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sound_tokens_pass_in_every_layout(layout, tiny_llama, tiny_gpt2, beginning, file, tmp_path, capsys):
    collator = replace(LAYOUTS[layout], pad_to_multiple_of=3)
    for folder in (tiny_llama, tiny_gpt2, beginning):
        data = PreferenceDataModule(train=str(file), batch_size=8, max_length=128, collator=collator)
        short_runs.fit(short_runs.module(folder), file, tmp_path, steps=1, data=data, enable_checkpointing=False)
        assert "self-check: passed" in capsys.readouterr().out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cut_answer_may_lack_its_end(layout, tiny_llama, tmp_path, capsys):
    pairs = [{"prompt": f"{k}", "chosen": "no, " * 60, "rejected": f"{k}"} for k in range(2)]
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    options = {"overlong": "truncate", "collator": LAYOUTS[layout]}
    data = PreferenceDataModule(train=str(file), batch_size=2, max_length=64, **options)
    short_runs.fit(short_runs.module(tiny_llama), file, tmp_path, steps=1, data=data, enable_checkpointing=False)
    assert "cut at max_length" in (told := capsys.readouterr().out)
    assert "self-check: passed" in told


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sequences_are_read_back_from_any_layout(layout):
    rows = [pair([1, 2], [3, 4], [3, 5, 6]), pair([1], TURNS, [2]), pair([], [], [7]), pair([4], [5, 0], [5, 0])]
    for (ids, targets), wanted in zip(sequences(LAYOUTS[layout].collate(rows, range(4))), expected(rows), strict=True):
        assert [(ids[: at + 1], target) for at, target in targets.items()] == [(seen, id_) for seen, _, id_ in wanted]


def test_scored_runs():
    assert scored_runs({}) == []
    assert scored_runs({0: 5, 1: 6, 3: 7}) == [[5, 6], [7]]
    assert scored_runs({3: 7, 1: 6, 0: 5}) == [[5, 6], [7]]


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


def test_another_reference_has_another_start(tiny_llama, file, tmp_path, capsys):
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    made = short_runs.module(tiny_llama, FrozenCopy(path=str(other)))
    short_runs.fit(made, file, tmp_path, steps=1, enable_checkpointing=False)
    assert "the starting loss is left out (another model is the reference)" in capsys.readouterr().out
    data = Damaged(without_eos, train=str(file), batch_size=2, max_length=128)
    again = short_runs.module(tiny_llama, FrozenCopy(path=str(other)))
    assert "EOS 0 times" in problems(again, file, tmp_path, ExitCode.DATA, data=data)  # its tokens are looked at
