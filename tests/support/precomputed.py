"""Policies whose reference is precomputed, ready for their first step, without a trainer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.dpo import DPOModule
from dpo_lightning.references import precomputed
from dpo_lightning.references import reference_pass as scoring
from dpo_lightning.references.precomputed import Precomputed
from dpo_lightning.references.reference_pass import ScoringContext
from support import short_runs


def data(file: Any, **options: Any) -> PreferenceDataModule:
    """A data module of pairs, two to a batch."""
    defaults = {"train": str(file), "batch_size": 2, "max_length": 128, "allow": "leak"}
    return PreferenceDataModule(**{**defaults, **options})


def scoring_of(
    made: DPOModule, rows: PreferenceDataModule, precision: str = "32-true", **options: Any
) -> ScoringContext:
    """A run without a trainer."""
    rows.prepare("fit", made)
    return ScoringContext(rows.encoded, rows, made.tokenizer, precision, lambda model: model, nullcontext, **options)


def loaded(folder: Path, reference: Precomputed, **policy: Any) -> DPOModule:
    """A policy before its first step, whose reference knows no rows yet."""
    made = short_runs.module(folder, reference, **policy)
    made._load()
    return made


def looked_up(
    folder: Path, file: Any, reference: Precomputed | None = None, precision: str = "32-true", **options: Any
) -> DPOModule:
    """A policy before its first step, whose reference knows the rows of a file; options of the model or the data."""
    policy = {name: options.pop(name) for name in ("lora", "dtype", "gradient_checkpointing") if name in options}
    made = loaded(folder, reference or Precomputed(), **policy)
    made.reference.look_up(made.policy, scoring_of(made, data(file, **options), precision))
    return made


def files() -> list[Path]:
    """What lies where no path was given."""
    return sorted(Path("outputs/reference").iterdir())


def count_pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of pairs of every batch that is scored from now on."""
    sizes: list[int] = []
    real = scoring.score_rows

    def watched(model: Any, head: Any, layout: Any, rows: Any, run: Any) -> Any:
        sizes.append(len(rows))
        return real(model, head, layout, rows, run)

    monkeypatch.setattr(precomputed, "score_rows", watched)
    return sizes
