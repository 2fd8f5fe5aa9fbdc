"""Result files of `evaluate`: an item for each held-out row, and a summary beside them with the digest of the items."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.formats.turns import join_parts
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.json_decoding import DECODER, describe_error
from dpo_lightning.data.readers.json_rows import parse_json_rows
from dpo_lightning.data.readers.left_out import BAD_ROWS, LeftOutRow, write_left_out
from dpo_lightning.data.readers.sources import kind_of
from dpo_lightning.data.readers.text_cleaning import excerpt_value
from dpo_lightning.data.readers.text_files import open_content, open_text, read_text
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

FORMAT = 1
"""The version of the summary that is written, and the only one that is read."""

AGAIN = "run evaluate again, or copy the file and its .summary.json again"


class Result(NamedTuple):
    """Items and summary of an evaluation.

    Attributes:
        items: a row each, as `evaluate` describes them; of another program's file, those keys that it has.
        summary: None for a file without one, which another program wrote.
        path: the file of the items.
    """

    items: list[dict[str, Any]]
    summary: dict[str, Any] | None
    path: Path


def summary_path(path: Path) -> Path:
    """Return the name of the summary beside a file of items: `eval.summary.json` for `eval.json`."""
    return path.with_suffix(".summary.json")


def left_out_path(path: Path) -> Path:
    """Return the name of the list of bad rows beside a file of items: `eval.bad_rows.jsonl` for `eval.json`."""
    return path.with_suffix(f".{BAD_ROWS}")


def list_left_out(path: Path, rows: Sequence[LeftOutRow]) -> None:
    """List the bad rows that were left out of an evaluation beside its file of items.

    Raises:
        OSError: the list cannot be written.
    """
    beside = left_out_path(path)
    if rows:
        write_left_out(beside, {"eval": rows})
        logger.info(f"bad rows: listed in {beside}")
    else:
        beside.unlink(missing_ok=True)  # of an earlier evaluation


def write_result(path: Path, items: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Result:
    """Write items, then their summary; each file is complete or absent.

    Args:
        path: the file of the items: JSON lines if its name ends in `.jsonl`, otherwise a JSON list.
        items: any number of them; floats that are not finite are written as null, as JSON has no such numbers.
        summary: all of it except for `format` and `items`, which are added.

    Returns:
        What `read_result` reads.

    Raises:
        OSError: a file cannot be written.
    """
    kept: list[dict[str, Any]] = replace_nonfinite(items)
    lines = [json.dumps(item, ensure_ascii=False, allow_nan=False) for item in kept]
    text = "".join(f"{line}\n" for line in lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]\n"
    data = text.encode("utf-8", "replace")
    head = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), "count": len(kept)}
    whole: dict[str, Any] = {"format": FORMAT, "items": head} | replace_nonfinite(summary)
    # A summary that belongs to the items before would be reported as damage, not as an interrupted start.
    summary_path(path).unlink(missing_ok=True)
    with open_atomic(path, "wb") as file:
        file.write(data)
    with open_atomic(summary_path(path)) as file:
        file.write(json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    return Result(kept, whole, path)


def replace_nonfinite(value: Any) -> Any:
    """Return a copy of JSON data with None in place of NaN and infinities."""
    if isinstance(value, Mapping):
        return {name: replace_nonfinite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(path: str | Path, *, answered: bool = False) -> Result:
    """Read a result file and the summary beside it, if there is one.

    Args:
        path: a JSON list, or JSON lines.
        answered: whether each item has to have an answer, `generated`.

    Raises:
        UserError: 65 with the line of each bad item, or for items that are not those that the summary belongs to, or
            for a summary of another format; 66 if the file does not exist.
    """
    path = Path(path)
    bad = BadRows()
    items = []
    for origin, value in read_items(path, bad):
        try:
            items.append(check_item(value, answered=answered))
        except RowError as error:
            bad.add(origin, error)
    bad.raise_if_any()
    if not items:
        raise damage(path, "the file has no items")
    return Result(items, read_summary(path, len(items)), path)


def read_items(path: Path, bad: BadRows) -> Iterator[tuple[Origin, Any]]:
    """Iterate over the items as they are in the file, with the line of each; those that are not JSON go to `bad`."""
    with open_content(str(path)) as content:
        for line, value in parse_json_rows(open_text(content), content.source, bad):
            yield Origin(content.source.name, line), value


def check_item(value: Any, *, answered: bool) -> dict[str, Any]:
    """Return an item that can be used; content parts of its prompt's messages are joined, as in rows.

    Raises:
        RowError: it is no object, its prompt or its answer is missing or is neither a text nor messages, a message has
            something else than text, or the item cannot be written again.
    """
    if not isinstance(value, dict):
        raise RowError("the item is not an object", value, 'an item is {"prompt": ..., "generated": ..., ...}')
    prompt = value.get("prompt")
    messages = isinstance(prompt, list) and prompt and all(is_message(each) for each in prompt)
    if not (isinstance(prompt, str) or messages):
        missing = "the item has no" if prompt is None else "neither a text nor a list of messages:"
        raise RowError(
            f"{missing} `prompt`", "" if prompt is None else prompt, "is this a file of `evaluate --output`?"
        )
    answer = value.get("generated")
    if answer is None and answered:
        raise RowError("the item has no answer, `generated`", fix="run evaluate without --no_generate")
    if answer is not None and not isinstance(answer, str):
        raise RowError("`generated` is not a text", answer, "write the answer as a string")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        what = "the item is nested too deep, or has half of a UTF-16 surrogate pair"
        raise RowError(what, fix="correct the texts where the file is written") from None
    if isinstance(prompt, list):
        return value | {"prompt": [join_content(*each) for each in enumerate(prompt, 1)]}
    return value


def is_message(value: Any) -> bool:
    """Whether a value is a chat message: an object with a role."""
    return isinstance(value, dict) and isinstance(value.get("role"), str)


def join_content(number: int, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message of a prompt with its content as one text.

    Raises:
        RowError: its content is something else than text.
    """
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": join_parts(content, f"message {number} of `prompt`")}
    if content is not None and not isinstance(content, str):
        what = f"message {number} of `prompt` has {kind_of(content)} as content, not text"
        raise RowError(what, excerpt_value(content), "write the content as text")
    return message


def read_summary(path: Path, count: int) -> dict[str, Any] | None:
    """Read the summary beside a file of items; None if there is none.

    Args:
        path: the file of the items.
        count: how many items it has.

    Raises:
        UserError: 65, it is damaged, of another format, or not the summary of this file.
    """
    place = summary_path(path)
    if not place.exists():
        return None
    text = read_text(str(place))
    try:
        summary = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        found = describe_error(error, text, "the summary", cut=True)
        raise damage(place, found.what) from None
    if not isinstance(summary, dict) or not isinstance(summary.get("items"), dict):
        raise damage(place, "not a summary of evaluate")
    if summary.get("format") != FORMAT:
        found_format = str(summary.get("format"))[:20]
        raise UserError(
            ExitCode.DATA,
            Problem(f"the summary has format {found_format}, this version reads format {FORMAT}", str(place)),
            fix="use the version of dpo_lightning that wrote it, or run evaluate again",
        )
    if any(not isinstance(summary.get(name), dict) for name in ("made_by", "measures")):
        raise damage(place, "the summary has no `made_by` or no `measures`")
    if hashlib.sha256(path.read_bytes()).hexdigest() != summary["items"].get("sha256"):
        written = str(summary["items"].get("count"))[:20]
        raise damage(path, f"the file has changed: {written} items were written, by {place.name}, and it has {count}")
    return summary


def damage(path: Path, what: str) -> UserError:
    """Make the error for a file that is not as it was written."""
    return UserError(ExitCode.DATA, Problem(what, str(path)), fix=AGAIN)
