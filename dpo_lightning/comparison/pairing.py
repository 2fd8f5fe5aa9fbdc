"""Answers of several models to the same prompts, matched by prompt, and what else differs between their evaluations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpo_lightning.comparison.texts import as_messages, format_prompt
from dpo_lightning.data.examples import Origin
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.evaluation.result_file import Result

CHARS = 40
"""Characters of a value that a difference shows."""

Key = tuple[str, int]
"""A prompt, and how many equal ones come before it."""


class Matched(NamedTuple):
    """The answers of several models to the same prompts.

    Attributes:
        results: the result file of each model.
        items: for each model its items, in the order of the first one's.
        notes: differences that were accepted, and what is not known.
    """

    results: Sequence[Result]
    items: Sequence[Sequence[Mapping[str, Any]]]
    notes: Sequence[str]

    @property
    def answers(self) -> list[list[str]]:
        """For each model its answers."""
        return [[item["generated"] for item in own] for own in self.items]

    @property
    def prompts(self) -> list[Any]:
        """The prompts, as the first model's items have them."""
        return [item["prompt"] for item in self.items[0]]

    @property
    def origins(self) -> list[Origin]:
        """Where each prompt is from, for errors."""
        return [locate(self.results[0], number) for number in range(len(self.items[0]))]


def match_results(results: Sequence[Result], allowed: Collection[str] = ()) -> Matched:
    """Match the items of result files by their prompts; equal prompts are matched in their order.

    Args:
        results: those of two models or more.
        allowed: `sampling`, `template` or both: kinds of differences that become notes.

    Raises:
        UserError: 65, the files have other prompts, or were sampled with another seed, other options or another
            template, with both values of each.
    """
    first, *others = results
    keys = [key_items(result) for result in results]
    problems = [
        problem
        for other, own in zip(others, keys[1:], strict=True)
        for problem in compare_prompts(first, keys[0], other, own)
    ]
    if problems:
        raise UserError(ExitCode.DATA, problems, fix="evaluate both models with the same --data and --limit_rows")
    notes = [
        f"{result.path} has no summary: seed and sampling are not known" for result in results if not result.summary
    ]
    refused = []
    for other in others:
        for kind, text in compare_options(first, other):
            if kind in allowed:
                notes.append(text)
            else:
                refused.append(Problem(text, str(other.path)))
    refused += [
        problem
        for other, own in zip(others, keys[1:], strict=True)
        for problem in compare_seeds(first, keys[0], other, own)
        if "sampling" not in allowed
    ]
    if refused:
        fix = "evaluate both models with the same options, or --allow sampling template"
        raise UserError(ExitCode.DATA, refused, fix)
    items = [[own[key] for key in keys[0]] for own in keys]
    return Matched(results, items, notes)


def key_items(result: Result) -> dict[Key, dict[str, Any]]:
    """Return the items of a file by prompt and occurrence, in their order."""
    seen: Counter[str] = Counter()
    found = {}
    for item in result.items:
        prompt = json.dumps(as_messages(item["prompt"]), sort_keys=True)
        found[prompt, seen[prompt]] = item
        seen[prompt] += 1
    return found


def compare_prompts(
    one: Result, keys: Mapping[Key, Mapping[str, Any]], other: Result, own: Mapping[Key, Mapping[str, Any]]
) -> list[Problem]:
    """Describe the prompts that only one of two files has."""
    problems = []
    for has, its, lacks, theirs in ((one, keys, other, own), (other, own, one, keys)):
        missing = [key for key in its if key not in theirs]
        if missing:
            item, origin = its[missing[0]], locate(has, list(its).index(missing[0]))
            what = f"{len(missing)} of the {len(its)} prompts of {has.path} are missing; first: {origin}"
            problems.append(Problem(what, str(lacks.path), format_prompt(item["prompt"])))
    return problems


def locate(result: Result, number: int) -> Origin:
    """Return where an item is from: its row in the file that was evaluated, or its number in the result file."""
    item = result.items[number]
    if isinstance(item.get("file"), str) and isinstance(item.get("line"), int):
        return Origin(item["file"], item["line"])
    return Origin(f"{result.path}, item", number + 1)


def compare_options(one: Result, other: Result) -> list[tuple[str, str]]:
    """Describe how answers were generated differently: the kind, `sampling` or `template`, and both values."""
    if not (one.summary and other.summary):
        return []
    made = [result.summary["made_by"] for result in (one, other) if result.summary]
    sampling = [own.get("sampling") if isinstance(own.get("sampling"), dict) else {} for own in made]
    names = dict.fromkeys([*sampling[0], *sampling[1]])
    found = [("sampling", name, *(own.get(name) for own in sampling)) for name in names]
    found += [(name, name, *(own.get(name) for own in made)) for name in ("template",)]
    return [
        (kind, f"{name}: {one.path} has {shorten(a)}, {other.path} has {shorten(b)}")
        for kind, name, a, b in found
        if a != b
    ]


def compare_seeds(
    one: Result, keys: Mapping[Key, Mapping[str, Any]], other: Result, own: Mapping[Key, Mapping[str, Any]]
) -> list[Problem]:
    """Describe how the seeds of two files differ, where a summary does not have them."""
    if one.summary and other.summary:
        return []
    different = [
        (a["seed"], b["seed"])
        for a, b in ((item, own[key]) for key, item in keys.items())
        if "seed" in a and "seed" in b and a["seed"] != b["seed"]
    ]
    if not different:
        return []
    a, b = different[0]
    what = f"seed: {len(different)} prompts have another one than in {one.path}, first {shorten(a)} and {shorten(b)}"
    return [Problem(what, str(other.path))]


def shorten(value: Any) -> str:
    """Return the first characters of a value."""
    text = str(value)
    return text if len(text) <= CHARS else f"{text[: CHARS - 1]}…"


def name_models(results: Sequence[Result]) -> list[str]:
    """Name each model by a letter and the file of its answers."""
    return [f"{chr(ord('A') + nth)} {Path(result.path)}" for nth, result in enumerate(results)]
