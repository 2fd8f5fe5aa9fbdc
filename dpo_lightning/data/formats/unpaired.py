"""Unpaired rows: one answer to a prompt with a label, good or bad; or pairs, whose answers are taken one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dpo_lightning.data.examples import Encoded, EncodedAnswer, Example, Text
from dpo_lightning.data.formats.duplicates import check_labels
from dpo_lightning.data.formats.fields import VERDICTS
from dpo_lightning.data.formats.pairs import PairFormat
from dpo_lightning.data.formats.row_format import RowFormat
from dpo_lightning.data.formats.sft import SFTFormat
from dpo_lightning.data.formats.turn_marks import check_scored
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row, kind_of
from dpo_lightning.errors import ExitCode, Problem, UserError

NEITHER = "0 where other rows have -1: it may judge neither way"


@dataclass(frozen=True, slots=True)
class EncodedUnpaired(Encoded):
    """The completion; where a loss needs it, the answer to another prompt as well."""

    noun: ClassVar[str] = "answers"
    good: bool = field(kw_only=True)

    @property
    def completion(self) -> EncodedAnswer:
        """The answer that the label is of."""
        return self.answers[0]

    @property
    def mismatched(self) -> EncodedAnswer | None:
        """The answer to another prompt, if there is one."""
        return self.answers[1] if len(self.answers) > 1 else None

    @property
    def columns(self) -> Mapping[str, float | bool]:
        """`good`: the label."""
        return {"good": self.good}


@dataclass(frozen=True, slots=True)
class UnpairedExample(Example):
    """One answer, found good or bad."""

    good: bool = field(kw_only=True)

    @property
    def completion(self) -> Text:
        """The only answer."""
        return self.answers[0]

    def encode(self, prompt_ids: Sequence[int], answers: tuple[EncodedAnswer, ...]) -> EncodedUnpaired:
        """The row as token ids."""
        return EncodedUnpaired(self.origin, prompt_ids, answers, self.weight, good=self.good)


class UnpairedFormat(SFTFormat):
    """`prompt, completion, label` (strings or messages); or pairs, which `SplitPairFormat` reads."""

    example = UnpairedExample
    columns = ("prompt", "completion", "label", "chosen", "rejected")
    optional = ()

    @classmethod
    def choose(cls, present: Collection[str]) -> type[RowFormat]:
        """Read pairs where the rows have both answers and no label."""
        return SplitPairFormat if "label" not in present and {"chosen", "rejected"} <= set(present) else cls

    def choose_columns(self, rows: Sequence[Row], present: Collection[str]) -> list[str]:
        """All three columns; labels of 0 judge nothing where others are -1."""
        self.needed, self.answers = self.columns[:3], ("completion",)
        self.has_three_labels = any(_label_word(row.values.get("label")) == "-1" for row in rows)
        return [name for name in self.needed if name not in present]

    def parse(self, name: str, value: Any) -> Any:
        """A prompt, an answer, or a label."""
        if name != "label":
            return super().parse(name, value)
        word = _label_word(value)
        if value is None or word not in VERDICTS:
            found = value if isinstance(value, (str, int, float)) else kind_of(value)
            what = f"{self.shown('label')} is no verdict"
            raise RowError(what, found, "write true or false (or 1 and 0, good and bad)")
        if word == "0" and self.has_three_labels:
            raise RowError(f"the label is {NEITHER}", fix="remove rows without a verdict")
        return VERDICTS[word]

    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Prompt and completion, which is scored as a whole."""
        prompt, (completion,) = super().fit(row, values)
        check_scored(completion, len(completion), self.shown("completion"))
        return prompt, (completion,)

    def said(self, row: Row, values: Mapping[str, Any]) -> dict[str, Any]:
        """The label."""
        return {"good": values["label"]}

    @classmethod
    def check(cls, examples: Sequence[UnpairedExample], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        """Note repeats; an answer that is labelled both ways is bad unless allowed, and so are answers of one label."""
        check_labels(examples, allow, bad, notes)
        if not bad and len({example.good for example in examples}) == 1:
            what = f"all {len(examples):,} answers are {'good' if examples[0].good else 'bad'}"
            raise UserError(ExitCode.DATA, Problem(what, str(examples[0].origin)), fix="give good and bad answers")


class SplitPairFormat(PairFormat):
    """Pairs as two unpaired rows each: the chosen answer is good, the rejected one bad."""

    optional = ()

    def read(self, row: Row) -> Iterator[UnpairedExample]:
        """Both answers, chosen first; nothing of a row whose faults are now in `bad`."""
        for pair in super().read(row):
            for answer, good in zip(pair.answers, (True, False), strict=True):
                texts = pair.prompt, (answer,), pair.tools, pair.group, pair.weight
                yield UnpairedExample(pair.origin, *texts, good=good)

    @classmethod
    def check(cls, examples: Sequence[Any], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        """As for rows with a label."""
        UnpairedFormat.check(examples, allow, bad, notes)


def _label_word(value: Any) -> str:
    """A label in the spelling of `VERDICTS`."""
    word = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip().lower()
    return word.removeprefix("+").removesuffix(".0")
