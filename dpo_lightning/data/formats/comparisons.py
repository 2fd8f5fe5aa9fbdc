"""Comparisons: two answers in columns such as `response_a, response_b`, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_lightning.data.formats.arena import Arena, ArenaTexts
from dpo_lightning.data.formats.base import Format
from dpo_lightning.data.formats.names import VERDICTS, find_other_question, match_names
from dpo_lightning.data.formats.preference_sets import HelpSteer2Preference, HelpSteer3
from dpo_lightning.data.formats.twin_columns import Twins, find_answers, order_answers
from dpo_lightning.data.formats.verdicts import SIGNS, VerdictReader, normalize_verdict
from dpo_lightning.data.formats.words import split_name
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name
from dpo_lightning.errors import ExitCode, Problem, UserError

OURS = ("answer_1", "answer_2", "verdict")
"""Our columns of a comparison, for `--data.columns`."""

SETS: tuple[type[Format], ...] = (Arena, ArenaTexts, HelpSteer2Preference, HelpSteer3)
"""Formats whose rows have two answers and a verdict too, which they read in their own way."""

JUDGES = frozenset(("better", "safer", "preferred", "winner", "winning", "chosen", "best"))
OTHERS = {"1": "0", "0": "1", "2": "1", "true": "false", "false": "true"}
"""A verdict that is the only one of a set -> the one that would prefer the other answer."""

POINTERS = frozenset(("id", "index", "idx", "model", "response", "answer"))
LONGEST = 3
"""Words of the longest text by which both `chosen` and `rejected` may point to answers."""


class Comparisons(Format):
    """A question, two answers in twin columns, and a column with the verdict, such as `winner` or `label`."""

    name, title, kind = "comparisons", "comparisons of two answers", "pairs"
    guesses, has_verdict, mappable = True, True, OURS

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has two answers, a verdict and a question, and no pair of answers to read as such."""
        if {"chosen", "rejected"} <= values.keys() and not _are_short(values["chosen"], values["rejected"]):
            return False
        answers = [] if any(known.claims(values) for known in SETS) else find_answers(values)
        return bool(answers and find_verdicts(values) and find_prompt(values, answers[0]))

    def configure(self, columns: Mapping[str, str] | None, first_wins: str | int | None) -> None:
        """Choose the columns by the first row that has this format, and find out how the verdicts are to be read."""
        super().configure(columns, first_wins)
        row = next((row for row in self.rows if self.claims(row.values)), self.rows[0])
        answers, verdicts = find_answers(row.values), find_verdicts(row.values)
        if "verdict" in self.mapped and "verdict" in row.values:
            verdicts = ["verdict"]
        if {"answer_1", "answer_2"} <= self.mapped.keys():
            answers = [twins for twins in answers if twins[:2] == ("answer_1", "answer_2")]
        self._check_one("verdict", [f"--data.columns.verdict {excerpt_name(name)}" for name in verdicts], row)
        choices = [f"--data.columns.answer_1 {one[0]} --data.columns.answer_2 {one[1]}" for one in answers]
        self._check_one("pair of answers", choices, row)
        self.answers, self.verdict = answers[0], verdicts[0]
        self.prompt = find_prompt(row.values, self.answers)
        self._check_one("question", [self.prompt] if self.prompt else [], row)
        self.columns = (self.prompt, *self.answers[:2], self.verdict)
        self.optional = ("rejected",) if self.verdict == "chosen" else ()  # points to the other answer
        self.renames = {"prompt": self.prompt} if self.prompt != "prompt" else {}
        given = {normalize_verdict(row.values.get(self.verdict)) for row in self.rows}
        shown = self.mapped.get(self.verdict, self.verdict)
        own_names = [self.mapped.get(name, name) for name in self.answers[:2]]
        self.reader = VerdictReader(self.verdict, self.answers, given, first_wins, shown, own_names)
        if self.reader.unclear:
            self._refuse(self.reader.unclear, row)

    def describe(self) -> str:
        """The title, and the columns that have the answers and the verdict."""
        found = f"{self.answers.first}, {self.answers.second} by {self._name(self.verdict)}"
        return f"{self.title} (format {self.name}: {found})"

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Order the answers by the verdict."""
        place, margin = self.reader.read(values)
        return {"prompt": values[self.prompt], **order_answers(values, self.answers[:2], place), "margin": margin}

    def _name(self, ours: str) -> str:
        return excerpt_name(self.mapped.get(ours, ours))

    def _check_one(self, what: str, choices: Sequence[str], row: Row) -> None:
        """Check that there is one choice of a column.

        Raises:
            UserError: 65, there is none or more than one.
        """
        if len(choices) != 1:
            problem = Problem(f"the rows have {len(choices) or 'no'} columns that may be the {what}", str(row.origin))
            fix = " or ".join(choices) or " ".join(f"--data.columns.{name} NAME" for name in ("prompt", *OURS))
            raise UserError(ExitCode.DATA, problem, fix=fix)

    def _refuse(self, unclear: Sequence[str], row: Row) -> None:
        """Refuse verdicts that may prefer either answer.

        Raises:
            UserError: 65, with the options that say it.
        """
        first, second = self.answers[:2]
        shown = " or ".join(unclear[:4]) + (" or ..." if len(unclear) > 4 else "")
        what = f"'{self._name(self.verdict)}' is {shown}, and it is not known with which value '{first}' wins"
        values = SIGNS if any(code.startswith("-") for code in unclear) else unclear
        if len(values) > len(SIGNS):
            fix = (
                f"write a or b into the column, for '{first}' and '{second}', and remove the rows without a preference"
            )
            raise UserError(ExitCode.DATA, Problem(what, str(row.origin)), fix=fix)
        if len(values) == 1:
            values = [*unclear, OTHERS.get(unclear[0], "VALUE")]
        fix = (
            f"--data.first_wins VALUE, the value with which '{first}' is better than '{second}': "
            f"{' or '.join(values[:2])}"
        )
        raise UserError(ExitCode.DATA, Problem(what, str(row.origin)), fix=fix)


def find_verdicts(values: Mapping[str, Any]) -> list[str]:
    """The columns that by name and value may have the verdict."""
    names = match_names(values, VERDICTS)
    names += [name for name in values if is_pointer(name) and name not in names]
    return [name for name in names if not isinstance(values[name], (list, dict)) and name != "rejected"]


def find_prompt(values: Mapping[str, Any], answers: Twins) -> str:
    """The column with the question of two answers; "" for none or several."""
    return find_other_question(values, answers[:2])


def is_pointer(name: str) -> bool:
    """Whether a name says that its column points to the better answer: `safer_response_id`, `winning_model`."""
    words = split_name(name)
    return len(words) > 1 and words[-1] in POINTERS and bool(JUDGES & {*words})


def _are_short(*texts: Any) -> bool:
    return all(not isinstance(text, (list, dict)) and len(str(text).split()) < LONGEST for text in texts)
