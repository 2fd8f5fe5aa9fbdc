"""Findings across rows: near-duplicate prompts, rows that nearly repeat or contradict others, near leaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_lightning.data.checks.findings import Finding
from dpo_lightning.data.checks.near_duplicates import find_near_pairs
from dpo_lightning.data.checks.normalization import Question, make_question, normalize, read_plain
from dpo_lightning.data.examples import Example, Origin
from dpo_lightning.data.kinds.duplicates import text_key

MOST_ROWS = 50
"""Rows of a prompt that are compared with those of a near-duplicate."""


@dataclass
class PromptIndex:
    """Rows by their normalized prompts.

    Attributes:
        rows: normalized prompt -> its rows, in order.
        near: pairs of different normalized prompts that are near-duplicates.
    """

    rows: dict[Question, list[Example]] = field(default_factory=lambda: defaultdict(list))
    near: list[tuple[Question, Question]] = field(default_factory=list)

    @classmethod
    def build(cls, examples: Sequence[Example]) -> PromptIndex:
        """Group rows by prompt, and find near-duplicates among the groups."""
        index = cls()
        for example in examples:
            question = make_question(example)
            if question.text:
                index.rows[question].append(example)
        questions = list(index.rows)
        pairs = find_near_pairs([question.text for question in questions], [question.context for question in questions])
        index.near = [(questions[i], questions[j]) for i, j in pairs]
        return index

    def iterate_spellings(self) -> Iterator[tuple[Example, Example]]:
        """Yield for each spelling of a prompt after the first one its first row, and that of the first spelling."""
        for rows in self.rows.values():
            if len(rows) > 1:
                seen: dict[Any, Example] = {}
                for example in rows:
                    seen.setdefault(text_key(example.prompt), example)
                first, *others = seen.values()
                yield from ((other, first) for other in others)


def find_near_prompts(index: PromptIndex) -> Iterator[Finding]:
    """Yield the findings about prompts that are nearly the same."""
    spelled = Finding(
        "respelled_prompts",
        "prompts that differ from another only in case, white space or punctuation",
        "remove one of the two, and keep both on the same side of a split",
    )
    spelled.places = [format_pair(later, first) for later, first in index.iterate_spellings()]
    near = Finding(
        "near_duplicate_prompts",
        "prompts that differ from another in a few words or letters",
        "remove one of the two, and keep both on the same side of a split",
    )
    earlier: dict[Question, Question] = {}
    for first, later in index.near:
        earlier.setdefault(later, first)
    near.places = [format_pair(index.rows[later][0], index.rows[first][0]) for later, first in earlier.items()]
    yield spelled
    yield near


def find_near_rows(index: PromptIndex) -> Iterator[Finding]:
    """Yield the findings about rows with nearly the same prompt and answers, in the same order or another one."""
    repeated = Finding(
        "near_repeated_rows",
        "rows that repeat another but for details of the texts",
        "remove one of the two",
    )
    swapped = Finding(
        "near_contradictions",
        "rows that contradict another but for details of the texts",
        "remove one of the two",
    )
    for rows in iterate_related(index):
        keys = [(example, read_key(example)) for example in rows]
        seen: dict[Any, Example] = {}
        for example, (answers, verdict) in keys:
            same = seen.get((answers, verdict))
            if same is not None and not is_exact(example, same):
                repeated.places.append(format_pair(example, same))
            other = None if len(set(answers)) == 1 < len(answers) else seen.get(turn_key(answers, verdict))
            if other is not None and not is_exact(example, other, turned=True):
                swapped.places.append(format_pair(example, other))
            seen.setdefault((answers, verdict), example)
    for finding in (repeated, swapped):
        finding.places = list(dict.fromkeys(finding.places))
        yield finding


def iterate_related(index: PromptIndex) -> Iterator[list[Example]]:
    """Yield the rows of each prompt that has several, then those of each pair of near-duplicates."""
    yield from (rows for rows in index.rows.values() if len(rows) > 1)
    for one, other in index.near:
        yield [*index.rows[one][:MOST_ROWS], *index.rows[other][:MOST_ROWS]]


def read_key(example: Example) -> tuple[tuple[str, ...], Any]:
    """The normalized answers of a row, and its label where it has one."""
    return tuple(normalize(read_plain(text)) for text in example.answers), getattr(example, "good", None)


def turn_key(answers: tuple[str, ...], verdict: Any) -> tuple[tuple[str, ...], Any]:
    """The key of a row that contradicts one with this key: the answers in opposite order, or the other label."""
    return (answers, not verdict) if verdict is not None else (answers[::-1] if len(answers) > 1 else (), None)


def is_exact(example: Example, other: Example, *, turned: bool = False) -> bool:
    """Whether two rows have exactly the same texts, which `fit` notes or refuses by itself.

    Args:
        example: a row.
        other: another row.
        turned: compare the answers in opposite order.
    """
    answers = list(map(text_key, other.answers))
    return text_key(example.prompt) == text_key(other.prompt) and (
        list(map(text_key, example.answers)) == (answers[::-1] if turned else answers)
    )


def find_near_leaks(train: Sequence[Example], held_out: Sequence[Example], leaked: Collection[Origin]) -> Finding:
    """Find held-out rows whose prompt is nearly one of the training rows.

    Args:
        train: the training rows.
        held_out: the held-out rows.
        leaked: held-out rows whose prompt is exactly one of the training rows, which is an error of its own.
    """
    finding = Finding(
        "near_leaks",
        "held-out rows whose prompt is nearly one that is trained on",
        "remove them from one of the two sets: they make results look better than they are",
    )
    index = PromptIndex.build([*train, *held_out])
    trained = {id(example) for example in train}
    sides: dict[Question, tuple[list[Example], list[Example]]] = {
        question: ([row for row in rows if id(row) in trained], [row for row in rows if id(row) not in trained])
        for question, rows in index.rows.items()
    }
    found: dict[Origin, str] = {}
    for one, other in (*((question, question) for question in sides), *index.near):
        for here, there in ((one, other), (other, one)):
            if sides[here][0]:
                for row in sides[there][1]:
                    if row.origin not in leaked:
                        found.setdefault(row.origin, format_pair(row, sides[here][0][0]))
    finding.places = list(found.values())
    return finding


def format_pair(example: Example, other: Example) -> str:
    """Format the places of two rows."""
    return f"{example.origin} = {other.origin}"
