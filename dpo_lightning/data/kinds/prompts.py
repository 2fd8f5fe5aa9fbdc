"""Prompts without answers, which models answer for an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dpo_lightning.data.examples import Example, Text
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.readers.sources import Row


@dataclass(frozen=True, slots=True)
class PromptExample(Example):
    """A prompt as text; `answers` is empty."""


class PromptKind(RowKind):
    """`prompt` as a string or messages; other columns are not read."""

    example = PromptExample
    columns = ("prompt",)
    answers: tuple[str, ...] = ()
    optional: ClassVar[tuple[str, ...]] = ()

    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Put context columns into the prompt; there are no answers."""
        return self.context.add_turns(row, self.context.add_input(row, values["prompt"])), ()
