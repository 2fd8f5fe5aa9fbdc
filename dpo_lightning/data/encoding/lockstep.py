"""Encodes rows side by side, so that the texts of many of them are tokenized in one call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TypeAlias, TypeVar

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.limits import prepare_limits

Result = TypeVar("Result")

Steps: TypeAlias = Generator[str, list[int], Result]
"""The steps of encoding a row: yields texts, one at a time, and receives the ids of each."""


def run_in_lockstep(
    rows: Sequence[Steps[Result]], encode: Callable[[Sequence[str]], list[list[int] | UserError]]
) -> list[Result | UserError]:
    """Run the steps of all rows, tokenizing the next text of every row together.

    Args:
        rows: the steps of each row.
        encode: encodes texts; an error in place of ids is raised in the row of its text.

    Returns:
        What each row returns, or its error. Rows end with the first error that is not of the row, but of the template
        or the tokenizer: it would be the same for those after it.
    """
    results: dict[int, Result | UserError] = {}
    waiting: dict[int, list[int] | UserError | None] = dict.fromkeys(range(len(rows)))
    while waiting:
        with prepare_limits():  # rows render chat templates
            texts = _run_to_next_texts(rows, waiting, results)
        waiting = dict(zip(texts, encode(list(texts.values())), strict=True)) if texts else {}
    failed = min((i for i, r in results.items() if isinstance(r, UserError) and r.code != ExitCode.DATA), default=None)
    return [results[i] for i in sorted(results) if failed is None or i <= failed]


def _run_to_next_texts(
    rows: Sequence[Steps[Result]],
    waiting: Mapping[int, list[int] | UserError | None],
    results: dict[int, Result | UserError],
) -> dict[int, str]:
    """Run rows up to their next texts, which are returned by row; what rows return is added to `results`.

    Args:
        rows: the steps of each row.
        waiting: the ids of the last text of each row that has not ended; None before the first text.
        results: what rows returned, or their errors.
    """
    texts: dict[int, str] = {}
    for i, ids in waiting.items():
        try:
            texts[i] = rows[i].throw(ids) if isinstance(ids, UserError) else rows[i].send(ids)  # type: ignore[arg-type]
        except StopIteration as end:
            results[i] = end.value
        except UserError as error:
            results[i] = error
            if error.code != ExitCode.DATA:
                break
    return texts
