"""Checks across rows: types of prompts, repeated rows, contradictions, and prompts of training and held-out rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import chain, combinations, pairwise
from typing import Any, TypeAlias

from dpo_lightning.data.cache.spilled_list import SpilledList
from dpo_lightning.data.examples import Example, Message, Origin, Text
from dpo_lightning.data.kinds.cycles import find_cycles
from dpo_lightning.data.kinds.suspects import select_contradicting, select_repeated, select_shared
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
"""Compares rows of one kind with one another; the arguments are those of `check_order`."""


def check_allowances(allow: Collection[str]) -> None:
    """Check the words of `data.allow`.

    Raises:
        UserError: 64, for a word that is not in `ALLOWANCES`.
    """
    for word in allow:
        if word not in ALLOWANCES:
            problem = Problem(f"'{word}' cannot be allowed", where="data.allow")
            raise UserError(ExitCode.CONFIG, problem, fix="use one of " + ", ".join(ALLOWANCES))


def check_types(examples: Sequence[Example], bad: BadRows) -> None:
    """Check that all prompts are text or all are messages; only messages always go through the chat template."""
    if not examples:
        return
    texts = sum(isinstance(example.prompt, str) for example in examples)
    usual = 2 * texts >= len(examples)
    first = next(example for example in examples if isinstance(example.prompt, str) == usual)
    for example in examples:
        if isinstance(example.prompt, str) != isinstance(first.prompt, str):
            kinds = ("text", "messages") if isinstance(example.prompt, str) else ("messages", "text")
            what = f"the prompt is {kinds[0]}, but {first.origin} has {kinds[1]}"
            bad.add(
                example.origin,
                RowError(what, excerpt_text(example.prompt), "write all rows as text or all as messages"),
            )


def check_repeats(
    examples: Sequence[Example], notes: Notes, annotation: Callable[[Any], Hashable] = lambda example: None
) -> None:
    """Note rows that occur more than once.

    Args:
        examples: the rows.
        notes: collects the warnings.
        annotation: returns what must be equal besides prompt and answers, such as the label.
    """
    seen: dict[Hashable, Origin] = {}
    for example in select_repeated(examples, _answers_key):
        row = (*_answers_key(example), annotation(example))
        first = seen.setdefault(row, example.origin)
        if first is not example.origin:
            notes.add(example.origin, REPEATED, other=first, fix="remove one of the two")


def check_order(examples: Sequence[Example], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
    """Note repeated rows; rows that rank two answers in opposite order, or several in a cycle, are bad unless allowed.

    Args:
        examples: rows whose answers are ranked, the best first.
        allow: with `contradictions`, contradicting rows are only noted.
        bad: collects the errors.
        notes: collects the warnings.
    """
    examples = select_contradicting(examples, _ranking_key)
    check_repeats(examples, notes)
    ahead: dict[Hashable, Origin] = {}  # (prompt, better, worse) -> the first row that ranks them so
    # Neighbours in a ranking alone: a cycle through answers that are further apart also leads through these.
    next_to: dict[tuple[Hashable, Hashable], Example] = {}
    for example in examples:
        *prompt, answers = _answers_key(example)
        context = tuple(prompt)
        pairs = [(better, worse) for better, worse in combinations(answers, 2) if better != worse]
        others = (ahead.get((context, worse, better)) for better, worse in pairs)
        turned = next(filter(None, others), None)
        if turned:
            which = "the same" if len(answers) == 2 else "two"
            _report(
                example, f"{which} answers are ranked the other way round than in {turned}", turned, allow, bad, notes
            )
        for better, worse in pairs:
            ahead.setdefault((context, better, worse), example.origin)
        for better, worse in pairwise(answers if not turned else ()):
            if better != worse:
                next_to.setdefault(((context, better), (context, worse)), example)
    _check_cycles(next_to, allow, bad, notes)


def check_labels(examples: Sequence[Any], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
    """Note repeated rows; a row is bad, unless allowed, if another one has its answer with the other label."""
    examples = select_repeated(examples, _answers_key)
    check_repeats(examples, notes, lambda example: example.good)
    seen: dict[Hashable, Origin] = {}
    for example in examples:
        answer = _answers_key(example)
        turned = seen.get((*answer, not example.good))
        seen.setdefault((*answer, example.good), example.origin)
        if turned:
            _report(example, f"the same answer has the other label in {turned}", turned, allow, bad, notes)


def _report(example: Example, what: str, other: Origin, allow: Collection[str], bad: BadRows, notes: Notes) -> None:
    """Note a row that contradicts another one where that is allowed; otherwise report it as bad."""
    if CONTRADICTIONS in allow:
        notes.add(example.origin, CONTRADICTING, other=other)
        return
    fix = f"remove one of the two, or --data.allow {CONTRADICTIONS}"
    bad.refuse(example.origin, RowError(what, excerpt_text(example.prompt), fix))


def _check_cycles(
    ahead: Mapping[tuple[Hashable, Hashable], Example],
    allow: Collection[str],
    bad: BadRows,
    notes: Notes,
) -> None:
    """Report cycles of three or more answers, unless allowed; `check_order` finds those of two."""
    prompts = {example.origin: example.prompt for example in ahead.values()}
    for cycle in find_cycles((better, worse, example.origin) for (better, worse), example in ahead.items()):
        first = cycle.others[0]
        if CONTRADICTIONS in allow:
            notes.add(cycle.closing, CYCLING, other=first)
            continue
        others = ", ".join(map(str, cycle.others)) + (", ..." if cycle.length > len(cycle.others) + 1 else "")
        what = f"the preferences form a cycle with those of {others}"
        fix = f"remove one of them, or --data.allow {CONTRADICTIONS}"
        bad.refuse(cycle.closing, RowError(what, excerpt_text(prompts[cycle.closing]), fix))


def check_leak(
    train: Sequence[Example],
    held_out: Sequence[Example],
    check: Check,
    *,
    allow: Collection[str] = (),
) -> list[str]:
    """Check that no held-out row has a prompt of the training rows, and that the two sets do not contradict each other.

    Args:
        train: the training rows.
        held_out: the held-out rows.
        check: compares rows of this kind, such as `check_order`.
        allow: `leak` and `contradictions` turn these errors into warnings.

    Returns:
        The warnings about what was allowed.

    Raises:
        UserError: 65 with the count, and the first lines of both sets.
    """
    check_allowances(allow)
    warnings: list[str] = []
    shared = find_shared_prompts(train, held_out)
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
        check(SpilledList(chain(train, held_out)), allow, bad, notes)
        bad.raise_if_any()
        warnings += [line for line in notes.format_lines() if line.startswith((CONTRADICTING, CYCLING))]
    return warnings


def find_shared_prompts(train: Sequence[Example], held_out: Sequence[Example]) -> list[tuple[Example, Origin]]:
    """The held-out rows whose prompt is also in the training rows, each with the first row that has it there."""
    train, held_out = select_shared(train, held_out, _prompt_key)
    seen: dict[Hashable, Origin] = {}
    for example in train:
        seen.setdefault(_prompt_key(example), example.origin)
    found = ((example, seen.get(_prompt_key(example))) for example in held_out)
    return [(example, origin) for example, origin in found if origin]


def text_key(text: Text) -> Hashable:
    """A hashable value that is equal for equal texts; messages are dicts, which are not hashable."""
    return text if isinstance(text, str) else tuple(map(_message_key, text))


def _message_key(message: Message) -> Hashable:
    if message.keys() == PLAIN:
        return message["role"], message["content"]
    return json.dumps(message, sort_keys=True, default=str)


def excerpt_text(text: Text) -> str:
    """The part of a text that an error message quotes: a string whole, or the last turn of a conversation."""
    return text if isinstance(text, str) else str(text[-1].get("content") or "") if text else ""


def _prompt_key(example: Example) -> Hashable:
    """A key of the prompt, equal for a string and for a single user turn; for an empty prompt, a key of the answers."""
    prompt = example.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user":
        prompt = prompt[0].get("content") or ""
    if prompt:
        return prompt.strip() if isinstance(prompt, str) else (text_key(prompt), _tools_key(example))
    return "", frozenset(map(text_key, example.answers))


def _answers_key(example: Example) -> tuple[Hashable, str, tuple[Hashable, ...]]:
    """A key of prompt, tools and answers."""
    return text_key(example.prompt), _tools_key(example), tuple(map(text_key, example.answers))


def _ranking_key(example: Example) -> tuple[Hashable, tuple[Hashable, ...]]:
    """The context in which answers are compared, prompt and tools, and a key of each answer."""
    prompt, tools, answers = _answers_key(example)
    return (prompt, tools), answers


def _tools_key(example: Example) -> str:
    return json.dumps(example.tools, sort_keys=True, default=str) if example.tools else ""
