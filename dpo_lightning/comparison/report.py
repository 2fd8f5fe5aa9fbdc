"""The figures of a comparison as JSON, as lines for the terminal, and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.comparison.bradley_terry import fit_bradley_terry
from dpo_lightning.comparison.judges.base import Verdicts
from dpo_lightning.comparison.length_control import control_length
from dpo_lightning.comparison.pairing import Matched, name_models
from dpo_lightning.comparison.texts import as_messages, count_equal, mark_differences
from dpo_lightning.comparison.win_rates import compare_outcomes
from dpo_lightning.data.checks.normalization import read_content
from dpo_lightning.evaluation.result_file import replace_nonfinite
from dpo_lightning.pages.render import format_interval, format_number, render
from dpo_lightning.version import __version__

SLICES = ("group", "language")
"""Keys of the items by which the prompts are sliced."""

MOST_SHOWN = 300
"""Prompts whose answers a page shows; the JSON file has all."""

Report: TypeAlias = dict[str, Any]


def make_report(matched: Matched, verdicts: Verdicts, judge: Mapping[str, Any]) -> Report:
    """Compute all figures of a comparison.

    Args:
        matched: the answers of all models.
        verdicts: what the judge decided.
        judge: what the verdicts depend on.

    Returns:
        What is written as JSON; docs/compare.md describes it.
    """
    names = name_models(matched.results)
    return {
        "format": 1,
        "made_by": {"dpo_lightning": __version__, "judge": dict(judge)},
        "models": [
            {"name": name, "file": str(result.path), **describe_result(result.summary)}
            for name, result in zip(names, matched.results, strict=True)
        ],
        "notes": list(matched.notes),
        "prompts": len(matched.prompts),
        "equal": count_equal(matched.answers),
        "comparisons": [compare_two(matched, verdicts, names, pair) for pair in verdicts.outcomes],
        "strengths": rank_models(verdicts, names, len(matched.prompts)),
        "rows": list_rows(matched, verdicts),
    }


def describe_result(summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the digest of a result file and what it was made by; None for each without a summary."""
    if summary is None:
        return {"sha256": None, "made_by": None}
    return {"sha256": summary["items"]["sha256"], "made_by": summary["made_by"]}


def compare_two(matched: Matched, verdicts: Verdicts, names: Sequence[str], pair: tuple[int, int]) -> dict[str, Any]:
    """Compute the figures of two models: of all prompts with an outcome, and of their slices."""
    own = [matched.answers[model] for model in pair]
    judged = [row for row, outcome in enumerate(verdicts.outcomes[pair]) if outcome is not None]
    outcomes: list[float] = [outcome for outcome in verdicts.outcomes[pair] if outcome is not None]
    lengths = [[len(answers[row]) for row in judged] for answers in own]
    labels = {name: [str(matched.items[0][row].get(name) or "") for row in judged] for name in SLICES}
    return {
        "a": names[pair[0]],
        "b": names[pair[1]],
        "prompts": len(judged),
        "equal": count_equal(own),
        "judge": dict(verdicts.counts[pair]),
        **compute_rate(outcomes),
        "rate_at_equal_length": control_length(outcomes, lengths[0], lengths[1])._asdict() if outcomes else None,
        "mean_length": [sum(each) / len(each) if each else None for each in lengths],
        "slices": {
            name: {
                label: compute_rate([outcome for outcome, given in zip(outcomes, own, strict=True) if given == label])
                for label in sorted(set(own))
            }
            for name, own in labels.items()
            if len(set(own)) > 1
        },
    }


def compute_rate(outcomes: Sequence[float]) -> dict[str, Any]:
    """Return the fields of `WinRate`, all None without an outcome."""
    if not outcomes:
        return dict.fromkeys(("wins", "ties", "losses", "rate", "p_value", "needed"))
    found = compare_outcomes(outcomes)
    return {**vars(found), "rate": found.rate._asdict()}


def rank_models(verdicts: Verdicts, names: Sequence[str], prompts: int) -> list[dict[str, Any]] | None:
    """Return the strengths of three models or more, the strongest first; None for two, or without an outcome."""
    import numpy as np

    wins = np.zeros((prompts, len(names), len(names)))
    for (i, j), outcomes in verdicts.outcomes.items():
        for row, outcome in enumerate(outcomes):
            if outcome is not None:
                wins[row, i, j], wins[row, j, i] = outcome, 1 - outcome
    if len(names) < 3 or not wins.any():
        return None
    strengths = zip(names, fit_bradley_terry(wins), strict=True)
    return [{"name": name, **found._asdict()} for name, found in sorted(strengths, key=lambda each: -each[1].estimate)]


def list_rows(matched: Matched, verdicts: Verdicts) -> list[dict[str, Any]]:
    """Return for each prompt the answers, the outcomes in the order of the comparisons, and the scores."""
    return [
        {
            "prompt": prompt,
            **{name: matched.items[0][row].get(name) for name in ("file", "line", *SLICES)},
            "answers": [own[row] for own in matched.answers],
            "outcomes": [outcomes[row] for outcomes in verdicts.outcomes.values()],
            "scores": None if verdicts.scores is None else [own[row] for own in verdicts.scores],
        }
        for row, prompt in enumerate(matched.prompts)
    ]


def format_lines(report: Report) -> list[str]:
    """Format the figures as lines for the terminal."""
    lines = [f"{report['prompts']} prompts, judge: {report['made_by']['judge']['judge']}"]
    lines += [f"note: {note}" for note in report["notes"]]
    for found in report["comparisons"]:
        lines.append(f"{found['a']}  against  {found['b']}")
        if found["rate"] is None:
            lines.append("  no prompt has a verdict")
            continue
        if found["equal"] == report["prompts"]:
            lines.append("  all answers are equal")
        needed = "" if found["needed"] is None else f", prompts needed to tell: {found['needed']:,}"
        lines += [
            f"  wins {found['wins']}, ties {found['ties']}, losses {found['losses']}",
            f"  win rate              {format_interval(found['rate'])}",
            f"  win rate, same length {format_interval(found['rate_at_equal_length'])}",
            f"  sign test             p = {format_number(found['p_value'])}{needed}",
        ]
        said = ", ".join(f"{name} {count}" for name, count in found["judge"].items())
        lines += [f"  judge                 {said}"] if said else []
    lines += ["strength (Bradley-Terry)"] if report["strengths"] else []
    lines += [f"  {format_interval(each):>24}  {each['name']}" for each in report["strengths"] or ()]
    return lines


def write_report(report: Report, output: Path) -> tuple[Path, Path]:
    """Write the JSON file and the page beside it.

    Args:
        report: the figures.
        output: the name of one of the two files; the suffix of the other is exchanged.

    Returns:
        The paths of both.

    Raises:
        OSError: a file cannot be written.
    """
    paths = output.with_suffix(".json"), output.with_suffix(".html")
    text = json.dumps(replace_nonfinite(report), ensure_ascii=False, allow_nan=False, indent=1)
    for path, content in zip(paths, (text + "\n", render_page(report)), strict=True):
        with open_atomic(path) as file:
            file.write(content)
    return paths


def render_page(report: Report) -> str:
    """Return the page of a comparison: figures, and answers side by side with their differences marked."""
    return render(
        "comparison.html.j2",
        report=report,
        rows=[mark_row(row) for row in report["rows"][:MOST_SHOWN]],
        rates={(found["a"], found["b"]): found["rate"] for found in report["comparisons"]},
    )


def mark_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its prompt as texts by role, and with each answer split by how it differs from the first."""
    first, *others = row["answers"]
    both = [mark_differences(first, other) for other in others]
    parts = [both[0][0] if len(both) == 1 else mark_differences(first, first)[0], *(marked for _, marked in both)]
    turns = [(str(turn.get("role")), read_content(turn)) for turn in as_messages(row["prompt"])]
    return {**row, "turns": turns, "parts": parts, "equal": len(set(row["answers"])) == 1}
