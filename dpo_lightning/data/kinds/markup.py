"""Markup in texts that a chat template would write itself, and other remains of the way a data set was made."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dpo_lightning.data.examples import Example, Text
from dpo_lightning.data.formats.media import CODE, PLACEHOLDER, PLACES
from dpo_lightning.data.readers.bad_rows import Notes

MARKUP: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (shown, needles, re.compile(pattern))
    for shown, needles, pattern in (
        ("[INST]", ("INST]", "<SYS>>"), r"\[/?INST\]|<</?SYS>>"),
        ("<|im_start|>", ("<|im_",), r"<\|im_(?:start|end|sep)\|>"),
        (
            "<|eot_id|>",
            ("_id|>", "_text|>"),
            r"<\|(?:begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id)\|>",
        ),
        ("<start_of_turn>", ("_of_turn>",), r"<(?:start|end)_of_turn>"),
        ("<|user|>", ("<|",), r"<\|(?:user|assistant|system|end|endoftext|end_of_turn)\|>"),
        ("<extra_id_1>", ("<extra_id_",), r"<extra_id_[01]>"),
        ("</s>", ("s>",), r"</s>\s*\Z|\A\s*<s>|</?(?:eos|bos)>"),
        (
            "### Instruction:",
            ("##",),
            r"(?:\A|\n| )#{2,4} ?(?:Instruction|Response|Input|Question|Answer|Human|Assistant|User)s?:",
        ),
        ("Human: ... Assistant:", ("ssistant:", "SSISTANT:"), r"(?:\A|\n)\s*(?:Human|USER|User|Assistant|ASSISTANT):"),
        ("{{name}}", ("{{",), r"\{\{ ?[A-Za-z_가-힣][\w가-힣]* ?\}\}"),
    )
)
"""What a warning shows; strings of which each such text contains one, for speed; and the pattern of such texts."""

LEFT_PLACES = "rows with placeholders of pictures, video or sound (such as <image>)"

LINE_ENDS = "pairs in which only one answer has carriage returns"
REPEATED_PROMPT = "rows whose answers begin with a copy of the prompt"
LEAST_COPIED = 12
"""Characters of a prompt below which an answer that begins with it is no copy: `Paris` may be both."""

FIX = "remove it from the texts, or --data.template raw where it is meant"


def note_markup(examples: Sequence[Example], notes: Notes) -> None:
    """Note texts with markup of a chat template, which the model's own template would enclose once more.

    Args:
        examples: the rows.
        notes: collects the warnings: one for each kind of markup, one for placeholders of pictures, one for carriage
            returns in one answer only, and one for answers that repeat the prompt.
    """
    for example in examples:
        prompt, answers = _list_contents(example.prompt), [_list_contents(answer) for answer in example.answers]
        texts = [*prompt, *(text for answer in answers for text in answer)]
        joined = "\n".join(texts)  # nearly all rows have nothing to look for: one text is searched faster than several
        for shown, needles, pattern in MARKUP:
            if any(needle in joined for needle in needles) and _match_any(pattern, texts):
                notes.add(example.origin, f"rows with markup of a template ({shown})", fix=FIX)
        if any(needle in joined for needle in PLACES) and _match_any(PLACEHOLDER, texts):
            notes.add(example.origin, LEFT_PLACES, fix="remove the placeholders, or the rows")
        if "\r" in joined:
            returns = {any("\r" in text for text in answer) for answer in answers}
            if len(returns) > 1:
                notes.add(example.origin, LINE_ENDS, fix="write the same line ends in all answers")
        question = prompt[-1].strip() if prompt else ""
        if (
            answers
            and len(question) >= LEAST_COPIED
            and all(answer[0].lstrip().startswith(question) for answer in answers)
        ):
            notes.add(example.origin, REPEATED_PROMPT, fix="remove the prompt from the answers")


def _match_any(pattern: re.Pattern[str], texts: Sequence[str]) -> bool:
    return any(CODE not in text and pattern.search(text) for text in texts)


def _list_contents(text: Text) -> list[str]:
    """The strings in a text: the string itself, or the contents of messages."""
    return [text] if isinstance(text, str) else [message.get("content") or "" for message in text]
