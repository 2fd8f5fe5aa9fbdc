"""Encodes rows as `fit` does, one by one, so that the lengths of all are known although some would be refused."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from dpo_lightning.data.checks.first_rows import SHOWN, ShownRow, show_tokens
from dpo_lightning.data.checks.lengths import name_answers
from dpo_lightning.data.encoding.counts import Counts, format_unlisted_ends
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder, Overlong
from dpo_lightning.data.examples import Encoded, Example
from dpo_lightning.data.readers.bad_rows import MAX_BAD_ROWS, BadRows
from dpo_lightning.errors import ExitCode, UserError


@dataclass
class EncodedSet:
    """Rows as token ids.

    Attributes:
        max_length: tokens of the prompt and the longest answer that `fit` accepts.
        first_rows: the first rows as tokens.
        measured: the lengths of the texts of each encoded row by name, also of those beyond `max_length`.
        notes: what `fit` would note.
        errors: why `fit` would refuse the rows.
    """

    max_length: int
    first_rows: list[ShownRow] = field(default_factory=list)
    measured: list[dict[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[UserError] = field(default_factory=list)


def encode_set(
    kind: str, examples: Sequence[Example], renderer: Renderer, max_length: int, overlong: Overlong, bad: BadRows
) -> EncodedSet:
    """Encode rows.

    Args:
        kind: the name of the kind of rows.
        examples: the rows.
        renderer: converts texts to ids.
        max_length: tokens of the prompt and the longest answer.
        overlong: what `fit` does with a row beyond it.
        bad: collects the bad rows, where these are left out.

    Raises:
        UserError: 67 if the template or the tokenizer cannot be used for any row.
    """
    found, counts = EncodedSet(max_length), Counts()
    long: list[Example] = []
    for example in examples:
        row = _encode(example, renderer, counts, found.errors, bad)
        if len(found.errors) == MAX_BAD_ROWS:
            break
        if row is None:
            continue
        lengths = [len(row.prompt_ids), *(len(answer.ids) for answer in row.answers)]
        found.measured.append(dict(zip(["prompt", *name_answers(kind, example)], lengths, strict=True)))
        if len(found.first_rows) < SHOWN:
            found.first_rows.append(show_tokens(kind, example, row, renderer.tokenizer))
        if row.length > max_length:
            long.append(example)
    if overlong == "drop":
        counts.dropped = len(long)
    elif long:
        _refit(long, Encoder(renderer, max_length, overlong, bad=bad), counts, found.errors)
    found.notes = counts.format_lines() + list(format_unlisted_ends(counts.ends, renderer))
    return found


def _encode(
    example: Example, renderer: Renderer, counts: Counts, errors: list[UserError], bad: BadRows
) -> Encoded | None:
    """Encode a row of any length; add the error of a row that cannot be encoded, and return None for it."""
    try:
        return next(iter(Encoder(renderer, sys.maxsize, "error", counts, bad).encode([example])), None)
    except UserError as error:
        if error.code != ExitCode.DATA:
            raise
        errors.append(error)
        return None


def _refit(long: Sequence[Example], encoder: Encoder, counts: Counts, errors: list[UserError]) -> None:
    """Encode the rows that are too long once more, within `max_length`, and add what `fit` would say of them."""
    try:
        encoder.encode(long)
    except UserError as error:
        errors.append(error)
    counts.shortened_prompts += encoder.counts.shortened_prompts
    counts.cut_answers += encoder.counts.cut_answers
