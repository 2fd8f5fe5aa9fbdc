"""Rows against each other: repeats, contradictions, and prompts in both sets."""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import combinations, pairwise

from dpo_lightning.data.examples import (
    Example,
    Message,
    Origin,
    PreferenceExample,
    RankedExample,
    SFTExample,
    Text,
    UnpairedExample,
)
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


def check_allowances(allow: Collection[str]) -> None:
    """Refuse a word that allows nothing.

    Raises:
        UserError: 64.
    """
    for word in allow:
        if word not in ALLOWANCES:
            problem = Problem(f"'{word}' cannot be allowed", where="data.allow")
            raise UserError(ExitCode.CONFIG, problem, fix="one of " + ", ".join(ALLOWANCES))


def check_pairs(examples: Sequence[PreferenceExample], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
    """Note pairs that are there twice; pairs that are there both ways round are bad unless allowed."""
    seen: dict[Hashable, Origin] = {}
    ahead: dict[tuple[Hashable, Hashable], PreferenceExample] = {}
    for example in examples:
        prompt = (key(example.prompt), _tools(example))
        chosen, rejected = key(example.chosen), key(example.rejected)
        turned = seen.get((prompt, rejected, chosen)) if chosen != rejected else None
        first = seen.setdefault((prompt, chosen, rejected), example.origin)
        if first is not example.origin:
            notes.add(example.origin, REPEATED, other=first, fix="remove one of the two")
        if turned and CONTRADICTIONS in allow:
            notes.add(example.origin, CONTRADICTING, other=turned)
        elif turned:
            what = f"the same answers are ranked the other way round than in {turned}"
            fix = f"remove one of the two, or --data.allow {CONTRADICTIONS}"
            bad.add(example.origin, RowError(what, shown(example.prompt), fix))
        elif chosen != rejected:
            ahead.setdefault(((prompt, chosen), (prompt, rejected)), example)
    _check_cycles(ahead, allow, bad, notes)


def check_rankings(examples: Sequence[RankedExample], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
    """Note lists that are there twice; two answers that lists rank both ways round are bad unless allowed."""
    seen: dict[Hashable, Origin] = {}
    ahead: dict[Hashable, Origin] = {}
    next_to: dict[tuple[Hashable, Hashable], RankedExample] = {}
    for example in examples:
        prompt, answers = (key(example.prompt), _tools(example)), tuple(map(key, example.responses))
        first = seen.setdefault((prompt, answers), example.origin)
        if first is not example.origin:
            notes.add(example.origin, REPEATED, other=first, fix="remove one of the two")
        pairs = list(combinations(answers, 2))
        others = (ahead.get((prompt, worse, better)) for better, worse in pairs)
        turned = next(filter(None, others), None)
        if turned and CONTRADICTIONS in allow:
            notes.add(example.origin, CONTRADICTING, other=turned)
        elif turned:
            what = f"two answers are ranked the other way round than in {turned}"
            fix = f"remove one of the two, or --data.allow {CONTRADICTIONS}"
            bad.add(example.origin, RowError(what, shown(example.prompt), fix))
        for better, worse in pairs:
            ahead.setdefault((prompt, better, worse), example.origin)
        for better, worse in pairwise(answers if not turned else ()):
            next_to.setdefault(((prompt, better), (prompt, worse)), example)
    _check_cycles(next_to, allow, bad, notes)


def _check_cycles(
    ahead: Mapping[tuple[Hashable, Hashable], PreferenceExample | RankedExample],
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
        bad.add(cycle.closing, RowError(what, shown(prompts[cycle.closing]), fix))


def check_demonstrations(examples: Sequence[SFTExample], notes: Notes) -> None:
    """Note demonstrations that are there twice."""
    seen: dict[Hashable, Origin] = {}
    for example in examples:
        first = seen.setdefault((key(example.prompt), _tools(example), key(example.completion)), example.origin)
        if first is not example.origin:
            notes.add(example.origin, REPEATED, other=first, fix="remove one of the two")


def check_judged(examples: Sequence[UnpairedExample], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
    """Note judgements that are there twice; an answer that is judged both ways is bad unless allowed."""
    seen: dict[Hashable, Origin] = {}
    for example in examples:
        answer = key(example.prompt), _tools(example), key(example.completion)
        turned = seen.get((*answer, not example.good))
        first = seen.setdefault((*answer, example.good), example.origin)
        if first is not example.origin:
            notes.add(example.origin, REPEATED, other=first, fix="remove one of the two")
        if turned and CONTRADICTIONS in allow:
            notes.add(example.origin, CONTRADICTING, other=turned)
        elif turned:
            what = f"the same answer is judged the other way than in {turned}"
            fix = f"remove one of the two, or --data.allow {CONTRADICTIONS}"
            bad.add(example.origin, RowError(what, shown(example.prompt), fix))


def check_leak(
    train: Sequence[Example],
    held_out: Sequence[Example],
    *,
    allow: Collection[str] = (),
) -> list[str]:
    """Refuse held-out rows whose prompt is trained on, and pairs that one set ranks the other way round.

    Args:
        train: the training rows.
        held_out: the rows of the evaluation.
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
                Problem(f"the prompt is also that of {origin}", str(example.origin), shown(example.prompt))
                for example, origin in shared
            ]
            first = Problem(count, where=str(shared[0][0].origin))
            raise UserError(ExitCode.DATA, [first, *places], fix=f"split by prompt, or --data.allow {LEAK}")
        warnings.append(f"{count} ({shared[0][0].origin} = {shared[0][1]}, ...)")
        bad = BadRows()
        notes = Notes(bad, strict=False)
        pairs = [example for example in (*train, *held_out) if isinstance(example, PreferenceExample)]
        check_pairs(pairs, allow, bad, notes)
        lists = [example for example in (*train, *held_out) if isinstance(example, RankedExample)]
        check_rankings(lists, allow, bad, notes)
        judged = [example for example in (*train, *held_out) if isinstance(example, UnpairedExample)]
        check_judged(judged, allow, bad, notes)
        bad.raise_if_any()
        warnings += [line for line in notes.lines() if line.startswith((CONTRADICTING, CYCLING))]
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


def shown(text: Text) -> str:
    """A text as it stands in a message: of a conversation, the last turn."""
    return text if isinstance(text, str) else str(text[-1].get("content") or "") if text else ""


def _asked(example: Example) -> Hashable:
    """The prompt, the same as a string and as one user turn; of a row that has none, the answers."""
    prompt = example.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user":
        prompt = prompt[0].get("content") or ""
    if prompt:
        return prompt.strip() if isinstance(prompt, str) else (key(prompt), _tools(example))
    if isinstance(example, PreferenceExample):
        return "", frozenset({key(example.chosen), key(example.rejected)})
    if isinstance(example, RankedExample):
        return "", frozenset(map(key, example.responses))
    return "", key(example.completion)


def _tools(example: Example) -> str:
    return json.dumps(example.tools, sort_keys=True, default=str) if example.tools else ""
