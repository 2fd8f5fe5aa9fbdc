"""The final model: whole or not there, loaded by anyone's tools, with a card that tells how it was made."""

import hashlib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from support import short_runs, tiny_models
from transformers import pipeline

from dpo_lightning import __version__
from dpo_lightning.callbacks import final_model
from dpo_lightning.callbacks.final_model import FinalModel, describe, make_run_card
from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.logps import score
from dpo_lightning.losses import DPOLoss, IPOLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references import FrozenCopy
from dpo_lightning.runs.file_digests import data_digests
from dpo_lightning.runs.lineage import Stage


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


def train(made, file, folder, **options):
    """A run of two steps that leaves a final model."""
    data = PreferenceDataModule(train=str(file), batch_size=2, max_length=128, **options)
    return short_runs.fit(made, None, folder, data=data, callbacks=[FinalModel()], enable_checkpointing=False)


@pytest.mark.parametrize("lora", [None, Lora(r=2), Lora(r=2, modules_to_save=["embed_tokens"])])
def test_it_is_loaded_by_a_pipeline(lora, tiny_llama, file, tmp_path):
    made = short_runs.module(tiny_llama, lora=lora)
    train(made, file, tmp_path / "run")
    folder = tmp_path / "run/final_model"
    loaded = pipeline("text-generation", model=str(folder))
    pairs = short_runs.batch(made, file)
    assert torch.equal(score(loaded.model.eval(), pairs).sums, score(made.policy, pairs).sums)
    turn = loaded([{"role": "user", "content": "Hi"}], max_new_tokens=3, do_sample=False)[0]["generated_text"][-1]
    assert turn["role"] == "assistant"
    assert torch.equal(score(CausalLM(str(folder)).build().eval(), pairs).sums, score(made.policy, pairs).sums)
    assert not list((tmp_path / "run").glob(".final_model*"))


def test_the_template_of_the_run_is_saved(tiny_llama, file, tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text("{# own #}" + tiny_models.CHATML)
    train(short_runs.module(tiny_llama), file, tmp_path / "run", chat_template=str(template))
    assert CausalLM(str(tmp_path / "run/final_model")).tokenizer().chat_template == template.read_text()


def test_other_users_may_read_it(tiny_llama, file, tmp_path):
    train(short_runs.module(tiny_llama), file, tmp_path / "run")
    modes = {path.stat().st_mode for path in (tmp_path / "run/final_model").iterdir()}
    assert len(modes) == 1


def test_the_card_tells_the_making(tiny_llama, file, tmp_path):
    made = short_runs.module(tiny_llama, loss=DPOLoss(beta=0.25, label_smoothing=0.1), lora=Lora(r=3))
    train(made, file, tmp_path / "my-run")
    text = (tmp_path / "my-run/final_model/README.md").read_text()
    head, _, body = text.removeprefix("---\n").partition("---\n")
    assert f"base_model: {tiny_llama}" in head
    assert "library_name: peft" in head
    assert "# my-run" in body
    assert "(DPOModule), 2 optimizer steps" in body
    assert f"| policy | `{tiny_llama}` |" in body
    assert "Lora(r=3, lora_alpha=32" in body
    assert "| loss | DPOLoss(beta=0.25, divergence=ReverseKL(), label_smoothing=0.1) |" in body
    assert "| reference | AdapterDisabled |" in body
    assert "| learning rate | 0.01 |" in body
    assert "| precision | 32-true |" in body
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    assert f"| train data | `{file}` sha256:{digest} |" in body
    assert f"| dpo-lightning | {__version__} |" in body
    for name in ("torch", "lightning", "transformers", "peft"):
        assert f"| {name} | {version(name)} |" in body


def test_the_card_of_a_whole_model_and_another_reference(tiny_llama, file, tmp_path):
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    made = short_runs.module(tiny_llama, FrozenCopy(path=str(other)), loss=IPOLoss())
    train(made, file, tmp_path / "run")
    text = (tmp_path / "run/final_model/README.md").read_text()
    assert "library_name: transformers" in text
    assert f"| reference | FrozenCopy `{other}` |" in text
    assert "| loss | IPOLoss(beta=" in text
    assert "LoRA" not in text


def test_the_card_names_the_whole_chain(tiny_llama, file, tmp_path):
    train(short_runs.module(tiny_llama, lora=Lora(r=2)), file, tmp_path / "sft")
    adapter = tmp_path / "sft/final_model"
    train(short_runs.module(adapter), file, tmp_path / "dpo")
    text = (tmp_path / "dpo/final_model/README.md").read_text()
    assert f"base_model: {tiny_llama}" in text
    assert f"| policy | `{adapter}` |" in text
    assert CausalLM(str(tmp_path / "dpo/final_model")).base_path() == str(tiny_llama)


def test_an_evaluation_afterwards_is_added_to_the_card(tiny_llama, file, tmp_path):
    data = PreferenceDataModule(train=str(file), eval=str(file), batch_size=2, max_length=128, allow="leak")
    made = short_runs.module(tiny_llama)
    options = {"callbacks": [FinalModel()], "limit_val_batches": 1.0, "check_val_every_n_epoch": None}
    runner = short_runs.fit(
        made, None, tmp_path, data=data, val_check_interval=100, enable_checkpointing=False, **options
    )
    assert "eval/rewards/accuracies" not in (tmp_path / "final_model/README.md").read_text()
    runner.validate(made, datamodule=data, verbose=False)
    text = (tmp_path / "final_model/README.md").read_text()
    accuracy = float(runner.callback_metrics["eval/rewards/accuracies"])
    assert f"| eval/rewards/accuracies | {accuracy:.4f} |" in text
    assert f"| eval data | `{file}` sha256:" in text
    assert "2 optimizer steps" in text


def test_nothing_is_written_without_training(tiny_llama, file, tmp_path):
    data = PreferenceDataModule(train=str(file), eval=str(file), batch_size=2, max_length=128, allow="leak")
    runner = short_runs.trainer(tmp_path, callbacks=[FinalModel()], enable_checkpointing=False)
    runner.validate(short_runs.module(tiny_llama), datamodule=data, verbose=False)
    assert not list(tmp_path.iterdir())


def test_a_later_result_replaces_an_earlier_one_whole(tiny_llama, file, tmp_path):
    stale = tmp_path / "final_model"
    stale.mkdir()
    (stale / "stale.txt").write_text("of an earlier run")
    (tmp_path / ".final_model.partial").mkdir()
    (tmp_path / ".final_model.partial/torn.safetensors").write_text("")
    train(short_runs.module(tiny_llama), file, tmp_path)
    names = {path.name for path in stale.iterdir()}
    assert "model.safetensors" in names
    assert not names & {"stale.txt", "torn.safetensors"}
    assert not list(tmp_path.glob(".final_model*"))


def test_a_failure_while_writing_leaves_the_earlier_result(tiny_llama, file, tmp_path, monkeypatch):
    train(short_runs.module(tiny_llama), file, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "final_model").iterdir()}

    def fail(model, tokenizer, folder, base, state):
        (folder / "model.safetensors").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(final_model, "save_model", fail)
    with pytest.raises(OSError, match="No space"):
        train(short_runs.module(tiny_llama), file, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "final_model").iterdir()} == before


def test_what_is_no_dataclass_is_named(tiny_llama, file, tmp_path):
    assert describe(object()) == "object()"
    runner = train(made := short_runs.module(tiny_llama), file, tmp_path)
    data = data_digests({"train": ["hf://org/name", str(file)], "eval": None})
    text = str(make_run_card(runner, made, [Stage("DPOModule", {}, "", "", data=data)]))
    assert "| train data | `hf://org/name`" in text
    assert "eval data" not in text
