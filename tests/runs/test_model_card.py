"""Model cards: metadata that the hub's own reader takes, whatever a path is called."""

import shutil

import pytest
from huggingface_hub import ModelCard
from support import short_runs
from support.command_line import run

from dpo_lightning.callbacks import FinalModel
from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.models.causal_lm import Lora
from dpo_lightning.runs.model_card import make_card

NAMES = ["org/name", "a: b #c", "[x]", "'q\"", "null", "0x10", "- y", "모델"]


@pytest.mark.parametrize("base", NAMES)
@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_metadata_is_quoted_as_yaml_needs_it(base, library, tmp_path):
    make_card("A run", "Text.\n", base, library).save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "base_model": base,
        "library_name": library,
        "pipeline_tag": "text-generation",
    }
    assert card.text.strip() == "# A run\n\nText."


def test_a_run_and_its_export_name_a_base_whose_path_is_no_plain_yaml(tiny_llama, tmp_path):
    base = tmp_path / "base: 1 #2"
    shutil.copytree(tiny_llama, base)
    file = short_runs.write_pairs(tmp_path / "pairs.jsonl")
    data = PreferenceDataModule(train=str(file), batch_size=2, max_length=128)
    made = short_runs.module(base, lora=Lora(r=2))
    short_runs.fit(made, None, tmp_path / "run", data=data, callbacks=[FinalModel()], enable_checkpointing=False)
    ran = run("export", "--model", tmp_path / "run/final_model", "--out", tmp_path / "whole")
    assert ran.code == 0, ran
    for folder, library, text in (("run/final_model", "peft", "Trained by"), ("whole", "transformers", "Exported by")):
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert card.data.base_model == str(base)
        assert card.data.library_name == library
        assert text in card.text
        assert "## Stages" in card.text
