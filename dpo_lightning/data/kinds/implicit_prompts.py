"""Pairs without a prompt column: the turns with which both answers begin become the prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dpo_lightning.data.common_prefix import count_common
from dpo_lightning.data.examples import Message
from dpo_lightning.data.formats.between_kinds import OWN_COLUMN
from dpo_lightning.data.formats.marked_turns import RENDERED, SPEAKERS, find_role
from dpo_lightning.data.readers.bad_rows import RowError

ASKS = "|".join(("HUMAN|USER", *(asked for asked, _ in SPEAKERS)))
ANSWERS = "|".join(("ASSISTANT", *dict.fromkeys(words for _, answered in SPEAKERS for words in answered)))

ASKED = re.compile(rf"(?:\A|\n)\s*(?:#{{2,4}} ?)?(?:{ASKS})s?[ \t]?[:：]")
"""The beginning of the first question in a transcript."""

MARKED = r"(?<=\s)(?:#{{2,4}} ?)?(?:{})[ \t]?[:：]"
ANSWERED = re.compile(MARKED.format(ANSWERS))
"""The beginning of its answer."""

PARTNERS = {
    **dict.fromkeys(("HUMAN", "USER"), "ASSISTANT|Assistant"),
    **{word: answered[0] for asked, answered in SPEAKERS for word in asked.split("|")},
}
"""What begins the answers in a transcript whose questions begin so: `A:` is rather an option of a question then."""

AS_MESSAGES = "write the conversations as messages, or what both begin with into a column `prompt`"
SHOWN = 40
"""Characters of the end of a prompt that a note shows."""


def split_messages(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Split off the longest common leading messages as the prompt, so that each answer keeps at least one message."""
    longest = min(len(chosen), len(rejected)) - 1
    cut = 0
    while cut < longest and chosen[cut] == rejected[cut]:
        cut += 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_strings(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two transcripts after the turn of the user that they share, where an answer begins in both.

    Words with which both answers happen to begin are no prompt: a chat template would write them as the user's turn.
    A single space before the answers belongs to them, as tokenizers encode it as part of the first word.

    Returns:
        The prompt, the chosen and the rejected answer.

    Raises:
        RowError: no turn ends where both texts are still the same, several do, which a chat template would write as
            one turn, or an answer is blank or has several turns.
    """
    common = count_common(chosen, rejected)
    cut, several = _find_border(chosen[:common])
    if not cut:
        what = "the row has no prompt: in what both answers begin with, no answer to a question begins"
        raise RowError(what, chosen[:common] or chosen, OWN_COLUMN)
    if several:
        raise RowError("the row has no prompt, and both answers begin with several turns", chosen[:cut], AS_MESSAGES)
    while cut < common and chosen[cut].isspace():
        cut += 1
    if chosen[cut - 1] == " ":
        cut -= 1
    for answer in (chosen, rejected):
        if any(opening.search(answer, 0, cut) and opening.search(answer, cut) for opening in RENDERED):
            raise RowError("the row has no prompt, and an answer has several turns", answer[cut:], AS_MESSAGES)
    if not (chosen[cut:].strip() and rejected[cut:].strip()):
        raise RowError("an answer is blank after the turns that both begin with", chosen, OWN_COLUMN)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def show_end(prompt: str) -> str:
    """The end of a prompt as a note shows it."""
    return prompt if len(prompt) <= SHOWN else "…" + prompt[-SHOWN:]


def _find_border(text: str) -> tuple[int, bool]:
    """Where the answer to the last question of a transcript begins, 0 if none does; and whether one is before it."""
    marks = (mark for opening in RENDERED for mark in opening.finditer(text))
    openings = [mark.end() for mark in marks if find_role(mark[1]) == "assistant"]
    rendered = max(openings, default=0), len(openings) > 1
    asked = ASKED.search(text)
    answered = asked and _find_answer(asked, text)
    if not (asked and answered):
        return rendered
    # A transcript names each side in one way: other such words are part of what is said.
    last = max(found.end() for found in _find_all(asked[0], text))
    border = next((found.end() for found in _find_all(answered[0], text) if found.start() >= last), 0)
    return (border, answered.start() < last) if border else rendered


def _find_answer(asked: re.Match[str], text: str) -> re.Match[str] | None:
    """The marker of the first answer: the partner of the question's where that begins a line, or else the first one."""
    partner = PARTNERS.get(asked[0].strip(" \t\n\r#:：").removesuffix("s"))
    found = partner and re.compile(rf"(?<=\n){MARKED.format(partner)}").search(text, asked.end())
    return found or ANSWERED.search(text, asked.end())


def _find_all(marker: str, text: str) -> Iterator[re.Match[str]]:
    return re.finditer(rf"(?<![^\s>]){re.escape(marker.strip())}", text)
