"""`Report`: what `check-data` found in a set of rows, as one JSON object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dpo_lightning.data.checks.findings import Finding, find_row_faults, read_question
from dpo_lightning.data.checks.first_rows import SHOWN, ShownRow, show_texts
from dpo_lightning.data.checks.lengths import Lengths, LongerWins, compare_lengths, measure_characters, summarize
from dpo_lightning.data.checks.prompts import PromptIndex, find_near_leaks, find_near_prompts, find_near_rows
from dpo_lightning.data.checks.reading import CheckedRows
from dpo_lightning.data.checks.scripts import choose_script, count_scripts
from dpo_lightning.data.checks.tokens import EncodedSet
from dpo_lightning.data.formats.base import KindName
from dpo_lightning.data.kinds.duplicates import check_leak, find_shared_prompts
from dpo_lightning.data.load import KINDS
from dpo_lightning.data.readers.left_out import LeftOutRow, format_left_out
from dpo_lightning.errors import ExitCode, UserError

NO_SCRIPT = "few letters"
"""Name of the prompts without enough letters to have a script."""


@dataclass
class Report:
    """What was found.

    Attributes:
        files: the files as given.
        kind: the name of the kind of rows.
        rows: the number of sound rows.
        recognized: whether the kind was recognized by the columns.
        notes: the warnings that `fit` prints.
        places: the rows that a note counts, by its kind.
        errors: why `fit` would refuse the rows.
        left_out: the bad rows, where `fit` would leave these out.
        first_rows: the first rows as they are trained.
        lengths: the lengths of texts; None without a sound row.
        longer_wins: how often the longer answer is the better one; None where there is nothing to compare.
        scripts: the share of prompts by their script, the most frequent first.
        prompts: the number of different prompts, apart from case, white space and punctuation.
        findings: doubtful rows that `fit` accepts.
        held_out: the report on the held-out rows, with the findings about both sets.
    """

    files: list[str]
    kind: KindName
    rows: int
    recognized: bool = False
    notes: list[str] = field(default_factory=list)
    places: dict[str, list[str]] = field(default_factory=dict)
    errors: list[UserError] = field(default_factory=list)
    left_out: list[LeftOutRow] = field(default_factory=list)
    first_rows: list[ShownRow] = field(default_factory=list)
    lengths: Lengths | None = None
    longer_wins: LongerWins | None = None
    scripts: dict[str, float] = field(default_factory=dict)
    prompts: int = 0
    findings: list[Finding] = field(default_factory=list)
    held_out: Report | None = None

    @property
    def all_errors(self) -> list[UserError]:
        """Why `fit` would refuse the rows or the held-out rows."""
        return self.errors + (self.held_out.errors if self.held_out else [])

    @property
    def exit_code(self) -> int:
        """65 where `fit` would refuse the rows, otherwise 0."""
        return int(ExitCode.DATA) if self.all_errors else 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; the keys are described in docs/data.md."""
        return {
            "files": self.files,
            "kind": self.kind,
            "recognized": self.recognized,
            "rows": self.rows,
            "exit_code": self.exit_code,
            "errors": [problem for error in self.errors for problem in list_problems(error)],
            "left_out": [row.to_json() for row in self.left_out],
            "notes": [{"text": line, "places": self._find_places(line)} for line in self.notes],
            "first_rows": [asdict(row) for row in self.first_rows],
            "lengths": self.lengths and self.lengths.to_json(),
            "longer_wins": self.longer_wins and self.longer_wins.to_json(),
            "scripts": self.scripts,
            "prompts": self.prompts,
            "findings": [{**asdict(finding), "count": len(finding.places)} for finding in self.findings],
            "eval": self.held_out and self.held_out.to_json(),
        }

    def _find_places(self, note: str) -> list[str]:
        """All rows that a note counts; empty for a note about the whole set."""
        found = (places for what, places in self.places.items() if note.startswith(f"{what}: {len(places):,} ("))
        return next(found, [])


def list_problems(error: UserError) -> list[dict[str, str]]:
    """Return the problems of an error as JSON values, each with its remedy."""
    return [
        {"what": problem.what, "where": problem.where, "text": problem.text, "fix": problem.fix or error.fix}
        for problem in error.problems
    ]


def build_report(files: Sequence[str], kind: KindName, rows: CheckedRows, encoded: EncodedSet | None = None) -> Report:
    """Analyse a set of rows.

    Args:
        files: the files as given.
        kind: the name of the kind of rows.
        rows: the rows as read.
        encoded: the same rows as token ids; texts and lengths in characters are shown if it is None.
    """
    examples = rows.examples
    report = Report(list(files), kind, len(examples), notes=list(rows.notes), places=rows.places)
    report.errors = list(rows.errors)
    if encoded is not None:
        report.notes += encoded.notes
        report.errors += encoded.errors
    if rows.bad.drops and not report.errors:
        try:
            report.left_out = rows.bad.leave_out()
        except UserError as error:
            report.errors.append(error)
        report.notes += format_left_out(report.left_out, rows.bad.total)
        faulty = rows.bad.origins
        examples = [example for example in examples if example.origin not in faulty]
        report.rows = len(examples)
    if not examples:
        return report
    in_characters = measure_characters(kind, examples)
    report.longer_wins = compare_lengths(in_characters)
    if encoded is None:
        report.first_rows = [show_texts(kind, example) for example in examples[:SHOWN]]
        report.lengths = summarize("characters", in_characters)
    else:
        report.first_rows = encoded.first_rows
        report.lengths = summarize("tokens", encoded.measured, encoded.max_length) if encoded.measured else None
    scripts = [count_scripts(read_question(example.prompt)) for example in examples]
    report.scripts = share_scripts(scripts)
    index = PromptIndex.build(examples)
    report.prompts = len(index.rows)
    findings = (*find_row_faults(examples, scripts), *find_near_prompts(index), *find_near_rows(index))
    report.findings = [finding for finding in findings if finding.places]
    return report


def share_scripts(scripts: Sequence[Counter[str]]) -> dict[str, float]:
    """Return the share of the texts by script, the most frequent first."""
    counts = Counter(choose_script(counted) or NO_SCRIPT for counted in scripts)
    return {name: count / len(scripts) for name, count in counts.most_common()}


def compare_sets(train: CheckedRows, held_out: CheckedRows, report: Report, allow: Sequence[str]) -> None:
    """Add what `fit` says of prompts in both sets to the report on the held-out rows, and near leaks.

    Args:
        train: the training rows.
        held_out: the held-out rows.
        report: the report on the held-out rows.
        allow: the words of `data.allow`.
    """
    sets = train.examples, held_out.examples
    try:
        report.notes += check_leak(*sets, KINDS[report.kind].check, allow=allow)
    except UserError as error:
        report.errors.append(error)
    leaked = {example.origin for example, _ in find_shared_prompts(*sets)}
    near = find_near_leaks(*sets, leaked)
    report.findings += [near] if near.places else []
