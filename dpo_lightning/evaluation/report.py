"""An evaluation for people: a table for the terminal, and a page with every measure and the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.data.checks.normalization import read_content
from dpo_lightning.evaluation.result_file import Result
from dpo_lightning.pages.render import format_number, render

MOST_SHOWN = 200
"""Rows that a page shows; the file has all of them."""

ROUNDING = 2e-4
"""KL in nats per token that other weights of the same model may have: one of 135M rounded to bfloat16 has 7e-5."""

TITLES = {
    "loss": "loss",
    "accuracy/reward": "accuracy by implicit reward",
    "ties/reward": "ties of implicit rewards",
    "accuracy/loss": "accuracy by the loss's own reward",
    "accuracy/likelihood": "accuracy by likelihood",
    "ties/likelihood": "ties of likelihoods",
    "accuracy/likelihood/reference": "accuracy by likelihood of the reference",
    "margin/reward": "margin of the loss's rewards",
    "margin/nats": "margin of log-ratios (nats)",
    "perplexity/chosen": "perplexity of chosen answers",
    "perplexity/chosen/reference": "perplexity of chosen answers, reference",
    "kl/held_out/token": "KL per token of the rows' answers (nats)",
    "kl/generated/token": "KL per generated token (nats)",
    "kl/generated/answer": "KL per generated answer (nats)",
    "length/tokens": "tokens of an answer",
    "ended": "answers that ended by themselves",
    "repetition": "repeated 4-grams of an answer",
    "refusals": "refusals",
    "language_match": "answers in the prompt's script",
}
"""Measures in the order in which they are shown."""


def list_measures(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the title and the figures of each measure that the summary has."""
    measures = summary["measures"]
    return [(title, measures[name]) for name, title in TITLES.items() if name in measures]


def find_notes(summary: Mapping[str, Any]) -> list[str]:
    """Return what makes the measures doubtful, as sentences."""
    notes = []
    if empty := summary.get("empty_answers"):
        answers = "1 answer of the server has" if empty == 1 else f"{empty} answers of the server have"
        notes.append(
            f"{answers} no text: such as calls of a tool alone, or reasoning that --max_new_tokens cut off before the "
            "answer began. They count as answers in all measures."
        )
    measures = summary["measures"]
    names = [name for name in ("kl/held_out/token", "kl/generated/token") if name in measures]
    if names and all(measures[name]["estimate"] < ROUNDING for name in names):
        found = format_number(measures[names[0]]["estimate"])
        notes.append(
            f"The model differs from its reference by {found} nats per token, which may be rounding: rewards and "
            "margins say little. Is the reference the model from before its training?"
        )
    return notes


def format_lines(result: Result) -> list[str]:
    """Format the measures as lines for the terminal."""
    summary = result.summary or {}
    made_by = summary["made_by"]
    reference = made_by["reference"]
    against = f"against {reference['path']}" if reference else "without a reference"
    lines = [f"evaluation of {made_by['model']['path']} {against}, {len(result.items)} rows"]
    rows = list_measures(summary)
    width = max((len(title) for title, _ in rows), default=0)
    for title, measure in rows:
        low, high = measure["low"], measure["high"]
        bounds = "" if None in (low, high) else f"   {format_number(low)} to {format_number(high)}"
        lines.append(f"  {title:<{width}}  {format_number(measure['estimate']):>8}{bounds}")
    return [*lines, *(f"note: {note}" for note in find_notes(summary))]


def page_path(path: Path) -> Path:
    """Return the name of the page beside a file of items: `eval.html` for `eval.json`."""
    return path.with_suffix(".html")


def list_turns(prompt: str | Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the role and the text of each message of a prompt; one without a role for a plain text."""
    return [("", prompt)] if isinstance(prompt, str) else [(str(each["role"]), read_content(each)) for each in prompt]


def write_page(result: Result) -> Path:
    """Write the page beside the items, and return its path."""
    summary: Mapping[str, Any] = result.summary or {}
    page = render(
        "evaluation.html.j2",
        made_by=summary["made_by"],
        measures=list_measures(summary),
        slices=summary["slices"],
        notes=find_notes(summary),
        items=[item | {"turns": list_turns(item["prompt"])} for item in result.items[:MOST_SHOWN]],
        count=len(result.items),
    )
    path = page_path(result.path)
    with open_atomic(path) as file:
        file.write(page)
    return path
