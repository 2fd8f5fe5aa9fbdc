"""Raw rows into examples, or every reason why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_lightning.data.examples import PreferenceExample, RankedExample, SFTExample, UnpairedExample
from dpo_lightning.data.formats import preference as preference_rows
from dpo_lightning.data.formats import ranked as ranked_rows
from dpo_lightning.data.formats import sft as sft_rows
from dpo_lightning.data.formats import unpaired as unpaired_rows
from dpo_lightning.data.formats.columns import (
    check_same_columns,
    look_alike,
    missing_columns,
    names_in,
    rename,
    unused,
)
from dpo_lightning.data.formats.context_columns import READ, ContextColumns, note_unread
from dpo_lightning.data.formats.duplicates import (
    check_allowances,
    check_demonstrations,
    check_judged,
    check_pairs,
    check_rankings,
    shown,
)
from dpo_lightning.data.formats.preference import PairReader
from dpo_lightning.data.formats.ranked import RankingReader
from dpo_lightning.data.formats.sft import LAYOUTS, DemonstrationReader, layout_of
from dpo_lightning.data.formats.unpaired import VERDICTS, JudgedReader, SplitReader
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.invisible_characters import kinds_in
from dpo_lightning.data.readers.sources import Row, read_files
from dpo_lightning.errors import ExitCode, Problem, UserError

LEAST_ROWS = 2


def preference_examples(
    paths: str | Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    lent: bool = False,
    allow: Collection[str] = (),
) -> tuple[list[PreferenceExample], list[str]]:
    """Read preference pairs, and the warnings about them (each with a count and the first lines).

    Rows are `prompt, chosen, rejected` as strings or as messages; without a `prompt` column it is what both
    answers begin with. `tools` and `group` are read where they are.

    Args:
        paths: a file or hub set, or several of one format.
        columns: our column name -> the file's.
        strict: treat warnings about rows as errors.
        lent: `columns` may be those of other rows: a file without them is read by our names.
        allow: `contradictions` lets pairs pass that are there both ways round.

    Raises:
        UserError: 64 for options, 65 naming every bad row, 66 for a source that is not there.
    """
    check_allowances(allow)
    bad = BadRows()
    notes = Notes(bad, strict=strict)
    rows = _rows(paths, columns, preference_rows.USED, preference_rows.FORMAT, bad, lent)
    names = names_in(rows)
    _refuse_unpaired(rows, names)
    missing = [name for name in ("chosen", "rejected") if name not in names]
    if "prompt" not in names and (missing or _prompt_elsewhere(rows, names)):
        missing.insert(0, "prompt")
    if missing:
        raise missing_columns(missing, rows, columns)
    context = ContextColumns.of(rows, columns)
    reader = PairReader(bad, notes, "prompt" not in names, columns or {}, context)
    examples = [example for row in rows if (example := reader.read(row))]
    _check_kinds(examples, bad)
    check_pairs(examples, allow, bad, notes)
    return examples, _warnings(rows, reader.used, context, bad, notes)


def sft_examples(
    paths: str | Sequence[str], *, columns: Mapping[str, str] | None = None, strict: bool = False, lent: bool = False
) -> tuple[list[SFTExample], list[str]]:
    """Read demonstrations, and the warnings about them (each with a count and the first lines).

    Rows are `prompt, completion` (strings or messages), `messages`, or `instruction, input, output`.

    Args:
        paths: a file or hub set, or several of one format.
        columns: our column name -> the file's.
        strict: treat warnings about rows as errors.
        lent: `columns` may be those of other rows: a file without them is read by our names.

    Raises:
        UserError: 64 for options, 65 naming every bad row, 66 for a source that is not there.
    """
    bad = BadRows()
    notes = Notes(bad, strict=strict)
    rows = _rows(paths, columns, sft_rows.USED, sft_rows.FORMAT, bad, lent)
    names = names_in(rows)
    _refuse_unpaired(rows, names, VERDICTS)
    layout = layout_of(names)
    if not layout:
        raise missing_columns(_unfinished(names), rows, columns)
    context = ContextColumns.of(rows, columns)
    reader = DemonstrationReader(bad, notes, layout, columns or {}, context)
    examples = [example for row in rows if (example := reader.read(row))]
    _check_kinds(examples, bad)
    check_demonstrations(examples, notes)
    return examples, _warnings(rows, reader.used, context, bad, notes)


def ranked_examples(
    paths: str | Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    lent: bool = False,
    allow: Collection[str] = (),
) -> tuple[list[RankedExample], list[str]]:
    """Read ranked lists, as `preference_examples` reads pairs.

    Rows are `prompt, responses`, a list of answers with the best first; where there are `scores`, by these instead.
    """
    check_allowances(allow)
    bad = BadRows()
    notes = Notes(bad, strict=strict)
    rows = _rows(paths, columns, ranked_rows.USED, ranked_rows.FORMAT, bad, lent)
    names = names_in(rows)
    missing = [name for name in ranked_rows.FORMAT if name not in names]
    if missing:
        raise missing_columns(missing, rows, columns)
    context = ContextColumns.of(rows, columns)
    reader = RankingReader(bad, notes, columns or {}, context)
    examples = [example for row in rows if (example := reader.read(row))]
    _check_kinds(examples, bad)
    check_rankings(examples, allow, bad, notes)
    return examples, _warnings(rows, ranked_rows.USED, context, bad, notes)


def unpaired_examples(
    paths: str | Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    lent: bool = False,
    allow: Collection[str] = (),
) -> tuple[list[UnpairedExample], list[str]]:
    """Read answers that were judged one by one, and the warnings about them (each with a count and the first lines).

    Rows are `prompt, completion, label` (strings or messages), or pairs, whose answers are then judged by themselves.

    Args:
        paths: a file or hub set, or several of one format.
        columns: our column name -> the file's.
        strict: treat warnings about rows as errors.
        lent: `columns` may be those of other rows: a file without them is read by our names.
        allow: `contradictions` lets answers pass that are judged both ways.

    Raises:
        UserError: 64 for options, 65 naming every bad row, 66 for a source that is not there.
    """
    check_allowances(allow)
    bad = BadRows()
    notes = Notes(bad, strict=strict)
    rows = _rows(paths, columns, unpaired_rows.USED, (*unpaired_rows.FORMAT, "chosen", "rejected"), bad, lent)
    names = names_in(rows)
    paired = "label" not in names and "chosen" in names and "rejected" in names
    missing = [name for name in unpaired_rows.FORMAT if name not in names]
    context = ContextColumns.of(rows, columns)
    read: tuple[str, ...] = (*unpaired_rows.FORMAT, *READ, "tools", "group", "weight")
    if paired:
        split = SplitReader(PairReader(bad, notes, "prompt" not in names, columns or {}, context))
        examples, read = [example for row in rows for example in split.read(row)], split.pairs.used
    elif missing:
        raise missing_columns(missing, rows, columns)
    else:
        reader = JudgedReader(bad, notes, columns or {}, context)
        examples = [example for row in rows if (example := reader.read(row))]
        reader.check_scale()
    _check_kinds(examples, bad)
    check_judged(examples, allow, bad, notes)
    warnings = _warnings(rows, read, context, bad, notes)
    if len({example.good for example in examples}) == 1:
        what = f"all {len(examples):,} answers are {'good' if examples[0].good else 'bad'}"
        raise UserError(ExitCode.DATA, Problem(what, str(examples[0].origin)), fix="give good and bad answers")
    return examples, warnings


def _warnings(
    rows: Sequence[Row], used: Collection[str], context: ContextColumns, bad: BadRows, notes: Notes
) -> list[str]:
    """What is to be said of rows; their bad ones are raised first."""
    for row in rows:
        kinds = set().union(*(kinds_in(value) for name, value in row.values.items() if name in used))
        for kind in sorted(kinds):
            notes.add(row.origin, f"rows with {kind}", fix="remove the characters from the texts")
    unread = note_unread(rows, used, notes)
    bad.raise_if_any()
    return [*notes.lines(), *context.lines(), *unused(rows, (*used, *unread))]


def _rows(
    paths: str | Sequence[str],
    columns: Mapping[str, str] | None,
    used: Sequence[str],
    formats: Sequence[str],
    bad: BadRows,
    lent: bool,
) -> list[Row]:
    """All rows under our names; what holds for the set as a whole is checked here."""
    found = list(read_files(paths, bad))
    if len(found) < LEAST_ROWS:
        bad.raise_if_any()
        raise UserError(ExitCode.DATA, Problem("only 1 row", where=str(found[0].origin)), fix="give at least 2 rows")
    rows = rename(found, columns, used, lent=lent)
    check_same_columns(rows, formats)
    return rows


def _refuse_unpaired(rows: Sequence[Row], names: Collection[str], verdicts: Collection[str] = ()) -> None:
    """Answers judged one by one must neither be read as pairs nor be imitated, good and bad alike.

    Without `verdicts` any label is one.
    """
    if "label" not in names or "completion" not in names or "chosen" in names:
        return
    for row in rows:
        label = row.values.get("label")
        if not verdicts or str(label).strip().lower() in verdicts:
            raise UserError(
                ExitCode.DATA,
                Problem("this is unpaired data (completion and label)", str(row.origin), f"label: {label}"),
                fix="--config configs/kto.yaml (--data UnpairedDataModule); or give pairs (prompt, chosen, rejected); "
                "for SFT keep the good rows without the label",
            )


def _prompt_elsewhere(rows: Sequence[Row], names: Collection[str]) -> bool:
    """Whether rows without a `prompt` have it under another name; whole conversations bring their own."""
    read = [name for name in preference_rows.USED if name != "input"]
    others = [name for name in names if name not in read]
    return bool(look_alike("prompt", others, preference_rows.FORMAT)) and not all(map(_is_conversation, rows))


def _is_conversation(row: Row) -> bool:
    chosen = row.values.get("chosen")
    first = chosen[0] if isinstance(chosen, list) and chosen else None
    return isinstance(first, dict) and first.get("role") != "assistant"


def _unfinished(names: Collection[str]) -> list[str]:
    """What is missing from the layout that the rows come nearest to."""
    for layout in LAYOUTS:
        missing = [name for name in layout if name not in names]
        if len(missing) < len(layout):
            return missing
    return ["messages"] if look_alike("messages", list(names)) else list(LAYOUTS[0])


def _check_kinds(examples: Sequence[Any], bad: BadRows) -> None:
    """Text and messages do not mix: a model reads the one raw or as one turn, the other by its template."""
    if not examples:
        return
    first = examples[0]
    for example in examples:
        if isinstance(example.prompt, str) != isinstance(first.prompt, str):
            kinds = ("text", "messages") if isinstance(example.prompt, str) else ("messages", "text")
            what = f"the row is {kinds[0]}, where {first.origin} has {kinds[1]}"
            bad.add(
                example.origin,
                RowError(what, shown(example.prompt), "write all rows as text or all as messages"),
            )
