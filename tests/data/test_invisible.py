"""Invisible characters: which are told, and which belong to a script or an emoji."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.row_files import OTHER, PAIR, assistant, jsonl, refusal, user

from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.ranked import RankedKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.kinds.unpaired import UnpairedKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode

DIRECTION = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C]
HIDDEN = [*range(0x200B, 0x200E), 0x2060, 0xFEFF, 0x2063, 0x180E, 0x3164, 0xFFA0, 0xE0041]
MARKS, WIDTHLESS = "bidirectional control characters (such as U+202E)", "zero-width characters (such as U+200B)"


def notes(folder: Path, **changed: Any) -> list[str]:
    return load_examples(PairKind, jsonl(folder, [OTHER, {**PAIR, **changed}]))[1]


@pytest.mark.parametrize(("codes", "kind"), [(DIRECTION, MARKS), (HIDDEN, WIDTHLESS)])
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_they_are_told_with_their_rows(tmp_path: Path, codes: list[int], kind: str, column: str) -> None:
    for code in codes:
        for text in (f"a{chr(code)}b", f"{chr(code)}ab", f"ab{chr(code)}"):
            assert notes(tmp_path, **{column: text}) == [f"rows with {kind}: 1 ({tmp_path}/rows.jsonl:2)"], hex(code)


def test_they_are_strictly_refused_and_no_matter_in_columns_that_nothing_reads(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [OTHER, {**PAIR, "prompt": "a\u202eb"}])
    refusal(lambda: load_examples(PairKind, path, strict=True), ExitCode.DATA, MARKS, f"{path}:2")
    assert notes(tmp_path, score="a\u200bb") == ["columns that are not used: score"]


@pytest.mark.parametrize(
    ("reader", "rows"),
    [
        (SFTKind, [{"messages": [user("a\u2066b"), assistant("c")]}, {"messages": [user("a"), assistant("b")]}]),
        (RankedKind, [{"prompt": "p", "responses": ["a\u2066", "b"]}, {"prompt": "q", "responses": ["a", "b"]}]),
        (
            UnpairedKind,
            [{"prompt": "p", "completion": f"a{c}", "label": i} for i, c in enumerate(("", "\u2066b"))],
        ),
        (SFTKind, [{"prompt": "p", "completion": "a", "system": "x\u2066"}, {"prompt": "q", "completion": "b"}]),
    ],
)
def test_every_format_is_looked_at(tmp_path: Path, reader: Any, rows: list[Any]) -> None:
    assert [warning for warning in load_examples(reader, jsonl(tmp_path, rows))[1] if MARKS in warning]


@pytest.mark.parametrize(
    "text",
    [
        "👩\u200d👩\u200d👧 👩🏽\u200d🚀 🏳️\u200d🌈 ❤️\u200d🔥 🐻\u200d❄️ 🙂\u200d↔️ 🏃\u200d♂️",
        "می\u200cخواهم",  # Persian
        "क्\u200dष और क्\u200cष",  # Hindi
        "ശ്രീ ന്\u200d",  # Malayalam, at the end of a word
        "ක්\u200dෂ",  # Sinhala
        "ភាសា\u200bខ្មែរ",  # Khmer
        "ភាសា «\u200bខ្មែរ» ១\u200b abc",  # Khmer beside a quotation mark and a space
        "ภาษา\u200bไทย",
        "שלום (abc)\u200f",  # Hebrew: the bracket belongs to it
        "\u200fمرحبا\u200e 1\u061c!",
        "나랏말ᄊᆞ미 \u115f\u1161",  # old Hangul, with the fillers of its own
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
        "서울 é café naïve 東京",
    ],
)
def test_what_a_script_or_an_emoji_needs_is_not_told(tmp_path: Path, text: str) -> None:
    assert notes(tmp_path, prompt=text) == []
    assert notes(tmp_path, chosen=text + " 1", rejected=text + " 2") == []


@pytest.mark.parametrize("code", [*DIRECTION, *HIDDEN])
def test_answers_that_differ_in_nothing_else(tmp_path: Path, code: int) -> None:
    what = "pairs that differ only in invisible characters"
    hidden = f"Blue,{chr(code)} like the sea."
    assert f"{what}: 1 ({tmp_path}/rows.jsonl:2)" in notes(tmp_path, rejected=hidden)
    chats = {"prompt": [user("p")], "chosen": [assistant("ab")], "rejected": [assistant(f"a{chr(code)}b")]}
    path = jsonl(tmp_path, [{**chats, "chosen": [assistant("c")]}, chats])
    assert f"{what}: 1 ({path}:2)" in load_examples(PairKind, path)[1]
    refusal(lambda: load_examples(PairKind, path, strict=True), ExitCode.DATA, what, f"{path}:2")
    what = "lists with answers that differ only in invisible characters"
    answers = ["ab", f"a{chr(code)}b", "c"]
    for responses in (answers, [[assistant(text)] for text in answers]):
        rows = [{"prompt": "p", "responses": responses[1:]}, {"prompt": "q", "responses": responses}]
        path = jsonl(tmp_path, rows)
        assert f"{what}: 1 ({path}:2)" in load_examples(RankedKind, path)[1]


@pytest.mark.parametrize("text", ["\u200b", " \u202a\u202c ", "\ufeff\n", "\u3164"])
def test_a_text_of_nothing_else_is_blank(tmp_path: Path, text: str) -> None:
    path = jsonl(tmp_path, [OTHER, {**PAIR, "prompt": text, "chosen": text}])
    what = [f"'{name}' is only white space at {path}:2" for name in ("prompt", "chosen")]
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, *what)
    path = jsonl(tmp_path, [{"messages": [user("a"), assistant("b")]}, {"messages": [user(text), assistant("b")]}])
    refusal(lambda: load_examples(SFTKind, path), ExitCode.DATA, "only white space as content", f"{path}:2")
