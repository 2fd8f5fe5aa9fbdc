"""Files of rows, and their preparation by a tiny model."""

import pytest
from support.prepared_rows import ROWS, write

from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.dpo import DPOModule
from dpo_lightning.models.causal_lm import CausalLM


@pytest.fixture
def files(tmp_path):
    return {"train": write(tmp_path / "train.jsonl", ROWS[:25]), "eval": write(tmp_path / "eval.jsonl", ROWS[25:])}


@pytest.fixture
def prepare(tiny_llama, files, tmp_path, caplog):
    """Prepare rows; return the data module and the lines that were logged."""
    caplog.set_level("INFO", "dpo_lightning")

    def run(module=None, stage="fit", kind=PreferenceDataModule, **options):
        caplog.clear()
        data = kind(**{**files, "max_length": 256, "cache": str(tmp_path / "cache"), **options})
        data.prepare(stage, module or DPOModule(CausalLM(str(tiny_llama))))
        return data, [record.message for record in caplog.records]

    return run
