"""Rows for both sides of a comparison: written once, read by each trainer with its own reader."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_lightning import DPOModule, PreferenceDataModule
from dpo_lightning.data.kinds.pairs import EncodedPair, PairKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import UserError
from dpo_lightning.models.causal_lm import CausalLM

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
"""ShareGPT's names of the roles."""


def write_rows(source: str, target: Path) -> int:
    """Put pairs into a JSON Lines file of prompt, chosen and rejected messages.

    Args:
        source: any file that `--data.train` takes, or ShareGPT's ranking form (`conversations`, `chosen`, `rejected`).
        target: the file to write.

    Returns:
        The number of rows.
    """
    rows = [row for row in map(as_messages, raw_rows(source)) if row["chosen"] != row["rejected"]]
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def raw_rows(source: str) -> list[Mapping[str, Any]]:
    """Rows of a file, whose form is told by the first."""
    path = Path(source)
    if path.suffix == ".json":
        try:
            rows: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            rows = None  # the reader says what is wrong
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "conversations" in rows[0]:
            return rows
    examples, _ = load_examples(PairKind, source)
    return [{"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} for row in examples]


def as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row as chat messages."""
    if "conversations" in row:
        return {
            "prompt": [turn(part) for part in row["conversations"]],
            "chosen": [turn(row["chosen"])],
            "rejected": [turn(row["rejected"])],
        }
    texts = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {
        name: [{"role": role, "content": row[name]}] if isinstance(row[name], str) else list(row[name])
        for name, role in texts.items()
    }


def turn(part: Mapping[str, str]) -> dict[str, str]:
    """A message of ShareGPT."""
    return {"role": ROLES[part["from"]], "content": part["value"]}


def fitting_rows(model: str, source: str, target: Path, max_length: int, count: int, seed: int) -> dict[str, float]:
    """Draw rows that fit into `max_length`, so that neither side cuts or drops one.

    Args:
        model: whose tokenizer counts.
        source: as `write_rows` takes it.
        target: the file to write, `count` rows in the order of the draw.
        max_length: tokens of prompt and longer answer.
        count: rows to draw.
        seed: of the draw.

    Returns:
        How many rows there were, were refused and were too long, and the mean tokens of prompts and answers.

    Raises:
        SystemExit: fewer rows fit than are asked for.
    """
    rows = write_rows(source, target)
    refused = without_refused(target)
    fitting = read_rows(model, target, max_length)
    if len(fitting) < count:
        raise SystemExit(f"{len(fitting)} rows of {source} fit into {max_length} tokens: {count} are needed")
    drawn = random.Random(seed).sample(fitting, count)
    lines = target.read_text(encoding="utf-8").splitlines(keepends=True)
    target.write_text("".join(lines[row.origin.line - 1] for row in drawn), encoding="utf-8")
    lengths = {
        "prompt": [len(row.prompt_ids) for row in drawn],
        "chosen": [len(row.chosen.ids) for row in drawn],
        "rejected": [len(row.rejected.ids) for row in drawn],
    }
    means = {f"mean_{name}_tokens": statistics.mean(values) for name, values in lengths.items()}
    return {"rows": rows, "refused": refused, "too_long": rows - refused - len(fitting), "drawn": count, **means}


def without_refused(path: Path) -> int:
    """Take out of a file what the reader refuses, and return how many rows that were."""
    try:
        load_examples(PairKind, str(path))
    except UserError as error:
        bad = {int(problem.where.rpartition(":")[2]) for problem in error.problems}
    else:
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for number, line in enumerate(lines, 1) if number not in bad), encoding="utf-8")
    return len(bad)


def read_rows(model: str, path: Path, max_length: int) -> list[EncodedPair]:
    """Token ids of a file's rows; longer ones are dropped."""
    data = PreferenceDataModule(
        train=str(path), batch_size=1, max_length=max_length, overlong="drop", special_tokens="neutralize"
    )
    data.prepare("fit", DPOModule(CausalLM(model)))
    return data.encoded["train"]
