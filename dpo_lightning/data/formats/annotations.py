"""Exports of annotation tools: Label Studio's tasks and Argilla's records, with the verdicts of annotators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from dpo_lightning.data.formats.base import Format, LeftOut, read_list, read_object
from dpo_lightning.data.formats.comparisons import find_prompt
from dpo_lightning.data.formats.names import VERDICTS, match_names
from dpo_lightning.data.formats.twin_columns import find_answers, order_answers
from dpo_lightning.data.formats.verdicts import VerdictReader, normalize_verdict
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import excerpt_name

NOT_JUDGED = "rows without a verdict"
DISAGREE = "rows whose annotators disagree"
VERDICT = "verdict"
SIDES = ("left", "right")


class AnnotatedPairs(Format):
    """Base of the exports: an object has the question and two answers, and lists have one verdict of each annotator."""

    kind = "pairs"
    has_verdict = True

    def configure(self, columns: Mapping[str, str] | None, first_wins: str | int | None) -> None:
        """Collect the verdicts of all rows."""
        super().configure(columns, first_wins)
        self.given = set()
        for row in self.rows:
            try:
                self.given |= {normalize_verdict(value) for value in self.find_verdicts(row.values)}
            except (RowError, KeyError):
                continue  # reported when the row is converted

    @abstractmethod
    def find_verdicts(self, values: Mapping[str, Any]) -> Iterator[Any]:
        """The verdicts of all annotators of a row.

        Raises:
            RowError: the row has another shape.
        """

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Order the answers by the verdict on which all annotators agree."""
        column = self.columns[0]
        fields = read_object(values[column], column)
        found, prompt = find_answers(fields), ""
        if len(found) == 1:
            prompt = find_prompt(fields, found[0])
        if not prompt:
            what = f"'{column}' has no question with two answers, such as prompt, response_1, response_2"
            raise RowError(what, ", ".join(map(excerpt_name, fields)), "rename the keys, or remove the row")
        verdicts = [*self.find_verdicts(values)]
        if not verdicts:
            raise LeftOut(NOT_JUDGED)
        reader = VerdictReader(VERDICT, found[0], self.given, self.first_wins)
        places = {_read(reader, fields, verdict) for verdict in verdicts}
        if len(places) > 1:
            raise LeftOut(DISAGREE)
        read = (prompt, *found[0][:2])
        rest = {name: value for name, value in fields.items() if name not in read}
        return {**rest, "prompt": fields[prompt], **order_answers(fields, found[0][:2], places.pop())}


class LabelStudio(AnnotatedPairs):
    """`data` (an object) and `annotations`, whose `result` has `value.selected`, `left` or `right`."""

    name, title = "label-studio", "Label Studio comparisons"
    columns = ("data", "annotations")

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether there are data and a list of annotations."""
        return super().claims(values) and isinstance(values["data"], dict) and isinstance(values["annotations"], list)

    def find_verdicts(self, values: Mapping[str, Any]) -> Iterator[Any]:
        """The side that each annotator selected; cancelled annotations have none."""
        data = read_object(values["data"], "data")
        for number, item in enumerate(read_list(values["annotations"], "annotations"), 1):
            place = f"annotations {number}"
            annotation = read_object(item, place, ("result",))
            for result in [] if annotation.get("was_cancelled") else read_list(annotation["result"], f"{place}.result"):
                read = read_object(result, f"{place}.result", ("value",))
                value = read_object(read["value"], f"{place}.result.value")
                if "selected" in value:
                    yield _find_selected(value["selected"], read.get("to_name"), data)


class Argilla(AnnotatedPairs):
    """`fields` (an object) and `responses`: a list with `values`, or an object of lists by question."""

    name, title = "argilla", "Argilla records"
    columns = ("fields", "responses")

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether there are fields and responses."""
        if not super().claims(values):
            return False
        return isinstance(values["fields"], dict) and isinstance(values["responses"], (list, dict))

    def find_verdicts(self, values: Mapping[str, Any]) -> Iterator[Any]:
        """The submitted answers to the only question, or to the only one whose name is that of a verdict."""
        by_question: dict[str, list[Any]] = {}
        given = values["responses"]
        if not isinstance(given, (list, dict)):
            what = "'responses' is neither a list nor an object"
            raise RowError(what, given, "write the answers of annotators, or remove the row")
        if isinstance(given, dict):
            by_question = {name: read_list(value, f"responses.{name}") for name, value in given.items()}
        for number, item in enumerate(given if isinstance(given, list) else (), 1):
            response = read_object(item, f"responses {number}", ("values",))
            for name, answer in read_object(response["values"] or {}, f"responses {number}.values").items():
                read = read_object(answer, f"responses {number}.values.{name}")
                by_question.setdefault(name, []).append({"status": response.get("status"), **read})
        names = match_names(by_question, VERDICTS) or [*by_question]
        if len(names) > 1:
            raise RowError("'responses' has several questions", ", ".join(names), "keep the one with the verdict")
        for item in by_question[names[0]] if names else ():
            answer = read_object(item, f"responses.{names[0]}", ("value",))
            if answer.get("status") in (None, "submitted"):
                yield answer["value"]


def _read(reader: VerdictReader, fields: Mapping[str, Any], verdict: Any) -> int:
    return reader.read({**fields, VERDICT: verdict})[0]


def _find_selected(side: Any, shown: Any, data: Mapping[str, Any]) -> Any:
    """The key of the selected answer, if the names of both that were shown are keys; otherwise the side."""
    names = shown.split(",") if isinstance(shown, str) else shown
    if side not in SIDES or not isinstance(names, list) or len(names) != len(SIDES):
        return side
    known = all(isinstance(name, str) and name in data for name in names)
    return names[SIDES.index(side)] if known else side
