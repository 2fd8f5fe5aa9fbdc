"""Mismatched answers for KTO: each prompt with another row's answer, to estimate KL(policy, reference)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dpo_lightning.data.examples import EncodedAnswer
from dpo_lightning.data.kinds.unpaired import EncodedUnpaired
from dpo_lightning.errors import ExitCode, Problem, UserError

LOOKED_AT = 100
"""Rows that are tried until one has an answer other than the row's own; with very few distinct answers, none may."""


def add_mismatches(rows: Sequence[EncodedUnpaired], max_length: int) -> Iterator[tuple[EncodedUnpaired, bool]]:
    """Append a mismatched answer to each row; also yield whether this answer was cut at `max_length`."""
    for row, other in zip(rows, match_rows(rows), strict=True):
        whole = rows[other].completion
        fitted = cut_to_fit(row, whole, max_length)
        yield replace(row, answers=(*row.answers, fitted)), len(whole.ids) > len(fitted.ids)


def cut_to_fit(row: EncodedUnpaired, answer: EncodedAnswer, max_length: int) -> EncodedAnswer:
    """Cut another row's answer so that it fits after this row's prompt into `max_length` tokens."""
    room = max_length - len(row.prompt_ids)
    if len(answer.ids) <= room:
        return answer
    return replace(answer, ids=answer.ids[:room], scored=answer.scored[:room], cut=True)


def match_rows(rows: Sequence[EncodedUnpaired]) -> list[int]:
    """For each row, the index of the row whose answer it gets. The result depends only on the rows and their order.

    Rows are sorted by prompt, and each takes the answer of the row before it by the size of the largest group of one
    prompt. So it gets an answer to a different prompt, and every answer is used once. If that answer has the same text
    as its own, others are tried, `LOOKED_AT` in all. If more than half of the rows have one prompt, answers repeat.

    Raises:
        UserError: all rows have the same prompt and the same answer.
    """
    groups: dict[int, list[int]] = {}
    answers = array("q")  # a hash of each row's answer
    for number, row in enumerate(rows):
        groups.setdefault(hash(tuple(row.prompt_ids)), []).append(number)
        answers.append(hash(tuple(row.completion.ids)))
    if len(groups) == 1:
        return [_find_other_answer(rows, answers, number) for number in range(len(rows))]
    order = [number for group in groups.values() for number in group]
    largest = max(map(len, groups.values()))
    found, start = [0] * len(rows), 0
    for group in groups.values():
        others = len(rows) - len(group)
        for place, number in enumerate(group):
            back = (  # distances before the start of the group
                (largest - 1 - place + further) % others for further in range(min(others, LOOKED_AT))
            )
            tried = [order[start - 1 - far] for far in back]
            found[number] = next((other for other in tried if answers[other] != answers[number]), tried[0])
        start += len(group)
    return found


def _find_other_answer(rows: Sequence[EncodedUnpaired], answers: Sequence[int], number: int) -> int:
    """With a single prompt: the nearest earlier row, cyclically, that has another answer."""
    before = ((number - far) % len(rows) for far in range(1, len(rows)))
    for other in before:
        if answers[other] != answers[number]:
            return other
    raise UserError(
        ExitCode.DATA,
        Problem("KTOLoss needs answers that differ, and all rows have the same one", str(rows[number].origin)),
        fix="give more rows, or use --model.loss APOZeroUnpairedLoss",
    )
