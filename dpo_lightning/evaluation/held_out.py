"""Rows to evaluate on: pairs or prompts as texts, and as token ids by the tokenizer of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

from dpo_lightning.data.encoding.counts import format_unlisted_ends
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder, Overlong
from dpo_lightning.data.examples import Encoded, Example, Origin, Text
from dpo_lightning.data.formats.recognition import AUTO, TAKEN, find_claims
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.prompts import PromptKind
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.load import ReadOptions, RowSet, known_columns, read_set
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.left_out import LeftOutRow, format_left_out
from dpo_lightning.data.readers.sources import Row, read_files
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

Kind = Literal["auto", "pairs", "prompts"]

ONLY_PROMPT = frozenset({"prompt", "system", "input", "tools", "group", "language", "id", "source", "weight"})
"""Columns of rows that are prompts alone."""

ANSWERS = ("chosen", "rejected")

SAMPLED = 20
"""Rows by which the kind of a file is recognized."""


@dataclass(frozen=True)
class HeldOut:
    """Rows to evaluate on.

    Attributes:
        examples: the rows as texts, with no answers or with the chosen and the rejected one.
        languages: the column `language` of each row; empty where it has none.
        prompts: the token ids of each prompt, up to where the model's answer begins.
        pairs: each pair as token ids; empty for prompts alone.
        left_out: the bad rows, where these are left out.
    """

    examples: Sequence[Example]
    languages: Sequence[str]
    prompts: Sequence[Sequence[int]]
    pairs: Sequence[Encoded]
    left_out: Sequence[LeftOutRow] = ()


class ReadHeldOut(NamedTuple):
    """Rows as texts, the column `language` of each, and the bad rows."""

    examples: list[Example]
    languages: list[str]
    bad: BadRows


def read_held_out(files: Sequence[str], kind: Kind, options: ReadOptions) -> ReadHeldOut:
    """Read rows as texts.

    Raises:
        UserError: as in `load_examples`.
    """
    columns = set() if kind == "pairs" else read_columns(files, options)
    alone = kind == "prompts" or ("prompt" in columns and columns <= ONLY_PROMPT)
    if alone:
        options = replace(options, text_column="prompt")
    bad = BadRows(drops=options.bad_rows == "drop")
    notes = Notes(bad, strict=False)
    read = read_set(files, known_columns(PairKind, PromptKind), bad, options)
    row_kind: type[RowKind] = PairKind
    if alone and ("prompt" in columns or not are_pairs(read.rows, options)):
        row_kind = PromptKind
    try:
        found = RowSet(read, row_kind, bad, notes, options)
    except UserError as error:
        if kind != "auto" or "prompt" not in columns or not columns.isdisjoint(ANSWERS):
            raise
        fix = f"{error.fix}; or, if the rows are prompts alone, --kind prompts"
        raise UserError(error.code, error.problems, fix) from None
    examples: list[Example] = list(found.check(list(found.read_examples()), ["contradictions"]))
    if alone:
        examples = [replace(row, answers=()) for row in examples]
    bad.leave_out()
    for line in found.format_lines():
        logger.info(f"note: {line}")
    named: dict[Origin, Any] = {row.origin: row.values.get("language") for row in read.rows}
    languages = [value if isinstance(value := named.get(row.origin), str) else "" for row in examples]
    return ReadHeldOut(examples, languages, bad)


def read_columns(files: Sequence[str], options: ReadOptions) -> set[str]:
    """Return our names of the columns of the first rows; a row that is a text has the column `prompt`."""
    rows = islice(read_files(files, BadRows(most=None), text_column="prompt"), SAMPLED)
    ours = {theirs: name for name, theirs in (options.columns or {}).items()}
    return {ours.get(name, name) for row in rows for name in row.values} - set(options.ignore_columns)


def are_pairs(rows: Sequence[Row], options: ReadOptions) -> bool:
    """Whether rows have a format of pairs, by the options or as it is recognized."""
    return options.format != AUTO or any(known.kind in TAKEN["pairs"] for known in find_claims(rows))


def encode_held_out(read: ReadHeldOut, renderer: Renderer, max_length: int, overlong: Overlong) -> HeldOut:
    """Encode rows; pairs that `overlong="drop"` drops are left out.

    Raises:
        UserError: 65 for rows that cannot be encoded or are too long, 67 if the chat template cannot be used.
    """
    examples, bad = read.examples, read.bad
    pairs: list[Encoded] = []
    if examples[0].answers:
        encoder = Encoder(renderer, max_length, overlong, bad=bad)
        pairs = encoder.encode(examples)
        for line in [*encoder.counts.format_lines(), *format_unlisted_ends(encoder.counts.ends, renderer)]:
            logger.info(f"note: {line}")
    elif ended := [row.origin for row in examples if ends_with_answer(row.prompt)]:
        logger.info(
            f"note: prompts that end with an answer, after which the model speaks: {len(ended)} (first: {ended[0]})"
        )
    kept = {row.origin for row in pairs}
    prompts = {
        row.origin: ids
        for row in examples
        if (not row.answers or row.origin in kept) and (ids := _encode_prompt(row, renderer, bad)) is not None
    }
    left_out = bad.leave_out()
    for line in format_left_out(left_out, bad.total):
        logger.info(f"note: {line}")
    both = [pair for pair in zip(examples, read.languages, strict=True) if pair[0].origin in prompts]
    rows, languages = [row for row, _ in both], [language for _, language in both]
    return HeldOut(rows, languages, [prompts[row.origin] for row in rows], pairs, left_out)


def _encode_prompt(row: Example, renderer: Renderer, bad: BadRows) -> list[int] | None:
    """Encode a prompt; None for a bad row that is left out."""
    try:
        return renderer.encode_prompt(row.prompt, row.tools, row.origin)
    except UserError as error:
        if error.code != ExitCode.DATA or not bad.drops:
            raise
        for problem in error.problems:
            bad.add(row.origin, RowError(problem.what, problem.text, problem.fix or error.fix))
        return None


def ends_with_answer(prompt: Text) -> bool:
    """Whether the last message of a prompt is the assistant's."""
    return not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"


def check_prompts(rows: HeldOut, positions: float) -> None:
    """Check that each prompt leaves the model a position to answer.

    Raises:
        UserError: 65 with all that do not.
    """
    problems = [
        Problem(f"the prompt has {len(prompt)} tokens, the model {positions:.0f} positions", str(example.origin))
        for example, prompt in zip(rows.examples, rows.prompts, strict=True)
        if len(prompt) >= positions
    ]
    if problems:
        raise UserError(ExitCode.DATA, problems, fix="shorten or remove them, or --no_generate to score pairs alone")


def make_readable(text: Text) -> str | list[dict[str, Any]]:
    """Return a prompt as JSON holds it: a string, or a list of messages."""
    return text if isinstance(text, str) else [dict(message) for message in text]


def read_answer(text: Text) -> str:
    """Return an answer as one text: the contents of its messages, without those of other roles."""
    if isinstance(text, str):
        return text
    return "\n\n".join(content for message in text if (content := get_content(message)))


def get_content(message: Mapping[str, Any]) -> str:
    """Return the text of a message of the assistant; empty for other roles and for a call of a tool."""
    content = message.get("content")
    return content if message.get("role") == "assistant" and isinstance(content, str) else ""
