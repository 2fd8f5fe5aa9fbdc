"""The `weight` of a row on its whole way from the file into a batch, for every kind of rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import tiny_models
from support.row_files import jsonl

from dpo_lightning import PreferenceDataModule, RankedDataModule, SFTDataModule, UnpairedDataModule

KINDS = {
    "pairs": (PreferenceDataModule, {"chosen": "Blue.", "rejected": "No."}),
    "lists": (RankedDataModule, {"responses": ["Blue.", "Red.", "No."]}),
    "unpaired": (UnpairedDataModule, {"completion": "Blue."}),
    "sft": (SFTDataModule, {"completion": "Blue."}),
}
WEIGHTS = [0.5, 0.0, 1.0, 3.0]


@pytest.mark.parametrize("column", ["weight", "importance"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_reach_the_batch(tmp_path: Path, kind: str, column: str) -> None:
    make, answers = KINDS[kind]
    rows: list[dict[str, Any]] = [{"prompt": f"Name {k}.", **answers, column: w} for k, w in enumerate(WEIGHTS)]
    rows = [row | {"label": k % 2} for k, row in enumerate(rows)] if kind == "unpaired" else rows
    data = make(jsonl(tmp_path, [*rows, {k: v for k, v in rows[0].items() if k != column} | {"prompt": "Name none."}]))
    data.columns = {"weight": column}
    module = SimpleNamespace(
        tokenizer=tiny_models.make_chat_tokenizer(),
        end_ids=frozenset(),
        check_length=lambda _: None,
        data_module=make,
        needs_mismatched=False,
    )
    data.prepare("fit", module)
    encoded = data.encoded["train"]
    assert [row.weight for row in encoded] == [*WEIGHTS, 1.0]
    batch = data.collator([(row, index) for index, row in enumerate(encoded)] + [(encoded[3], -1)])
    assert batch.weights.tolist() == [*WEIGHTS, 1.0, 0.0]
