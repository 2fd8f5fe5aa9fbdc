"""Encodes rows side by side, so that the texts of many of them are tokenized in one call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

from dpo_lightning.errors import ExitCode, UserError

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
        waiting = dict(zip(texts, encode(list(texts.values())), strict=True)) if texts else {}
    failed = min((i for i, r in results.items() if isinstance(r, UserError) and r.code != ExitCode.DATA), default=None)
    return [results[i] for i in sorted(results) if failed is None or i <= failed]
