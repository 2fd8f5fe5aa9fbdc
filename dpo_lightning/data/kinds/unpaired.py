"""Unpaired rows: a prompt with one answer and a label, good or bad; or pairs, each of which is split into two."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dpo_lightning.data.examples import Encoded, EncodedAnswer, Example, Text
from dpo_lightning.data.formats.names import JUDGEMENTS, normalize_label
from dpo_lightning.data.kinds.duplicates import check_labels
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.kinds.turn_marks import check_no_mark
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row, kind_of
from dpo_lightning.errors import ExitCode, Problem, UserError

NEITHER = "0, but other rows have -1, so that 0 may mean neither good nor bad"


@dataclass(frozen=True, slots=True)
class EncodedUnpaired(Encoded):
    """An unpaired row as token ids: the completion and, where the loss needs it, an answer to another prompt."""

    noun: ClassVar[str] = "answers"
    good: bool = field(kw_only=True)

    @property
    def completion(self) -> EncodedAnswer:
        """The answer that the label judges."""
        return self.answers[0]

    @property
    def mismatched(self) -> EncodedAnswer | None:
        """The answer to another prompt, from which KTO estimates the KL divergence; None where the loss needs none."""
        return self.answers[1] if len(self.answers) > 1 else None

    @property
    def columns(self) -> Mapping[str, float | bool]:
        """`good`: whether the label is good."""
        return {"good": self.good}


@dataclass(frozen=True, slots=True)
class UnpairedExample(Example):
    """An unpaired row as texts; `good` is its label."""

    encoded = EncodedUnpaired

    good: bool = field(kw_only=True)

    @property
    def completion(self) -> Text:
        """The only answer, `answers[0]`, as a string or messages."""
        return self.answers[0]


class UnpairedKind(SFTKind):
    """`prompt, completion, label` (strings or messages); or pairs, which `SplitPairKind` reads."""

    example = UnpairedExample
    reads = "unpaired"
    columns = ("prompt", "completion", "label", "chosen", "rejected")
    optional = ()

    @classmethod
    def choose(cls, present: Collection[str]) -> type[RowKind]:
        """Choose `SplitPairKind` where the rows have both answers and no label."""
        return SplitPairKind if "label" not in present and {"chosen", "rejected"} <= set(present) else cls

    def choose_columns(self, rows: Sequence[Row], present: Collection[str]) -> list[str]:
        """Read prompt, completion and label; find out whether labels of -1 occur, beside which 0 is ambiguous."""
        self.needed, self.answers = self.columns[:3], ("completion",)
        self.has_three_labels = any(normalize_label(row.values.get("label")) == "-1" for row in rows)
        return [name for name in self.needed if name not in present]

    def parse(self, name: str, value: Any) -> Any:
        """Parse a prompt, an answer, or a label as True for good."""
        if name != "label":
            return super().parse(name, value)
        word = normalize_label(value)
        if value is None or word not in JUDGEMENTS:
            found = value if isinstance(value, (str, int, float)) else kind_of(value)
            what = f"{self.quote_name('label')} is neither good nor bad"
            raise RowError(what, found, "write true or false (or 1 and 0, good and bad)")
        if word == "0" and self.has_three_labels:
            raise RowError(f"the label is {NEITHER}", fix="remove the rows that judge neither way")
        return JUDGEMENTS[word]

    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Combine prompt and completion; no turn of the completion may be excluded by a mark."""
        prompt, (completion,) = super().fit(row, values)
        check_no_mark(completion, len(completion), self.quote_name("completion"))
        return prompt, (completion,)

    def parse_annotations(self, row: Row, values: Mapping[str, Any]) -> dict[str, Any]:
        """The label as the field `good`: True or False."""
        return {"good": values["label"]}

    @classmethod
    def check(cls, examples: Sequence[UnpairedExample], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        """Note repeated rows; an answer with both labels is bad unless allowed. A set needs good and bad answers."""
        check_labels(examples, allow, bad, notes)
        if (bad.drops or not bad) and len({example.good for example in examples}) == 1:
            what = f"all {len(examples):,} answers are {'good' if examples[0].good else 'bad'}"
            raise UserError(ExitCode.DATA, Problem(what, str(examples[0].origin)), fix="give good and bad answers")


class SplitPairKind(PairKind):
    """Splits each pair into two unpaired rows: the chosen answer is good, the rejected one bad."""

    optional = ()

    def read(self, row: Row) -> Iterator[UnpairedExample]:
        """Yield both answers of a pair, the chosen one first; for a bad row, nothing."""
        for pair in super().read(row):
            for answer, good in zip(pair.answers, (True, False), strict=True):
                texts = pair.prompt, (answer,), pair.tools, pair.group, pair.weight
                yield UnpairedExample(pair.origin, *texts, good=good)

    @classmethod
    def check(cls, examples: Sequence[Any], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        """Check the split rows as rows with a label are checked."""
        UnpairedKind.check(examples, allow, bad, notes)
