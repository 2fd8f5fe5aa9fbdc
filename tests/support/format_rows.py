"""Sample rows of every format, in the shape in which tools and data sets write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_lightning.data.formats.base import KindName
from dpo_lightning.data.formats.recognition import FORMATS
from dpo_lightning.data.load import KINDS, load_examples
from support.comparison_rows import COMPARISONS, LISTS
from support.format_texts import (
    ANSWERED,
    ASKED,
    BAD,
    BAD2,
    CHATS,
    GOOD,
    GOOD2,
    LIST,
    MIDDLE,
    NEXT,
    PAIR,
    Q2,
    SECOND,
    TEXTS,
    Q,
    Sample,
    spoken,
    transcript,
    twice,
)
from support.row_files import assistant, jsonl, user
from support.vendor_rows import VENDORS

OWN = {
    "pairs": Sample([PAIR, SECOND], **TEXTS),
    "ranked": Sample(
        [{"prompt": Q, "responses": [GOOD, MIDDLE, BAD]}, {"prompt": Q2, "responses": [GOOD2, BAD2]}], **LIST
    ),
    "unpaired": Sample(
        [{"prompt": Q, "completion": GOOD, "label": True}, {"prompt": Q2, "completion": BAD2, "label": False}],
        Q,
        [GOOD],
        {"good": True},
    ),
    "sft": Sample([{"prompt": Q, "completion": GOOD}, {"prompt": Q2, "completion": GOOD2}], Q, [GOOD]),
}
CONVERSATIONS = {
    "openai-preference": Sample(
        twice(
            {
                "input": {"messages": [user(Q)], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [assistant(GOOD)],
                "non_preferred_output": [assistant(BAD)],
            },
            input={"messages": [user(Q2)]},
        ),
        **CHATS,
    ),
    "sharegpt-pairs": Sample(
        twice(
            {
                "conversations": [spoken("human", Q)],
                "chosen": spoken("gpt", GOOD),
                "rejected": spoken("gpt", BAD),
            },
            conversations=[spoken("human", Q2)],
        ),
        **CHATS,
    ),
    "messages-rejected": Sample(
        twice({"messages": [user(Q), assistant(GOOD)], "rejected_response": BAD}, messages=NEXT), **CHATS
    ),
    "messages-label": Sample(
        twice({"messages": [user(Q), assistant(GOOD)], "label": True}, messages=NEXT, label=False),
        ASKED,
        ANSWERED[:1],
        {"good": True},
    ),
    "sharegpt": Sample(
        twice(
            {"conversations": [spoken("human", Q), spoken("gpt", GOOD)]},
            conversations=[spoken("human", Q2), spoken("gpt", GOOD2)],
        ),
        ASKED,
        ANSWERED[:1],
    ),
    "transcript-pairs": Sample(
        [
            {"chosen": transcript(Q, GOOD), "rejected": transcript(Q, BAD)},
            {"chosen": transcript(Q2, GOOD2), "rejected": transcript(Q2, BAD2)},
        ],
        **CHATS,
    ),
    "transcript-prompts": Sample(twice({**PAIR, "prompt": transcript(Q, "")}, prompt=transcript(Q2, "")), **CHATS),
    "transcript-text": Sample([{"text": transcript(Q, GOOD)}, {"text": transcript(Q2, GOOD2)}], ASKED, ANSWERED[:1]),
}
NAMED = {
    "named-pairs": Sample(
        twice(
            {
                "question": Q,
                "chosen_response": GOOD,
                "rejected_response": BAD,
                "chosen_reward": 4.5,
                "rejected_reward": 1.0,
            },
            question=Q2,
        ),
        **TEXTS,
    ),
    "named-unpaired": Sample(
        twice({"question": Q, "answer": GOOD, "thumbs_up": True}, question=Q2, thumbs_up=False),
        Q,
        [GOOD],
        {"good": True},
    ),
    "named-sft": Sample(twice({"질문": Q, "답변": GOOD}, 질문=Q2, 답변=GOOD2), Q, [GOOD]),
}
SAMPLES: dict[str, Sample] = {**OWN, **CONVERSATIONS, **NAMED, **COMPARISONS, **LISTS, **VENDORS}
"""Name of a format -> sample rows."""

BY_NAME = {known.name: known for known in FORMATS}


def load(
    folder: Path, rows: Sequence[Mapping[str, Any]], kind: KindName, **options: Any
) -> tuple[list[Any], list[str]]:
    """Write rows to a file and read them as examples of a kind."""
    return load_examples(KINDS[kind], jsonl(folder, rows), **options)


def show(text: Any) -> Any:
    """A text as it is, messages as (role, content)."""
    return text if isinstance(text, str) else [(turn["role"], turn["content"]) for turn in text]


def replace(row: Any, path: Sequence[Any], value: Any) -> Any:
    """A copy of nested values with the one at `path` replaced."""
    if not path:
        return value
    copy = list(row) if isinstance(row, list) else dict(row)
    copy[path[0]] = replace(row[path[0]], path[1:], value)
    return copy


def remove(row: Any, path: Sequence[Any]) -> Any:
    """A copy of nested values without the one at `path`."""
    copy = list(row) if isinstance(row, list) else dict(row)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = remove(row[path[0]], path[1:])
    return copy


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all nested values."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from walk(item, (*path, key))
