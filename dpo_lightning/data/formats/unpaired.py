"""One row into a judged answer, or every reason why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from dpo_lightning.data.examples import Origin, UnpairedExample
from dpo_lightning.data.formats.context_columns import READ, ContextColumns
from dpo_lightning.data.formats.preference import PairReader
from dpo_lightning.data.formats.sft import DemonstrationReader
from dpo_lightning.data.formats.turn_marks import check_scored
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row, kind_of

TEXTS = ("prompt", "completion")
FORMAT = (*TEXTS, "label")
USED = (*FORMAT, "chosen", "rejected", *READ, "tools", "group", "weight")

VERDICTS = {
    "true": True,
    "false": False,
    "0": False,
    "1": True,
    "-1": False,
    "good": True,
    "bad": False,
    "yes": True,
    "no": False,
}
"""What a `label` says that judges one answer by itself, and whether it is good; other labels are names of kinds."""

NEITHER = "0 where other rows have -1: it may judge neither way"


@dataclass(frozen=True)
class JudgedReader:
    """Turns rows into judged answers.

    Attributes:
        bad: where reasons against a row go.
        notes: where oddities go.
        columns: our column name -> the file's, for messages.
        context: what comes before the prompts.
    """

    bad: BadRows
    notes: Notes
    columns: Mapping[str, str]
    context: ContextColumns
    numbers: dict[str, list[Origin]] = field(default_factory=dict)
    """Rows with the label 0, and those with -1."""

    def read(self, row: Row) -> UnpairedExample | None:
        """The judged answer, or None for a row whose faults are now in `bad`."""
        told = DemonstrationReader(self.bad, self.notes, TEXTS, self.columns, self.context).read(row)
        try:
            good = self._label(row)
            if told is not None:
                check_scored(told.completion, len(told.completion), f"'{self.columns.get('completion', 'completion')}'")
        except RowError as error:
            self.bad.add(row.origin, error)
            return None
        if told is None:
            return None
        return UnpairedExample(row.origin, told.prompt, told.completion, good, told.tools, told.group, told.weight)

    def _label(self, row: Row) -> bool:
        shown = f"'{self.columns.get('label', 'label')}'"
        if "label" not in row.values:
            raise RowError(f"no column {shown}", "columns: " + ", ".join(row.values), "add it to the row")
        value = row.values["label"]
        word = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip().lower()
        word = word.removeprefix("+").removesuffix(".0")
        if value is None or word not in VERDICTS:
            told = value if isinstance(value, (str, int, float)) else kind_of(value)
            raise RowError(f"{shown} is no verdict", told, "write true or false (or 1 and 0, good and bad)")
        if word in ("0", "-1"):
            self.numbers.setdefault(word, []).append(row.origin)
        return VERDICTS[word]

    def check_scale(self) -> None:
        """Refuse rows with a label of 0 where others have -1."""
        for origin in self.numbers.get("0", ()) if "-1" in self.numbers else ():
            self.bad.add(origin, RowError(f"the label is {NEITHER}", fix="remove rows without a verdict"))


@dataclass(frozen=True)
class SplitReader:
    """Turns pairs into two judged answers each.

    Attributes:
        pairs: what reads the pairs.
    """

    pairs: PairReader

    def read(self, row: Row) -> Iterator[UnpairedExample]:
        """The chosen answer as a good one, the rejected one as a bad one; nothing for a bad row."""
        pair = self.pairs.read(row)
        if pair is not None:
            chosen = UnpairedExample(pair.origin, pair.prompt, pair.chosen, True, pair.tools, pair.group, pair.weight)
            yield from (chosen, replace(chosen, completion=pair.rejected, good=False))
