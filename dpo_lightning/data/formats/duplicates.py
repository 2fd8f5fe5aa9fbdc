"""Rows against each other: repeats, contradictions, and prompts in both sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, TypeAlias

from dpo_lightning.data.examples import Example, Message, Origin, Text
from dpo_lightning.data.formats.cycles import cycles
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.errors import ExitCode, Problem, UserError

CONTRADICTIONS = "contradictions"
LEAK = "leak"
ALLOWANCES = (CONTRADICTIONS, LEAK)

PLAIN = {"role", "content"}
REPEATED = "repeated rows"
CONTRADICTING = "rows that contradict another"
CYCLING = "rows that close a cycle of preferences"


Check: TypeAlias = Callable[[Sequence[Any], Collection[str], BadRows, Notes], None]
"""Compares rows of one kind with one another: examples, what is allowed, where faults and oddities go."""


def check_allowances(allow: Collection[str]) -> None:
    """Refuse a word that allows nothing.

    Raises:
        UserError: 64.
    """
    for word in allow:
        if word not in ALLOWANCES:
            problem = Problem(f"'{word}' cannot be allowed", where="data.allow")
            raise UserError(ExitCode.CONFIG, problem, fix="one of " + ", ".join(ALLOWANCES))


def check_repeats(
    examples: Sequence[Example], notes: Notes, said: Callable[[Any], Hashable] = lambda example: None
) -> None:
    """Note rows that are there twice.

    Args:
        examples: the rows.
        notes: where they go.
        said: what has to be the same besides prompt and answers.
    """
    seen: dict[Hashable, Origin] = {}
    for example in examples:
        row = (*_answers_key(example), said(example))
        first = seen.setdefault(row, example.origin)
        if first is not example.origin:
            notes.add(example.origin, REPEATED, other=first, fix="remove one of the two")


def check_order(examples: Sequence[Example], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
    """Note repeats; two answers that rows order both ways round, or in a cycle, are bad unless allowed.

    Args:
        examples: rows whose answers are ordered, the best first.
        allow: `contradictions` notes them instead.
        bad: where reasons against a row go.
        notes: where oddities go.
    """
    check_repeats(examples, notes)
    ahead: dict[Hashable, Origin] = {}
    next_to: dict[tuple[Hashable, Hashable], Example] = {}
    for example in examples:
        *prompt, answers = _answers_key(example)
        context = tuple(prompt)
        pairs = [(better, worse) for better, worse in combinations(answers, 2) if better != worse]
        others = (ahead.get((context, worse, better)) for better, worse in pairs)
        turned = next(filter(None, others), None)
        if turned:
            which = "the same" if len(answers) == 2 else "two"
            _contradict(
                example, f"{which} answers are ranked the other way round than in {turned}", turned, allow, bad, notes
            )
        for better, worse in pairs:
            ahead.setdefault((context, better, worse), example.origin)
        for better, worse in pairwise(answers if not turned else ()):
            if better != worse:
                next_to.setdefault(((context, better), (context, worse)), example)
    _check_cycles(next_to, allow, bad, notes)


def check_labels(examples: Sequence[Any], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
    """Note repeats; an answer that is labelled good and bad is bad unless allowed."""
    check_repeats(examples, notes, lambda example: example.good)
    seen: dict[Hashable, Origin] = {}
    for example in examples:
        answer = _answers_key(example)
        turned = seen.get((*answer, not example.good))
        seen.setdefault((*answer, example.good), example.origin)
        if turned:
            _contradict(example, f"the same answer has the other label in {turned}", turned, allow, bad, notes)


def _contradict(example: Example, what: str, other: Origin, allow: Collection[str], bad: BadRows, notes: Notes) -> None:
    """Note a row that contradicts another one where that is allowed; else it is bad."""
    if CONTRADICTIONS in allow:
        notes.add(example.origin, CONTRADICTING, other=other)
        return
    fix = f"remove one of the two, or --data.allow {CONTRADICTIONS}"
    bad.add(example.origin, RowError(what, excerpt_text(example.prompt), fix))


def _check_cycles(
    ahead: Mapping[tuple[Hashable, Hashable], Example],
    allow: Collection[str],
    bad: BadRows,
    notes: Notes,
) -> None:
    """Answers that rows prefer in a cycle, of any length beyond two, are bad unless allowed."""
    prompts = {example.origin: example.prompt for example in ahead.values()}
    for cycle in cycles((better, worse, example.origin) for (better, worse), example in ahead.items()):
        first = cycle.others[0]
        if CONTRADICTIONS in allow:
            notes.add(cycle.closing, CYCLING, other=first)
            continue
        others = ", ".join(map(str, cycle.others)) + (", ..." if cycle.length > len(cycle.others) + 1 else "")
        what = f"preferences form a cycle with those of {others}"
        fix = f"remove one of them, or --data.allow {CONTRADICTIONS}"
        bad.add(cycle.closing, RowError(what, excerpt_text(prompts[cycle.closing]), fix))


def check_leak(
    train: Sequence[Example],
    held_out: Sequence[Example],
    check: Check,
    *,
    allow: Collection[str] = (),
) -> list[str]:
    """Refuse held-out rows whose prompt is trained on, and rows that contradict one of the other set.

    Args:
        train: the training rows.
        held_out: the rows of the evaluation.
        check: what compares rows of this kind, such as `check_order`.
        allow: `leak` and `contradictions` let these pass with a warning.

    Returns:
        The warnings about what was allowed.

    Raises:
        UserError: 65 with the count, and the first lines of both sets.
    """
    check_allowances(allow)
    warnings: list[str] = []
    shared = shared_prompts(train, held_out)
    if shared:
        count = f"{len(shared):,} of {len(held_out):,} held-out rows have a prompt that is trained on"
        if LEAK not in allow:
            places = [
                Problem(f"the prompt is also that of {origin}", str(example.origin), excerpt_text(example.prompt))
                for example, origin in shared
            ]
            first = Problem(count, where=str(shared[0][0].origin))
            raise UserError(ExitCode.DATA, [first, *places], fix=f"split by prompt, or --data.allow {LEAK}")
        warnings.append(f"{count} ({shared[0][0].origin} = {shared[0][1]}, ...)")
        bad = BadRows()
        notes = Notes(bad, strict=False)
        check([*train, *held_out], allow, bad, notes)
        bad.raise_if_any()
        warnings += [line for line in notes.format_lines() if line.startswith((CONTRADICTING, CYCLING))]
    return warnings


def shared_prompts(train: Sequence[Example], held_out: Sequence[Example]) -> list[tuple[Example, Origin]]:
    """Held-out rows whose prompt is in the training rows too, with the first line of it there."""
    seen: dict[Hashable, Origin] = {}
    for example in train:
        seen.setdefault(_asked(example), example.origin)
    found = ((example, seen.get(_asked(example))) for example in held_out)
    return [(example, origin) for example, origin in found if origin]


def key(text: Text) -> Hashable:
    """Something equal for equal texts."""
    return text if isinstance(text, str) else tuple(map(_message_key, text))


def _message_key(message: Message) -> Hashable:
    if message.keys() == PLAIN:
        return message["role"], message["content"]
    return json.dumps(message, sort_keys=True, default=str)


def excerpt_text(text: Text) -> str:
    """A text for a message: of a conversation, the last turn."""
    return text if isinstance(text, str) else str(text[-1].get("content") or "") if text else ""


def _asked(example: Example) -> Hashable:
    """The prompt, the same as a string and as one user turn; of a row that has none, the answers."""
    prompt = example.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user":
        prompt = prompt[0].get("content") or ""
    if prompt:
        return prompt.strip() if isinstance(prompt, str) else (key(prompt), _tools(example))
    return "", frozenset(map(key, example.answers))


def _answers_key(example: Example) -> tuple[Hashable, str, tuple[Hashable, ...]]:
    """Prompt, tools and answers: the same for rows of equal texts."""
    return key(example.prompt), _tools(example), tuple(map(key, example.answers))


def _tools(example: Example) -> str:
    return json.dumps(example.tools, sort_keys=True, default=str) if example.tools else ""
