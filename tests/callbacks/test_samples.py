"""Samples: answers of policy and reference to the prompts of training, drawn without disturbing it."""

import inspect
import json

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from support import short_runs
from support.whole_runs import Memory

from dpo_lightning.callbacks import samples
from dpo_lightning.callbacks.samples import Samples, format_table
from dpo_lightning.data.datamodules import PreferenceDataModule, SFTDataModule
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.models.generation import answer
from dpo_lightning.sampling import Sampling
from dpo_lightning.sft import SFTModule

GREEDY = Sampling(max_new_tokens=6, temperature=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Training and held-out pairs."""
    folder = tmp_path_factory.mktemp("rows")
    held_out = [{"prompt": f"Say | {k}\nnow", "chosen": f"{k}.", "rejected": "no"} for k in range(4)]
    (folder / "eval.jsonl").write_text("\n".join(map(json.dumps, held_out)))
    return {"train": str(short_runs.write_pairs(folder / "train.jsonl")), "eval": str(folder / "eval.jsonl")}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """Demonstrations to train on and to look at."""
    file = tmp_path_factory.mktemp("sft") / "rows.jsonl"
    rows = [{"prompt": f"Say {k}", "completion": f"{k}."} for k in range(4)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return {"train": str(file), "eval": str(file)}


def fit(made, files, folder, callbacks, steps=2, **options):
    """A run that validates at its end."""
    data = PreferenceDataModule(**files, batch_size=2, max_length=options.pop("max_length", 128), **options)
    logger = TensorBoardLogger(folder, "tensorboard", "")
    made.learning_rate = 0.1
    watched = {"callbacks": callbacks, "logger": logger, "val_check_interval": steps, "enable_checkpointing": False}
    return short_runs.fit(made, None, folder, steps, data=data, **watched)


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_both_answers_stand_side_by_side(lora, tiny_llama, files, tmp_path):
    drawn = Samples(3, GREEDY)
    made = short_runs.module(tiny_llama, lora=lora)
    runner = fit(made, files, tmp_path, [drawn])
    rows = runner.datamodule.encoded["eval"][:3]
    prompts = [row.prompt_ids for row in rows]
    base = CausalLM(str(tiny_llama)).build()
    stops = frozenset([made.tokenizer.eos_token_id])
    assert [text for text, _, _ in drawn.drawn] == ["Say | 0\nnow", "Say | 1\nnow", "Say | 2\nnow"]
    assert [text for _, _, text in drawn.drawn] == answer(base, made.tokenizer, prompts, GREEDY, stops)
    assert [text for _, text, _ in drawn.drawn] == answer(made.policy, made.tokenizer, prompts, GREEDY, stops)
    assert all(policy != reference for _, policy, reference in drawn.drawn)
    logged = events(tmp_path).Tensors("eval/samples/text_summary")
    assert [event.step for event in logged] == [2]
    assert "Say &#124; 0<br>now" in logged[0].tensor_proto.string_val[0].decode()


def events(folder):
    """What TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return read


class Tables(Memory):
    """A logger that takes text as W&B's does."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def log_text(self, key, columns=None, data=None, dataframe=None, step=None):
        assert dataframe is None
        self.texts.append((key, columns, data, step))


def test_other_loggers_get_text_where_they_take_it(tiny_llama, files, tmp_path):
    """By `log_text` in W&B's form; a logger of numbers alone is left alone."""
    tables, numbers = Tables(), CSVLogger(tmp_path, "numbers", "")
    drawn = Samples(2, GREEDY)
    data = PreferenceDataModule(**files, batch_size=2, max_length=128)
    options = {"logger": [tables, numbers], "val_check_interval": 1, "enable_checkpointing": False}
    short_runs.fit(short_runs.module(tiny_llama), None, tmp_path, 2, data=data, callbacks=[drawn], **options)
    assert [step for *_, step in tables.texts] == [1, 2]
    key, columns, rows, _ = tables.texts[-1]
    assert (key, columns) == ("eval/samples", ["prompt", "policy", "reference"])
    assert rows == [list(row) for row in drawn.drawn]
    assert [row[0] for row in rows] == ["Say | 0\nnow", "Say | 1\nnow"]
    assert "samples" not in (tmp_path / "numbers/metrics.csv").read_text()


def test_the_logger_of_wandb_is_one_of_them():
    """Its class alone: W&B is not installed here."""
    bound = inspect.signature(WandbLogger.log_text).bind(None, "key", ["a"], [["b"]], step=3)
    assert set(bound.arguments) == {"self", "key", "columns", "data", "step"}
    assert isinstance(object.__new__(WandbLogger), samples.TableLogger)
    assert not isinstance(object.__new__(CSVLogger), samples.TableLogger)


@pytest.mark.parametrize("sft", [True, False])
def test_training_is_the_same_without_them(sft, tiny_gpt2, files, demonstrations, tmp_path):
    ends = []
    for name, callbacks in (("with", [Samples(2, Sampling(8, temperature=1.0))]), ("without", [])):
        torch.manual_seed(0)  # SFT draws its dropout from it
        made = SFTModule(CausalLM(str(tiny_gpt2))) if sft else short_runs.module(tiny_gpt2, lora=Lora(r=2))
        kind = SFTDataModule if sft else PreferenceDataModule
        data = kind(**(demonstrations if sft else files), batch_size=2, max_length=128, allow="leak")
        options = {"data": data, "callbacks": callbacks, "val_check_interval": 1, "enable_checkpointing": False}
        short_runs.fit(made, None, tmp_path / name, 2, **options)
        ends.append([value.clone() for value in made.policy.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_prompts_are_those_of_training_whatever_their_length(tiny_gpt2, tmp_path, monkeypatch):
    # The first rows are longer than the model's positions, and are dropped or cut before training sees them.
    rows = [{"prompt": f"{k} " + "how " * (400 if k < 2 else 1), "chosen": "so", "rejected": "no"} for k in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {name: str(tmp_path / "rows.jsonl") for name in ("train", "eval")}
    asked = []
    monkeypatch.setattr(samples, "answer", lambda model, tokenizer, prompts, *_: asked.append(prompts) or ["", ""])
    for overlong in ("drop", "truncate"):
        asked.clear()
        drawn = Samples(2, GREEDY)
        made = short_runs.module(tiny_gpt2)
        runner = fit(made, files, tmp_path / overlong, [drawn], max_length=64, overlong=overlong, allow="leak")
        expected = [row.prompt_ids for row in runner.datamodule.encoded["eval"][:2]]
        assert asked == [expected, expected]
        assert max(map(len, expected)) < 64
        assert drawn.drawn[0][0] == rows[2 if overlong == "drop" else 0]["prompt"]


def test_none_are_drawn(tiny_llama, files, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "answer", None)
    fit(short_runs.module(tiny_llama), files, tmp_path / "0", [Samples(0)])
    fit(short_runs.module(tiny_llama), {"train": files["train"]}, tmp_path / "1", [Samples(2)])


def test_sft_has_no_reference(tiny_llama, demonstrations, tmp_path):
    data = SFTDataModule(**demonstrations, batch_size=2, max_length=128, allow="leak")
    drawn = Samples(2, GREEDY)
    made = SFTModule(CausalLM(str(tiny_llama)))
    short_runs.fit(made, None, tmp_path, 2, data=data, callbacks=[drawn], enable_checkpointing=False)
    assert [(text, reference) for text, _, reference in drawn.drawn] == [("Say 0", ""), ("Say 1", "")]
    assert all(policy for _, policy, _ in drawn.drawn)


def test_a_chat_is_shown_by_its_last_message():
    assert samples.format_prompt("plain") == "plain"
    assert samples.format_prompt(({"role": "system", "content": "a"}, {"role": "user", "content": "b"})) == "b"
    assert samples.format_prompt(({"role": "user", "content": None},)) == ""
    assert samples.format_prompt(({"role": "assistant", "tool_calls": [{"name": "f"}]},)) == '[{"name": "f"}]'


def test_a_table_keeps_its_cells():
    table = format_table([("a|b", "one\ntwo", "")])
    assert table.splitlines() == [
        "| prompt | policy | reference |",
        "| --- | --- | --- |",
        "| a&#124;b | one<br>two |  |",
    ]


def test_code_in_a_table_shows_its_backticks_and_line_breaks():
    assert format_table([("p", "```\na < b\n```", "")]).splitlines()[-1] == (
        "| p | &#96;&#96;&#96;<br>a &lt; b<br>&#96;&#96;&#96; |  |"
    )


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_any_end_of_a_line_stays_in_its_cell(end):
    """A carriage return by itself, too: Markdown would end the row there."""
    assert format_table([("p", f"one{end}two", f"{end}")]).splitlines()[2:] == ["| p | one<br>two | <br> |"]


def test_prompts_are_those_of_their_answers_in_an_array_on_one_line(tiny_llama, files, tmp_path):
    rows = [{"prompt": f"Say {k}", "chosen": f"{k}.", "rejected": "no"} for k in range(4)]
    (tmp_path / "eval.json").write_text(json.dumps(rows))
    drawing = Samples(num_prompts=3, sampling=GREEDY)
    fit(short_runs.module(tiny_llama), files | {"eval": str(tmp_path / "eval.json")}, tmp_path, [drawing])
    assert [prompt for prompt, *_ in drawing.drawn] == ["Say 0", "Say 1", "Say 2"]
