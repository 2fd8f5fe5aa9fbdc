"""The self-check names rows whose tokens are damaged, whatever the layout of their batch."""

import json
from dataclasses import dataclass, replace

import pytest
from support import short_runs, tiny_models
from support.batch_layouts import LAYOUTS, answer, expected, pair
from support.refusals import problems

from dpo_lightning.callbacks.self_check import scored_runs, sequences
from dpo_lightning.data.collate import Padded
from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.errors import ExitCode
from dpo_lightning.references import FrozenCopy


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


def test_another_reference_has_another_start(tiny_llama, file, tmp_path, capsys):
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    made = short_runs.module(tiny_llama, FrozenCopy(path=str(other)))
    short_runs.fit(made, file, tmp_path, steps=1, enable_checkpointing=False)
    assert "the starting loss is left out (another model is the reference)" in capsys.readouterr().out
    data = Damaged(without_eos, train=str(file), batch_size=2, max_length=128)
    again = short_runs.module(tiny_llama, FrozenCopy(path=str(other)))
    assert "EOS 0 times" in problems(again, file, tmp_path, ExitCode.DATA, data=data)  # its tokens are looked at
