"""Measures of the text of a generated answer: repetition, refusal, and whether its script is that of the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dpo_lightning.data.checks.scripts import choose_script, count_scripts, differ_in_script
from dpo_lightning.data.examples import Text

GRAM = 4
"""Tokens of the sequences that `measure_repetition` counts."""

REFUSAL = re.compile(
    r"^\W*(?:(?:i'?m|i am) (?:so |very |really )?(?:sorry|afraid|unable|not able)|(?:sorry|unfortunately|apologies)\b|"
    r"i (?:can(?:'t|not| not)|won'?t|will not|must decline|(?:do not|don't) feel comfortable)|"
    r"as an? (?:ai|artificial intelligence|(?:large )?language model)|"
    r"죄송|미안하지만|유감(?:스럽|이지만)|(?:저는|나는) (?:인공지능|ai)|"
    r"申し訳|すみませんが|恐れ入りますが|抱歉|对不起|對不起|很遗憾)|"
    r"(?:도와드릴|도움을 드릴|답변(?:을 |해 ?)드릴|제공해? ?드릴|알려 ?드릴) 수 (?:가 )?(?:는 )?없|"
    r"(?:お答え|お手伝い|提供)(?:する(?:こと)?(?:が|は))?でき(?:ません|かねます)|"
    r"(?:无法|不能)(?:提供|回答|协助|帮助)",
    re.IGNORECASE,
)
"""Beginnings and phrases by which models refuse in English, Korean, Japanese and Chinese."""

BEGINNING = 160
"""Characters of an answer in which a refusal is looked for."""


def measure_repetition(ids: Sequence[int]) -> float:
    """Return the share of sequences of `GRAM` tokens that occurred before in the answer; 0 for a short one."""
    grams = [tuple(ids[place : place + GRAM]) for place in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_refusal(text: str) -> bool:
    """Whether an answer begins like a refusal: by the phrases of `REFUSAL`, so some refusals are not found."""
    return REFUSAL.search(text[:BEGINNING].replace("’", "'")) is not None


def matches_language(prompt: Text, answer: str) -> bool | None:
    """Whether an answer is in a script of the prompt; None where one of them has too few letters to tell."""
    asked, found = count_scripts(read_question(prompt)), count_scripts(answer)
    if not choose_script(asked) or not choose_script(found):
        return None
    return not differ_in_script(asked, found)


def read_question(prompt: Text) -> str:
    """Return a plain prompt, or the text of the user's last message."""
    if isinstance(prompt, str):
        return prompt
    texts = [message.get("content") for message in prompt if message.get("role") == "user"]
    return next((text for text in reversed(texts) if isinstance(text, str)), "")
