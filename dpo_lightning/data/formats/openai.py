"""Preference rows of the fine-tuning services of OpenAI and Azure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_lightning.data.formats.base import Format, read_object


class OpenAIPreference(Format):
    """`input` (with `messages` and `tools`), `preferred_output`, `non_preferred_output`."""

    name, title, kind = "openai-preference", "OpenAI preference rows", "pairs"
    columns = ("input", "preferred_output", "non_preferred_output")
    renames = {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether the messages are in an object `input`."""
        return super().claims(values) and isinstance(values["input"], dict)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take messages and tools out of `input`."""
        given = read_object(values["input"], "input", ("messages",))
        answers = {"chosen": values["preferred_output"], "rejected": values["non_preferred_output"]}
        return {"prompt": given["messages"], "tools": given.get("tools"), **answers}
