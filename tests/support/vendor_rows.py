"""Sample rows of training services, frameworks and annotation tools."""

from __future__ import annotations

from support.format_texts import (
    ANSWERED,
    BAD,
    BAD2,
    GOOD,
    GOOD2,
    Q2,
    SYSTEM,
    TEXTS,
    WITH_SYSTEM,
    Q,
    Sample,
    blocks,
    parts,
    spoken,
    twice,
)

VENDORS = {
    "vertex": Sample(
        twice(
            {"systemInstruction": {"parts": [{"text": SYSTEM}]}, "contents": [parts("user", Q), parts("model", GOOD)]},
            contents=[parts("user", Q2), parts("model", GOOD2)],
        ),
        WITH_SYSTEM,
        ANSWERED[:1],
    ),
    "vertex-preference": Sample(
        twice(
            {
                "systemInstruction": {"parts": [{"text": SYSTEM}]},
                "contents": [parts("user", Q)],
                "completions": [
                    {"score": 0.0, "completion": parts("model", BAD)},
                    {"score": 1.0, "completion": parts("model", GOOD)},
                ],
            },
            contents=[parts("user", Q2)],
        ),
        WITH_SYSTEM,
        ANSWERED,
    ),
    "bedrock": Sample(
        twice(
            {
                "schemaVersion": "bedrock-conversation-2024",
                "system": [{"text": SYSTEM}],
                "messages": [blocks("user", Q), blocks("assistant", GOOD)],
            },
            messages=[blocks("user", Q2), blocks("assistant", GOOD2)],
        ),
        WITH_SYSTEM,
        ANSWERED[:1],
    ),
    "bedrock-preference": Sample(
        twice(
            {
                "schemaVersion": "bedrock-conversation-2024",
                "system": [{"text": SYSTEM}],
                "messages": [
                    blocks("user", Q),
                    {
                        "role": "assistant",
                        "candidates": [
                            {"content": [{"text": BAD}], "preferenceLabel": "non-preferred"},
                            {"content": [{"text": GOOD}], "preferenceLabel": "preferred"},
                        ],
                    },
                ],
            },
            schemaVersion="2",
        ),
        WITH_SYSTEM,
        ANSWERED,
    ),
    "nemo": Sample(
        twice(
            {
                "system": SYSTEM,
                "mask": "User",
                "type": "VALUE_TO_TEXT",
                "conversations": [spoken("User", Q), {**spoken("Assistant", GOOD), "label": None}],
            },
            conversations=[spoken("User", Q2), spoken("Assistant", GOOD2)],
        ),
        WITH_SYSTEM,
        ANSWERED[:1],
    ),
    "alpaca-pairs": Sample(
        twice({"instruction": "Name a colour.", "input": "The sea.", "output": [GOOD, BAD]}, input="A heron."),
        "Name a colour.\n\nThe sea.",
        [GOOD, BAD],
    ),
    "dolly": Sample(
        twice(
            {"instruction": "Name the colour.", "context": "The sea.", "response": GOOD, "category": "closed_qa"},
            context="",
            instruction=Q2,
        ),
        "Name the colour.\n\nThe sea.",
        [GOOD],
    ),
    "label-studio": Sample(
        twice(
            {
                "id": 7,
                "predictions": [],
                "project": 1,
                "data": {"prompt": Q, "answer1": BAD, "answer2": GOOD},
                "annotations": [
                    {
                        "id": 1,
                        "completed_by": 1,
                        "was_cancelled": False,
                        "result": [
                            {
                                "type": "pairwise",
                                "from_name": "better",
                                "to_name": ["answer1", "answer2"],
                                "value": {"selected": "right"},
                            }
                        ],
                    }
                ],
            },
            id=8,
        ),
        **TEXTS,
    ),
    "argilla": Sample(
        [
            {
                "fields": {"prompt": Q, "response_1": GOOD, "response_2": BAD},
                "responses": {"preference": [{"user_id": "u", "value": "response_1", "status": "submitted"}]},
                "metadata": {},
                "suggestions": {},
                "vectors": {},
                "status": "completed",
            },
            {
                "fields": {"prompt": Q2, "response_1": BAD2, "response_2": GOOD2},
                "responses": [
                    {"user_id": "u", "values": {"preference": {"value": "response_2"}}, "status": "submitted"}
                ],
                "metadata": {},
                "suggestions": [],
            },
        ],
        **TEXTS,
    ),
}
