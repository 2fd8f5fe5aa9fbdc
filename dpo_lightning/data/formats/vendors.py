"""Files of training services and frameworks: Vertex AI, Bedrock and Nova, NeMo, LLaMA-Factory, Dolly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_lightning.data.formats.base import Format, read_list, read_object
from dpo_lightning.data.formats.scored_objects import ScoredObjects
from dpo_lightning.data.formats.turns import has_candidates, is_messages, join_parts
from dpo_lightning.data.formats.twin_columns import is_answer
from dpo_lightning.data.readers.bad_rows import RowError

PAIR = 2
SYSTEM = ("systemInstruction", "system_instruction")
LABELS = {"preferred": "chosen", "non-preferred": "rejected"}


class VertexSFT(Format):
    """`contents`, turns of `role` and `parts`, and `systemInstruction`: supervised tuning of Gemini."""

    name, title, kind = "vertex", "Vertex AI conversations", "sft"
    columns, optional = ("contents",), SYSTEM
    renames = {"messages": "contents", "system": "systemInstruction"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether `contents` is a conversation, and no answers are beside it."""
        return super().claims(values) and is_messages(values["contents"]) and "completions" not in values

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Read the conversation, and the text of the system instruction."""
        return {"messages": values["contents"], "system": _read_system(values)}


class VertexPreference(ScoredObjects):
    """`contents` and `completions`, objects with `score` and `completion`: preference tuning of Gemini."""

    name, title = "vertex-preference", "Vertex AI preferences"
    guesses, optional = False, SYSTEM

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether the conversation and the answers are lists."""
        return "contents" in values and super().claims(values)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take the scores out of the completions, and read the system instruction."""
        return {**super().convert(values), "system": _read_system(values)}


class Bedrock(Format):
    """`system` (a list of texts) and `messages`: supervised tuning on Bedrock."""

    name, title, kind = "bedrock", "Bedrock conversations", "sft"
    columns, optional = ("messages", "system"), ("schemaVersion",)

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether the system message is a list, and the conversation has one last answer."""
        claimed = super().claims(values) and isinstance(values["system"], list) and is_messages(values["messages"])
        return claimed and not has_candidates(values["messages"])

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Join the texts of the system message."""
        return {"messages": values["messages"], "system": join_parts(read_list(values["system"], "system"), "'system'")}


class BedrockPreference(Format):
    """`messages`, the last with two `candidates`, one of them `preferred`; and `system`: DPO of Nova."""

    name, title, kind = "bedrock-preference", "Bedrock preferences", "pairs"
    columns, optional = ("messages",), ("system", "schemaVersion")
    renames = {"prompt": "messages", "chosen": "candidates", "rejected": "candidates"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether the last message has candidates."""
        return has_candidates(values.get("messages"))

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take the candidates out of the last message."""
        messages = read_list(values["messages"], "messages")
        last = read_object(messages[-1] if messages else None, "the last of messages", ("candidates",))
        given = read_list(last["candidates"], "candidates")
        found = {}
        for number, item in enumerate(given, 1):
            candidate = read_object(item, f"candidates {number}", ("content", "preferenceLabel"))
            content = candidate["content"]
            text = join_parts(content, f"'candidates' {number}") if isinstance(content, list) else content
            found[LABELS.get(str(candidate["preferenceLabel"]).strip().lower(), "")] = text
        if len(given) != PAIR or found.keys() != {"chosen", "rejected"}:
            shown = ", ".join(str(item["preferenceLabel"]) for item in given)
            raise RowError("'candidates' are not one preferred and one non-preferred", shown, "keep one of each")
        system = values.get("system")
        text = join_parts(system, "'system'") if isinstance(system, list) else system
        return {"prompt": messages[:-1], **found, "system": text}


class NeMo(Format):
    """`system, mask, conversations`: chats of NeMo; `mask` is the role that is not learned, which must be the user."""

    name, title, kind = "nemo", "NeMo conversations", "sft"
    columns, optional = ("mask", "conversations"), ("type",)
    renames = {"messages": "conversations"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a conversation and a mask are there."""
        return super().claims(values) and isinstance(values["mask"], str) and is_messages(values["conversations"])

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Check the mask, and that no turn has attributes, on which its answer would depend."""
        if str(values["mask"]).strip().lower() != "user":
            what = "'mask' is not User: only the turns of the assistant are learned"
            raise RowError(what, values["mask"], "write User, or remove the row")
        turns = []
        for number, item in enumerate(read_list(values["conversations"], "conversations"), 1):
            turn = dict(read_object(item, f"conversations {number}"))
            if label := turn.pop("label", None):
                what = f"'conversations' {number} has a 'label', and the answer may depend on it"
                raise RowError(what, label, "write it into the text, or remove it")
            turns.append(turn)
        return {"messages": turns}


class AlpacaPairs(Format):
    """`instruction, input, output`, where `output` is a list of the better and the worse answer (LLaMA-Factory)."""

    name, title, kind = "alpaca-pairs", "instructions with two outputs, the better first", "pairs"
    columns = ("instruction", "output")
    renames = {"prompt": "instruction", "chosen": "output", "rejected": "output"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether the output is a list of two answers."""
        if not super().claims(values) or not isinstance(values["output"], list) or "chosen" in values:
            return False
        output = values["output"]
        return len(output) == PAIR and all(map(is_answer, output)) and not is_messages(output)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Split the list into the better and the worse answer."""
        given = read_list(values["output"], "output")
        if len(given) != PAIR:
            raise RowError(f"'output' has {len(given)} answers, and a pair has two", fix="keep two, the better first")
        return {"prompt": values["instruction"], "chosen": given[0], "rejected": given[1]}


class Dolly(Format):
    """`instruction, context, response, category`: the context belongs to the instruction."""

    name, title, kind = "dolly", "Dolly instructions", "sft"
    columns = ("instruction", "context", "response", "category")
    renames = {"prompt": "instruction", "input": "context", "completion": "response"}  # noqa: RUF012

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns under our names."""
        return {ours: values[name] for ours, name in self.renames.items()}


def _read_system(values: Mapping[str, Any]) -> str | None:
    """The text of the system instruction; None without one."""
    for name in SYSTEM:
        value = values.get(name)
        if isinstance(value, dict):
            return join_parts(read_list(read_object(value, name, ("parts",))["parts"], f"{name}.parts"), f"'{name}'")
        if value is not None:
            if not isinstance(value, str):
                raise RowError(f"'{name}' is neither text nor an object", value, "write an object with 'parts'")
            return value
    return None
