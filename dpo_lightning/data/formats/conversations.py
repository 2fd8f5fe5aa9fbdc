"""Conversations with something beside them: ShareGPT ranking, messages with a label, messages with another answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_lightning.data.formats.base import Format
from dpo_lightning.data.formats.turns import find_role, is_messages
from dpo_lightning.data.readers.bad_rows import RowError

CONVERSATIONS = ("conversations", "conversation", "messages", "dialogue", "dialog", "turns", "chat")
"""Columns that have a whole conversation."""

LABELS = ("label", "kto_tag")
OTHERS = ("rejected_response", "rejected_messages", "rejected_conversations")


def find_conversation(values: Mapping[str, Any]) -> str:
    """The column with a conversation as a list of messages; "" where there is none."""
    return next((name for name in CONVERSATIONS if is_messages(values.get(name))), "")


class ConversationPairs(Format):
    """`conversations` or `messages` that end with the user, and `chosen, rejected`: ShareGPT's ranking form."""

    name, title, kind = "sharegpt-pairs", "conversations with two answers (ShareGPT ranking)", "pairs"
    columns = ("chosen", "rejected")
    optional = CONVERSATIONS
    renames = {"prompt": "conversations"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a conversation ends with the user, and no column has the prompt."""
        found = find_conversation(values)
        return super().claims(values) and "prompt" not in values and _ends_with_user(values.get(found))

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Read the conversation as the prompt."""
        name = find_conversation(values)
        if not _ends_with_user(values.get(name)):
            what = "the row has no conversation that ends with the user"
            raise RowError(what, "columns: " + ", ".join(values), "end it with the question that both answer")
        return {"prompt": values[name], "chosen": values["chosen"], "rejected": values["rejected"]}


class ConversationLabels(Format):
    """`messages` or `conversations` whose last turn is judged by `label` or `kto_tag`."""

    name, title, kind = "messages-label", "conversations with a label", "unpaired"
    optional = (*CONVERSATIONS, *LABELS)
    renames = {"prompt": "messages", "completion": "messages"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has a conversation and a label, and nothing else to train on."""
        has_label = any(name in values for name in LABELS)
        return has_label and bool(find_conversation(values)) and not values.keys() & {"prompt", "chosen", "completion"}

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Split off the last turn as the answer."""
        prompt, answer = split_last_answer(values.get(find_conversation(values)))
        labels = [name for name in LABELS if name in values]
        if len(labels) != 1:
            raise RowError("the row has no single label", "columns: " + ", ".join(values), "write one column 'label'")
        return {"prompt": prompt, "completion": answer, "label": values[labels[0]]}


class ConversationAnswers(Format):
    """`messages` that end with the preferred answer, and the other in `rejected_response` or `rejected_messages`."""

    name, title, kind = "messages-rejected", "conversations with a rejected answer", "pairs"
    optional = (*CONVERSATIONS, *OTHERS)
    renames = {"prompt": "messages", "chosen": "messages", "rejected": "rejected_response"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has a conversation and another answer."""
        return bool(find_conversation(values)) and any(name in values for name in OTHERS) and "chosen" not in values

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Split off the last turn as the preferred answer."""
        prompt, chosen = split_last_answer(values.get(find_conversation(values)))
        others = [values[name] for name in OTHERS if values.get(name)]
        if len(others) != 1:
            raise RowError("the row has no single rejected answer", fix="write one of " + ", ".join(OTHERS))
        other = others[0]
        if isinstance(other, str):
            other = [{"role": "assistant", "content": other}]
        elif is_messages(other) and find_role(other[0]) != "assistant":
            _, other = split_last_answer(other)
        return {"prompt": prompt, "chosen": chosen, "rejected": other}


class ShareGPT(Format):
    """`conversations`: turns of `from` and `value`, or of `role` and `content`, for SFT."""

    name, title, kind = "sharegpt", "ShareGPT conversations", "sft"
    optional = CONVERSATIONS
    renames = {"messages": "conversations"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has a conversation under another name than `messages`, and no answers or label beside it."""
        beside = {"messages", "prompt", "chosen", "rejected", "completion", "mask", *LABELS, *OTHERS}
        return bool(find_conversation(values)) and not values.keys() & beside

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Read the conversation."""
        name = find_conversation(values)
        if not name:
            raise RowError("the row has no conversation", "columns: " + ", ".join(values), "add 'conversations'")
        return {"messages": values[name]}


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
    return is_messages(turns) and find_role(turns[-1]) in ("user", "tool")
