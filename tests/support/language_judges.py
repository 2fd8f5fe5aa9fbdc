"""A language model as a judge, and answers for it of which one model's are the better ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo_lightning.comparison.judges.llm import LanguageModelJudge

TEMPLATE = "P {prompt} 1 {answer_1} 2 {answer_2} V"
PROMPTS = ["p", "q", "r"]
GOOD, BAD = ["good", "fine good", "good!"], ["bad", "worse", "ugly"]


def judge(folder: Path, speaker: Any, template: str = TEMPLATE, **options: Any) -> LanguageModelJudge:
    """The judge whose verdicts are kept in a folder."""
    return LanguageModelJudge(speaker, template, folder / "c.verdicts.jsonl", **options)


def for_good(text: str) -> str:
    """A fair judge: the good answer is the better one."""
    first = text.partition("2 ")[0]
    return "reasons [[1]]" if "good" in first else "reasons [[2]]"
