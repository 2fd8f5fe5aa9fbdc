"""The date that a template writes is fixed when a run begins, and kept: a run that goes on tomorrow has its prompts."""

import datetime
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import short_runs, tiny_models
from support.chat_templates import LLAMA, LLAMA_FIXED
from support.command_line import Bench, refused, run
from transformers.utils import chat_template_utils

from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.data.encoding import chat_templates
from dpo_lightning.models import generation
from dpo_lightning.models.causal_lm import CausalLM

FIRST, NEXT = datetime.date(2026, 3, 5), datetime.date(2026, 3, 6)
NOTE = "note: the chat template writes the date "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with Llama 3.2's template."""
    tokenizer = tiny_models.make_chat_tokenizer(template=LLAMA)
    return tiny_models.save(tmp_path_factory.mktemp("dated"), tiny_models.make_llama(), tokenizer)


@pytest.fixture
def set_day(monkeypatch):
    """Let it be a day, for this package and for transformers."""

    def change(day):
        today = type("Today", (datetime.date,), {"today": classmethod(lambda cls: day)})
        noon = datetime.datetime(day.year, day.month, day.day, 12)
        now = type("Now", (datetime.datetime,), {"now": classmethod(lambda cls, tz=None: noon)})
        monkeypatch.setattr(chat_templates, "date", today)
        monkeypatch.setattr(chat_template_utils, "datetime", now)

    change(FIRST)
    return change


@pytest.fixture
def bench(tmp_path, model, monkeypatch):
    """The recipe without its samples, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    made = Bench(tmp_path, model)
    quiet = made.overlay("trainer: {callbacks: []}")
    options = made.options
    made.options = lambda out="run": [*options(out), *quiet]
    return made


def weights(folder):
    return load_file(folder / "final_model/model.safetensors")


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def recorded(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"].get("template_date")


def done(ran, day):
    assert ran.code == 0, ran
    assert f"{NOTE}{day}; --data.template_date changes it\n" in ran.out
    assert ran.out.count(NOTE) == 1
    return ran


def test_a_run_keeps_its_date_and_goes_on_with_it(bench, tmp_path, set_day):
    done(bench.fit(), FIRST)
    assert recorded(tmp_path / "run") == "2026-03-05"
    done(bench.fit("--trainer.max_epochs", 2, out="whole"), FIRST)
    set_day(NEXT)
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    ran = done(
        bench.fit("--trainer.max_epochs", 2, "--ckpt_path", tmp_path / "copy/checkpoints/last.ckpt", out="copy"), FIRST
    )
    assert "template_date: 2026-03-05, from the checkpoint's run\n" in ran.out
    assert same(weights(tmp_path / "copy"), weights(tmp_path / "whole"))
    done(run("fit", "--config", tmp_path / "run/config.yaml", "--output_dir", "again"), FIRST)
    assert same(weights(tmp_path / "again"), weights(tmp_path / "run"))
    done(bench.fit(out="other"), NEXT)
    assert recorded(tmp_path / "other") == "2026-03-06"
    assert not same(weights(tmp_path / "other"), weights(tmp_path / "run"))
    done(bench.fit("--data.template_date", FIRST, out="given"), FIRST)
    assert same(weights(tmp_path / "given"), weights(tmp_path / "run"))
    for command in ("validate", "predict"):
        done(bench.run(command, "--ckpt_path", checkpoint), FIRST)
    refused(
        bench.fit("--ckpt_path", checkpoint, "--data.template_date", NEXT, "--trainer.max_epochs", 2, out="bad"),
        64,
        "data.template_date is '2026-03-06', the checkpoint's run had '2026-03-05'",
    )


def test_a_file_of_log_probabilities_is_bound_to_the_date(bench, tmp_path, set_day):
    file = ("--model.reference", "Precomputed", "--model.reference.path", "mine.safetensors")
    ran = done(bench.run("precompute", "--out", "mine.safetensors"), FIRST)
    assert "--model.reference.path mine.safetensors --data.template_date 2026-03-05\n" in ran.out
    set_day(NEXT)
    ran = bench.fit(*file)
    refused(ran, 64, " of 2026-03-05, this run has ", " of 2026-03-06 at mine.safetensors")
    assert "template: the file has " in ran.err
    ran = done(bench.fit(*file, "--data.template_date", FIRST), FIRST)
    assert "computing" not in ran.out


def test_a_rank_that_begins_after_midnight_takes_the_first_ones_date(bench, model, set_day, tmp_path):
    set_day(NEXT)
    data = PreferenceDataModule(train=str(bench.train), max_length=128)
    strategy = SimpleNamespace(broadcast=lambda _: FIRST)
    module = short_runs.module(model)
    data.trainer = SimpleNamespace(lightning_module=module, world_size=1, strategy=strategy, default_root_dir=tmp_path)
    data.setup("fit")
    prompts = [data.trainer.lightning_module.tokenizer.decode(row.prompt_ids) for row in data.encoded["train"]]
    assert len(prompts) == 8
    assert all("05 Mar 2026" in prompt for prompt in prompts)


def test_another_template_has_no_date(tmp_path, tiny_llama, monkeypatch, set_day):
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, tiny_llama)
    ran = bench.run("precompute", "--data.template_date", FIRST)
    assert ran.code == 0, ran
    assert "note: data.template_date is not used: the chat template writes no date\n" in ran.out
    assert ran.out.count("template_date") == 1
    ran = bench.run("precompute")
    assert "computing" not in ran.out
    assert "template_date" not in ran.out
    refused(bench.fit("--data.template_date", "tomorrow"), 64, "not a date at data.template_date", "2026-11-28")


def test_a_template_file_with_a_date_of_its_own_takes_the_one_that_is_given(bench, tmp_path, set_day):
    (tmp_path / "fixed.jinja").write_text(LLAMA_FIXED)
    ran = bench.run("precompute", "--data.chat_template", "fixed.jinja")
    assert ran.code == 0, ran
    assert "the date" not in ran.out
    done(bench.run("precompute", "--data.chat_template", "fixed.jinja", "--data.template_date", NEXT), NEXT)


def test_infer_writes_todays_date_or_the_one_that_is_given(model, set_day, monkeypatch):
    asked = []
    words = CausalLM(str(model)).tokenizer()
    monkeypatch.setattr(
        generation, "generate_ids", lambda _, prompts, *more: [asked.append(words.decode(prompts[0])) or [1]]
    )
    command = ("infer", "--model", model, "--instruction", "Hello")
    assert run(*command).code == run(*command, "--template_date", NEXT).code == 0
    assert ["05 Mar 2026" in asked[0], "06 Mar 2026" in asked[1]] == [True, True]
    refused(run(*command, "--template_date", "x"), 64, "not a date at --template_date")
