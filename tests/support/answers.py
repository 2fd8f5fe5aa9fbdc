"""Result files of models that did not run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from dpo_lightning.evaluation.result_file import Result, write_result

MADE_BY = {
    "model": {"path": "outputs/m/final_model", "digest": "0" * 64},
    "data": {"rows.jsonl": "sha256:00"},
    "template": "1" * 64,
    "sampling": {"max_new_tokens": 128, "temperature": 0.7, "top_p": 0.95, "seed": 0},
}


def make_result(path: Path, answers: list[tuple[Any, str]], **sampling: Any) -> Result:
    """Write a result file of (prompt, answer), of two groups and two languages in turn."""
    items = [
        {
            "prompt": prompt,
            "generated": answer,
            "file": "rows.jsonl",
            "line": line,
            "group": ("chat", "code")[line % 2],
            "language": ("en", "ko", "en")[line % 3],
        }
        for line, (prompt, answer) in enumerate(answers, 1)
    ]
    made_by: dict[str, Any] = copy.deepcopy(MADE_BY)
    made_by["sampling"] |= sampling
    return write_result(path, items, {"made_by": made_by, "measures": {}, "slices": {}})
