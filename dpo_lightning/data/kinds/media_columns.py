"""Columns and placeholders of pictures, video or sound, which no model here reads although answers are about them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from dpo_lightning.data.examples import Example, Origin
from dpo_lightning.data.formats.media import (
    INSTEAD,
    MEDIA,
    PLACES,
    find_held_media,
    find_media,
    find_placeholder,
    has_content,
    may_have_media,
    names_files,
    names_only_media,
)
from dpo_lightning.data.formats.words import split_name
from dpo_lightning.data.kinds.columns import ALIASES
from dpo_lightning.data.kinds.unread_columns import META, SILENT
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.invisible_characters import iterate_texts
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name

TEXTS = frozenset(("user", *(word for name, words in ALIASES.items() for word in (name, *words))))
"""Words of columns whose texts may be names of files because that is what is answered; not with a word of media."""

AROUND = frozenset(("source", "origin", "avatar", "icon", "logo", "cover", "thumbnail", "thumb", "author"))
"""Words of columns with pictures of where a text is from, on which no answer depends."""


def check_media(rows: Sequence[Row], unread: Sequence[str], bad: BadRows) -> set[str]:
    """Report rows that need pictures, video or sound: each column once, at the first such row.

    These are rows with anything in a column that is named so; with names of files or inline data in one whose name has
    such a word; and with these in any other column that has nothing else. Where bad rows are left out, each row is
    reported.

    Args:
        rows: the rows with our columns.
        unread: the columns that are not read.
        bad: collects the errors.

    Returns:
        The columns with media.
    """
    possible = [name for name in unread if find_media(name) or not _is_about_text(name)]
    names = [name for name in possible if find_media(name) or may_have_media(name)]
    names += _find_columns(rows, [name for name in possible if name not in names])
    if not names:
        return set()
    first: dict[str, Row] = {}
    counts = dict.fromkeys(names, 0)
    for row in rows:
        needed = [name for name in names if _needs(name, row)]
        for name in needed:
            first.setdefault(name, row)
            counts[name] += 1
        if needed and bad.drops:
            bad.add(row.origin, _describe(needed[0], row, 1))
    for name, row in first.items():
        if not bad.drops:
            bad.add(row.origin, _describe(name, row, counts[name]))
    return set(first)


def check_placeholders(examples: Iterable[Example], bad: BadRows) -> None:
    """Report rows whose questions have a placeholder of pictures, video or sound, which would be trained as text.

    Where bad rows are left out, each such row is reported, otherwise the first one with their number.

    Args:
        examples: the rows.
        bad: collects the errors.
    """
    left_out = bad.origins
    found: dict[Origin, tuple[str, str]] = {}
    for example in examples:
        if example.origin not in left_out:
            for text in _list_questions(example):
                if any(needle in text for needle in PLACES) and (media := find_placeholder(text)):
                    found.setdefault(example.origin, (media, text))
    for origin, (media, text) in list(found.items())[: None if bad.drops else 1]:
        count = f" ({len(found):,} rows)" if len(found) > 1 and not bad.drops else ""
        fix = (
            "leave such rows out (--data.bad_rows drop), or remove the placeholders where the texts mean something "
            f"without {media}"
        )
        bad.add(origin, RowError(f"these rows need {media}, {INSTEAD}: a placeholder in the prompt{count}", text, fix))


def _list_questions(example: Example) -> Iterator[str]:
    """The texts that the model is given: a prompt that is a string, and the messages of all but the assistant."""
    for text in (example.prompt, *example.answers):
        if not isinstance(text, str):
            yield from (message.get("content") or "" for message in text if message["role"] != "assistant")
    if isinstance(example.prompt, str):
        yield example.prompt


def _needs(name: str, row: Row) -> bool:
    value = row.values.get(name)
    if name in row.faults:  # the bytes of a picture in a table are a fault of their column
        return names_only_media(name)
    if find_media(name):
        return has_content(value)
    return bool(find_held_media(value, spaced=names_files(name)))


def _is_about_text(name: str) -> bool:
    words = {*split_name(name)}
    other = AROUND if words & MEDIA.keys() else AROUND | TEXTS  # `question_image` is the picture of a question
    return name in SILENT or name.startswith(META) or bool(words & other)


def _find_columns(rows: Iterable[Row], names: Sequence[str]) -> list[str]:
    """The columns that have names of files or inline data in all rows in which they have anything."""
    found = dict.fromkeys(names, False)
    for row in rows:
        for name in list(found):
            value = row.values.get(name)
            if not has_content(value):
                continue
            if not find_held_media(value, spaced=False):
                del found[name]
            else:
                found[name] = True
        if not found:
            break
    return [name for name in names if found.get(name)]


def _describe(name: str, row: Row, rows: int) -> RowError:
    value = row.values.get(name)
    shown, media = excerpt_name(name), find_media(name) or find_held_media(value, spaced=True) or "pictures or sound"
    count = f" ({rows:,} rows)" if rows > 1 else ""
    fix = (
        f"leave such rows out (--data.bad_rows drop); or, if their texts mean something without {media}, "
        f"--data.ignore_columns {shlex.quote(shown)}, and remove what stands for it in the texts, such as <image>"
    )
    text = next(iterate_texts(value), "")
    return RowError(f"these rows need {media}, {INSTEAD}: the column '{shown}'{count}", text, fix)
