"""Conversations with something beside them: ShareGPT ranking, messages with a label, messages with another answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dpo_lightning.data.formats.base import Format
from dpo_lightning.data.formats.turns import find_role, is_messages
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.sources import Row

CONVERSATIONS = ("conversations", "conversation", "messages", "dialogue", "dialog", "turns", "chat")
"""Columns that have a whole conversation."""

LABELS = ("label", "kto_tag")
ASKING = ("user", "tool")
"""Roles after which an answer follows."""

OTHERS = ("rejected_response", "rejected_messages", "rejected_conversations")


def find_conversation(values: Mapping[str, Any]) -> str:
    """The column with a conversation as a list of messages; "" where there is none."""
    return next((name for name in CONVERSATIONS if is_messages(values.get(name))), "")


class ConversationFormat(Format):
    """Base of the formats whose rows have one conversation, in any of several columns.

    Attributes:
        from_conversation: our columns that come out of the conversation.
    """

    from_conversation: ClassVar[tuple[str, ...]]

    def __init__(self, rows: Sequence[Row]) -> None:
        """Find the column of the conversation, for error messages."""
        super().__init__(rows)
        name = next(filter(None, (find_conversation(row.values) for row in rows)), CONVERSATIONS[0])
        self.renames = {**self.renames, **dict.fromkeys(self.from_conversation, name)}

    def read_conversation(self, values: Mapping[str, Any]) -> list[Any]:
        """The conversation of a row.

        Raises:
            RowError: the row has none, or several.
        """
        found = [name for name in CONVERSATIONS if values.get(name)]
        if len(found) != 1:
            what = "the row has several conversations" if found else "the row has no conversation"
            raise RowError(what, "columns: " + ", ".join(found or values), "write one, in 'messages'")
        turns = values[found[0]]  # an unknown role of one is reported where messages are parsed
        if not (isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)):
            fix = 'write each message as {"role": ..., "content": ...}'
            raise RowError(f"'{found[0]}' is not a list of messages", str(turns), fix)
        return list(turns)


class ConversationPairs(ConversationFormat):
    """`conversations` or `messages` that end with the user, and `chosen, rejected`: ShareGPT's ranking form."""

    name, title, kind = "sharegpt-pairs", "conversations with two answers (ShareGPT ranking)", "pairs"
    columns = ("chosen", "rejected")
    optional = CONVERSATIONS
    from_conversation = ("prompt",)

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a conversation ends with the user, and no column has the prompt."""
        found = find_conversation(values)
        return super().claims(values) and "prompt" not in values and _ends_with_user(values.get(found))

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Read the conversation as the prompt."""
        turns = self.read_conversation(values)
        if find_role(turns[-1]) not in ASKING:
            raise RowError("the conversation does not end with the user", fix="cut the turns after the question")
        return {"prompt": turns, "chosen": values["chosen"], "rejected": values["rejected"]}


class ConversationLabels(ConversationFormat):
    """`messages` or `conversations` whose last turn is judged by `label` or `kto_tag`."""

    name, title, kind = "messages-label", "conversations with a label", "unpaired"
    optional = (*CONVERSATIONS, *LABELS)
    from_conversation = ("prompt", "completion")

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has a conversation and a label, and nothing else to train on."""
        has_label = any(name in values for name in LABELS)
        return has_label and bool(find_conversation(values)) and not values.keys() & {"prompt", "chosen", "completion"}

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Split off the last turn as the answer."""
        prompt, answer = split_last_answer(self.read_conversation(values))
        labels = [name for name in LABELS if values.get(name) is not None]
        if len(labels) != 1:
            raise RowError("the row has no single label", "columns: " + ", ".join(values), "write one column 'label'")
        return {"prompt": prompt, "completion": answer, "label": values[labels[0]]}


class ConversationAnswers(ConversationFormat):
    """`messages` that end with the preferred answer, and the other in `rejected_response` or `rejected_messages`."""

    name, title, kind = "messages-rejected", "conversations with a rejected answer", "pairs"
    optional = (*CONVERSATIONS, *OTHERS)
    from_conversation = ("prompt", "chosen")
    renames = {"rejected": "rejected_response"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has a conversation and another answer."""
        return bool(find_conversation(values)) and any(name in values for name in OTHERS) and "chosen" not in values

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Split off the last turn as the preferred answer."""
        prompt, chosen = split_last_answer(self.read_conversation(values))
        others = [values[name] for name in OTHERS if values.get(name)]
        if len(others) != 1:
            raise RowError("the row has no single rejected answer", fix="write one of " + ", ".join(OTHERS))
        other = others[0]
        if isinstance(other, str):
            other = [{"role": "assistant", "content": other}]
        elif is_messages(other) and find_role(other[0]) != "assistant":
            before, other = split_last_answer(other)
            if [*map(_turn_key, before)] != [*map(_turn_key, prompt)]:
                raise RowError("both conversations differ before the last answer", fix="give both the same turns")
        return {"prompt": prompt, "chosen": chosen, "rejected": other}


class ShareGPT(ConversationFormat):
    """`conversations`: turns of `from` and `value`, or of `role` and `content`, for SFT."""

    name, title, kind = "sharegpt", "ShareGPT conversations", "sft"
    optional = CONVERSATIONS
    from_conversation = ("messages",)

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has a conversation under another name than `messages`, and no answers or label beside it."""
        beside = {"messages", "prompt", "chosen", "rejected", "completion", "mask", *LABELS, *OTHERS}
        return bool(find_conversation(values)) and not values.keys() & beside

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Read the conversation as `messages`."""
        return {"messages": self.read_conversation(values)}


def split_last_answer(turns: Any) -> tuple[list[Any], list[Any]]:
    """Split a conversation before its last run of turns of the assistant and its tools.

    Raises:
        RowError: it does not end with the assistant, or nothing is before its answer.
    """
    messages: Sequence[Any] = turns if isinstance(turns, list) else []
    if not messages or find_role(messages[-1]) != "assistant":
        raise RowError("the conversation does not end with the assistant's answer", fix="cut the turns after it")
    cut = len(messages)
    while cut and find_role(messages[cut - 1]) in ("assistant", "tool"):
        cut -= 1
    return list(messages[:cut]), list(messages[cut:])


def _ends_with_user(turns: Any) -> bool:
    return is_messages(turns) and find_role(turns[-1]) in ASKING


def _turn_key(turn: Any) -> tuple[str, Any]:
    """Role and text of a raw message, equal for equal turns under other names."""
    return find_role(turn), turn.get("content", turn.get("value"))
