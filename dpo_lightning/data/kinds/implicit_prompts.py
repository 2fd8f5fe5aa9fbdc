"""Pairs without a prompt column: the common beginning of both answers becomes the prompt."""

from __future__ import annotations

from dpo_lightning.data.common_prefix import count_common
from dpo_lightning.data.examples import Message
from dpo_lightning.data.readers.bad_rows import RowError

OWN_COLUMN = "put the prompt into a column of its own"


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
    """Split off the longest common beginning as the prompt, so that no word is split and no answer becomes blank.

    A single space before the answers belongs to them: tokenizers encode it as part of the first word.

    Returns:
        The prompt, the chosen and the rejected answer.

    Raises:
        RowError: one text is the beginning of the other, and there is no word boundary at which to end a prompt.
    """
    common = count_common(chosen, rejected)
    cut = common
    while cut and not (_is_border(chosen, cut) and _is_border(rejected, cut)):
        cut -= 1
    cut = min(cut, _last_start(chosen), _last_start(rejected))
    while cut and not (_is_border(chosen, cut) and _is_border(rejected, cut)):
        cut -= 1
    if cut and chosen[cut - 1] == " ":
        cut -= 1
    if not chosen[:cut].strip():
        cut = 0
    if not cut and common == min(len(chosen), len(rejected)):
        raise RowError("one answer is the beginning of the other, so no prompt can be split off", chosen, OWN_COLUMN)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _is_border(text: str, cut: int) -> bool:
    """Whether a cut is at white space; other boundaries could split an emoji, a Korean particle or code."""
    return cut == len(text) or text[cut - 1].isspace() or text[cut].isspace()


def _last_start(text: str) -> int:
    """The last position at which a cut leaves more than white space after it."""
    return len(text.rstrip()) - 1
