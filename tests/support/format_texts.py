"""Invented texts for sample rows, and messages as tools write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from support.row_files import assistant, user

Q, Q2 = "Name a colour of the sea.", "Name a bird that wades."
GOOD, BAD, MIDDLE = "Blue, like the sky above it.", "I do not know any.", "Green near the shore."
GOOD2, BAD2 = "A heron, for one.", "A chair with four legs."
SYSTEM = "Answer in one sentence."


class Sample(NamedTuple):
    """Rows of one format, and what the first becomes.

    Attributes:
        rows: the rows.
        prompt: the prompt of the first, as text or as (role, content) of its messages.
        answers: its answers in the same form, the best first.
        fields: further fields of its example.
    """

    rows: Sequence[Mapping[str, Any]]
    prompt: Any
    answers: Sequence[Any]
    fields: Mapping[str, Any] = {}


def said(*turns: str) -> list[tuple[str, str]]:
    """(role, content) of turns of the user and the assistant, beginning with the user."""
    return [(("user", "assistant")[place % 2], text) for place, text in enumerate(turns)]


def parts(role: str, text: str) -> dict[str, Any]:
    """A message of Gemini."""
    return {"role": role, "parts": [{"text": text}]}


def spoken(role: str, text: str) -> dict[str, Any]:
    """A message of ShareGPT."""
    return {"from": role, "value": text}


def blocks(role: str, text: str) -> dict[str, Any]:
    """A message of Bedrock."""
    return {"role": role, "content": [{"text": text}]}


def transcript(*turns: str) -> str:
    """A transcript as Anthropic's sets write it."""
    return "".join(
        f"\n\n{name}: {text}".rstrip() for name, text in zip(("Human", "Assistant") * 9, turns, strict=False)
    )


def twice(row: Mapping[str, Any], **changes: Any) -> list[Mapping[str, Any]]:
    """A row, and another that differs in some columns."""
    return [row, {**row, **changes}]


ASKED, ANSWERED = [("user", Q)], [[("assistant", GOOD)], [("assistant", BAD)]]
CHATS = {"prompt": ASKED, "answers": ANSWERED}
TEXTS = {"prompt": Q, "answers": [GOOD, BAD]}
LIST = {"prompt": Q, "answers": [GOOD, MIDDLE, BAD]}
PAIR = {"prompt": Q, "chosen": GOOD, "rejected": BAD}
SECOND = {"prompt": Q2, "chosen": GOOD2, "rejected": BAD2}
NEXT = [user(Q2), assistant(GOOD2)]
RATINGS = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 1}
WITH_SYSTEM = [("system", SYSTEM), *ASKED]

SENTENCES = st.text(alphabet="abcdefgh 가나é.!\n", min_size=3, max_size=20).map(
    lambda text: f"It is {' '.join(text.split()) or 'so'} indeed"
)
PAIR_ROWS = st.lists(
    st.tuples(SENTENCES, SENTENCES, SENTENCES, st.booleans()).filter(lambda row: row[1] != row[2]),
    min_size=2,
    max_size=6,
    unique_by=lambda row: row[0],
)
"""Rows of a prompt, the better answer, the worse one, and whether the answers change places in the file."""
