"""Mismatched answers: each prompt with another row's answer, to see how far the policy is from the reference (KTO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dpo_lightning.data.examples import EncodedAnswer
from dpo_lightning.data.formats.unpaired import EncodedUnpaired
from dpo_lightning.errors import ExitCode, Problem, UserError

LOOKED_AT = 100
"""Rows that are looked at for an answer other than a row's own; in a set of very few answers there is none."""


def add_mismatches(rows: Sequence[EncodedUnpaired], max_length: int) -> tuple[list[EncodedUnpaired], int]:
    """The rows with a mismatched answer each, and how many of these were cut at `max_length`."""
    others = [rows[other].completion for other in mismatches(rows)]
    fitted = [fit(row, other, max_length) for row, other in zip(rows, others, strict=True)]
    cut = sum(len(whole.ids) > len(answer.ids) for whole, answer in zip(others, fitted, strict=True))
    return [replace(row, answers=(*row.answers, other)) for row, other in zip(rows, fitted, strict=True)], cut


def fit(row: EncodedUnpaired, answer: EncodedAnswer, max_length: int) -> EncodedAnswer:
    """Another row's answer after this row's prompt, cut at `max_length`."""
    room = max_length - len(row.prompt_ids)
    if len(answer.ids) <= room:
        return answer
    return replace(answer, ids=answer.ids[:room], scored=answer.scored[:room], cut=True)


def mismatches(rows: Sequence[EncodedUnpaired]) -> list[int]:
    """For each row the row whose answer its prompt is given: a function of the rows and their order alone.

    Of another prompt where there is one, and another text than its own where one is near. Rows of one prompt stand
    together, and each takes the answer that lies as far before it as the largest such group is long: every answer is
    given once, unless more than half of the rows have one prompt.

    Raises:
        UserError: all rows have one prompt and one answer.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(tuple(row.prompt_ids), []).append(number)
    if len(groups) == 1:
        return [_other(rows, number) for number in range(len(rows))]
    order = [number for group in groups.values() for number in group]
    largest = max(map(len, groups.values()))
    found, start = [0] * len(rows), 0
    for group in groups.values():
        others = len(rows) - len(group)
        for place, number in enumerate(group):
            back = (  # how far before the group
                (largest - 1 - place + further) % others for further in range(min(others, LOOKED_AT))
            )
            tried = [order[start - 1 - far] for far in back]
            found[number] = next((other for other in tried if _differ(rows, other, number)), tried[0])
        start += len(group)
    return found


def _other(rows: Sequence[EncodedUnpaired], number: int) -> int:
    """The nearest row before, round the set, that has another answer to the only prompt."""
    before = ((number - far) % len(rows) for far in range(1, len(rows)))
    for other in before:
        if _differ(rows, other, number):
            return other
    raise UserError(
        ExitCode.DATA,
        Problem("no row has another answer, and KTO needs mismatched ones", str(rows[number].origin)),
        fix="more rows, or --model.loss APOZeroUnpairedLoss",
    )


def _differ(rows: Sequence[EncodedUnpaired], one: int, other: int) -> bool:
    return list(rows[one].completion.ids) != list(rows[other].completion.ids)
