"""The table of formats, and the recognition of the format of a set of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_lightning.data.formats import own
from dpo_lightning.data.formats.annotations import Argilla, LabelStudio
from dpo_lightning.data.formats.arena import Arena, ArenaTexts
from dpo_lightning.data.formats.base import Format, KindName
from dpo_lightning.data.formats.comparisons import Comparisons
from dpo_lightning.data.formats.conversations import (
    ConversationAnswers,
    ConversationLabels,
    ConversationPairs,
    ShareGPT,
)
from dpo_lightning.data.formats.named_columns import NamedPairs, NamedSFT, NamedUnpaired
from dpo_lightning.data.formats.names import LABELS, match_names
from dpo_lightning.data.formats.openai import OpenAIPreference
from dpo_lightning.data.formats.preference_sets import (
    SHP,
    HelpSteer2Preference,
    HelpSteer3,
    StackExchange,
    SummaryComparisons,
)
from dpo_lightning.data.formats.rated_rows import HelpSteerRatings, KoChatGPT
from dpo_lightning.data.formats.scored_lists import ScoredLists
from dpo_lightning.data.formats.scored_objects import ScoredObjects, UltraFeedback
from dpo_lightning.data.formats.scored_pairs import ScoredPairs, WebGPT
from dpo_lightning.data.formats.transcripts import TranscriptPairs, TranscriptPrompts, TranscriptText
from dpo_lightning.data.formats.twin_columns import find_answers
from dpo_lightning.data.formats.vendors import (
    AlpacaPairs,
    Bedrock,
    BedrockPreference,
    Dolly,
    NeMo,
    VertexPreference,
    VertexSFT,
)
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name, excerpt_value
from dpo_lightning.errors import ExitCode, Problem, UserError

OWN: dict[KindName, type[Format]] = {"pairs": own.Pairs, "ranked": own.Ranked, "unpaired": own.Unpaired, "sft": own.SFT}
"""Kind of rows -> this package's own format."""

FORMATS: tuple[type[Format], ...] = (
    *OWN.values(),
    OpenAIPreference,
    ConversationPairs,
    ConversationAnswers,
    ConversationLabels,
    ShareGPT,
    TranscriptPairs,
    TranscriptPrompts,
    TranscriptText,
    Arena,
    ArenaTexts,
    HelpSteer2Preference,
    HelpSteer3,
    SHP,
    StackExchange,
    SummaryComparisons,
    WebGPT,
    Comparisons,
    ScoredPairs,
    KoChatGPT,
    HelpSteerRatings,
    ScoredLists,
    ScoredObjects,
    UltraFeedback,
    VertexSFT,
    VertexPreference,
    Bedrock,
    BedrockPreference,
    NeMo,
    AlpacaPairs,
    Dolly,
    LabelStudio,
    Argilla,
    NamedPairs,
    NamedUnpaired,
    NamedSFT,
)
"""All formats. No two of them claim the same row for the same kind."""

MAPPABLE = tuple(dict.fromkeys(name for known in FORMATS for name in known.mappable))
"""Columns of formats, besides those of kinds, that `--data.columns` may map."""

AUTO = "auto"
SAMPLE = 32
"""Rows by which a format is recognized, taken at equal distances."""

TAKEN: dict[KindName, tuple[KindName, ...]] = {
    "pairs": ("pairs", "ranked"),
    "ranked": ("ranked", "pairs"),
    "unpaired": ("unpaired", "pairs"),
    "sft": ("sft",),
}
"""Kind that a module trains on -> kinds of rows that it takes."""

COLUMNS: dict[KindName, str] = {
    "pairs": "prompt, chosen, rejected",
    "ranked": "prompt, responses",
    "unpaired": "prompt, completion, label",
    "sft": "prompt, completion",
}
"""Kind of rows -> the columns that error messages name."""

RECIPES: dict[KindName, str] = {
    "pairs": "configs/dpo.yaml",
    "ranked": "configs/dpo-listwise.yaml",
    "unpaired": "configs/kto.yaml",
    "sft": "configs/sft.yaml",
}


def find_format(name: str) -> type[Format] | None:
    """The format of a name; None for `auto`.

    Raises:
        UserError: 64, no format has the name.
    """
    if name == AUTO:
        return None
    for known in FORMATS:
        if known.name == name:
            return known
    names = ", ".join([AUTO, *(known.name for known in FORMATS)])
    raise UserError(
        ExitCode.CONFIG, Problem(f"'{name}' is not a format", where="data.format"), fix=f"use one of {names}"
    )


def find_claims(rows: Sequence[Row]) -> list[type[Format]]:
    """The formats that claim at least half of the rows."""
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    return [known for known in FORMATS if 2 * sum(known.claims(row.values) for row in sample) >= len(sample)]


def recognize_kind(rows: Sequence[Row], wanted: KindName | None, option: str) -> KindName:
    """The kind of rows of any format; of several, the one that becomes the `wanted` kind.

    Args:
        rows: the rows.
        wanted: the kind that they are to become.
        option: the option of the command that names a kind, for errors.

    Raises:
        UserError: 65, no format claims the rows, or several of different kinds do.
    """
    claimed = [known.kind for known in find_claims(rows)]
    if wanted is not None:
        claimed = [kind for kind in claimed if kind in TAKEN[wanted]] or [wanted]
    kinds = list(dict.fromkeys(claimed))
    if set(kinds) == {"unpaired", "sft"}:  # a label beside the columns of SFT rows
        return "unpaired"
    if len(kinds) == 1:
        return kinds[0]
    names = ", ".join(excerpt_name(name) for name in rows[0].values)
    what = "the rows may be read as " + " or ".join(kinds) if kinds else f"no format has these columns: {names}"
    fix = " or ".join(f"{option} {kind}" for kind in kinds or TAKEN)
    raise UserError(ExitCode.DATA, Problem(what, where=str(rows[0].origin)), fix=fix)


def recognize(rows: Sequence[Row], kind: KindName) -> type[Format]:
    """Find the format of a set of rows that are to be read as one kind; our own if none claims them.

    Args:
        rows: the rows of a set.
        kind: the kind that the module trains on.

    Raises:
        UserError: 65, several formats claim the rows, or only formats of other kinds do.
    """
    claimed = find_claims(rows)
    usable = [known for known in claimed if known.kind in TAKEN[kind]]
    # A format of the module's own kind is preferred to one whose rows have to be converted.
    usable = [known for known in usable if known.kind == kind] or usable
    where = str(rows[0].origin)
    if len(usable) > 1:
        names = " or ".join(f"'{known.name}' ({known.title})" for known in usable)
        fix = " or ".join(f"--data.format {known.name}" for known in usable)
        raise UserError(ExitCode.DATA, Problem(f"the rows may be read as {names}", where=where), fix=fix)
    if not usable and claimed:
        what = f"the rows are {claimed[0].title}, and this module takes {OWN[kind].title} ({COLUMNS[kind]})"
        raise UserError(ExitCode.DATA, Problem(what, where=where), fix=_propose_kind(claimed[0], kind, rows[0].values))
    if usable:
        return usable[0]
    answers = find_answers(rows[0].values) if kind != "sft" else []
    if answers:
        first, second = map(excerpt_name, answers[0][:2])
        what = f"the rows have two answers, '{first}' and '{second}', and no known column says which is better"
        raise UserError(ExitCode.DATA, Problem(what, where=where), fix="--data.columns.verdict NAME")
    return OWN[kind]


def _propose_kind(found: type[Format], kind: KindName, values: Mapping[str, Any]) -> str:
    """What to do with rows of another kind than the module trains on; `values` are those of one row."""
    if found.kind == "sft" and kind == "unpaired":
        label = next(iter(match_names(values, LABELS)), "")
        if label:
            value = excerpt_value(values[label])
            return f"write true or false into '{excerpt_name(label)}', which has {value}"
        return "--data.columns.label NAME for the column that judges the answers, or rewrite the rows"
    if found is own.Pairs and kind == "sft":
        return f"--config {RECIPES['pairs']}, or --data.columns.completion chosen to learn the chosen answers"
    return f"--config {RECIPES[found.kind]}, or rewrite the rows"
