"""Transcripts: which names of roles begin a turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.format_rows import load
from support.format_texts import BAD, GOOD, Q2, Q
from support.row_files import assistant, user


@pytest.mark.parametrize(
    "more",
    [
        "This is the file:\nUser: admin\nSystem: linux\nAI: none",
        "A dialog:\nUser: hi there\nAI: hello you",
        "```\nUser: foo\n```",
        "### Human: is a heading here",
    ],
)
def test_names_of_roles_that_the_transcript_does_not_use_are_text(more: str, tmp_path: Path) -> None:
    """A transcript names each role in one way: its answers may contain the other names."""
    begin = [f"\n\nHuman: {question}\n\nAssistant: " for question in (Q, Q2)]
    rows = [{"chosen": f"{start}{GOOD}\n{more}", "rejected": start + BAD} for start in begin]
    example = load(tmp_path, rows, "pairs")[0][0]
    assert example.prompt == (user(Q),)
    assert example.answers == ((assistant(f"{GOOD}\n{more}"),), (assistant(BAD),))


def test_a_system_turn_comes_first_only(tmp_path: Path) -> None:
    rows = [{"text": f"System: Be brief.\nUser: {question}\nAI: {GOOD}\nSystem: x"} for question in (Q, Q2)]
    example = load(tmp_path, rows, "sft")[0][0]
    assert example.prompt == ({"role": "system", "content": "Be brief."}, user(Q))
    assert example.answers == ((assistant(f"{GOOD}\nSystem: x"),),)
