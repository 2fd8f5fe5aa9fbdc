"""Chat templates that render a row the same each time: the date is fixed for a run, random choices are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from string import ascii_letters
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.special_files import check_not_special

DATE = "data.template_date"
FILES = ("chat_template.jinja", "tokenizer_config.json")
"""Where a model folder keeps its template; the first one that is there is read."""

CLOCK = "strftime_now"
"""The function by which templates write the date; transformers provides it."""

VARIABLE, VARIABLE_FORMAT = "date_string", "%d %b %Y"
"""The variable from which Llama's templates take a date, with one of their own where none is given, and its format."""

CHANCE = {("|", "random"), ("lipsum", "(")}
"""What draws at random in Jinja, a filter and a function, with the sign that makes it one."""

Template = str | Mapping[str, str] | None


class RunDate:
    """The date that a run's prompts hold where their template writes one: the same from its start to its end."""

    def __init__(self, given: str | None) -> None:
        """Take the date that is given; left out, it is that of the day on which a template first needs it."""
        self.day, self._given = parse_date(given), given is not None
        self.written: str | None = None
        """The date, once it stands in a prompt."""

    def settle(self, template: Template) -> date | None:
        """The day for a template's renderings; None for one that writes no date, and is given none.

        Raises:
            UserError: 67, for a template that writes something else each time.
        """
        check_repeatable(template)
        if self.day is None and any(CLOCK in source for source in sources(template)):
            self.day = date.today()
        return self.day

    def tell(self, *, written: bool) -> None:
        """Say once which date stands in the prompts, or that the one that was given does not."""
        if written and not self.written:
            self.written = str(self.day)
            logger.info(f"note: the chat template writes the date: {self.day}; --{DATE} gives another")
        elif self._given and not self.written:
            self._given = False
            logger.info(f"note: {DATE} is not used: the chat template writes no date")

    def keep(self, options: dict[str, Any]) -> None:
        """Write the date that stands in prompts into the options of the data, which repeat the run."""
        if self.written:
            options["template_date"] = self.written

    def adopt(self, broadcast: Callable[[date], date]) -> bool:
        """Take the date of the first rank; whether it is another, as at midnight, and rows are to be encoded anew."""
        if self.written is None or self.day is None:
            return False
        own, self.day = self.day, broadcast(self.day)
        return own != self.day


def parse_date(text: str | None, key: str = DATE) -> date | None:
    """A date as ISO 8601 writes it, `2026-11-28`.

    Raises:
        UserError: 64, for anything else.
    """
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        problem = Problem("this is no date", key, text or "")
        raise UserError(ExitCode.CONFIG, problem, fix="write year, month and day: 2026-11-28") from None


def dated(source: str, day: date) -> dict[str, str]:
    """Options with which `apply_chat_template` writes a given day, at midnight, where a template writes a date."""
    if CLOCK in source:
        return {"chat_template": clock(day) + source}
    return {VARIABLE: day.strftime(VARIABLE_FORMAT)} if VARIABLE in source else {}


def clock(day: date) -> str:
    """A Jinja macro that replaces the clock; transformers hands no functions to a template."""
    midnight = datetime(day.year, day.month, day.day)
    written = {code: midnight.strftime(f"%{code}") for letter in ascii_letters for code in (letter, f"-{letter}")}
    # The newline at the end is not written (`trim_blocks`): the template begins as it would by itself.
    return (
        f"{{%- macro {CLOCK}(format) -%}}{{%- set written = {json.dumps(written)} -%}}"
        "{%- for piece in format.split('%%') -%}{{- '' if loop.first else '%' -}}"
        "{%- for part in piece.split('%') -%}"
        "{%- if loop.first -%}{{- part -}}"
        "{%- elif part[:2] in written -%}{{- written[part[:2]] + part[2:] -}}"
        "{%- elif part[:1] in written -%}{{- written[part[:1]] + part[1:] -}}"
        "{%- else -%}{{- raise_exception('a date is written by %' + part[:2] + ', which is not known') -}}"
        "{%- endif -%}{%- endfor -%}{%- endfor -%}{%- endmacro %}\n"
    )


def check_repeatable(template: Template) -> None:
    """Refuse a template that draws at random: each rendering of a row would be another one.

    Raises:
        UserError: 67.
    """
    from jinja2 import Environment, TemplateSyntaxError

    for source in sources(template):
        try:
            words = [text for _, kind, text in Environment().lex(source) if kind in ("name", "operator")]
        except TemplateSyntaxError:  # reported when a row is rendered
            continue
        for pair in pairwise(words):
            if pair in CHANCE:
                raise UserError(
                    ExitCode.MODEL,
                    f"the chat template draws at random (`{''.join(pair)}`): it renders a row otherwise each time",
                    fix="--data.chat_template with a template that does not",
                )


def sources(template: Template) -> list[str]:
    """The text of a template, or of each of several."""
    if template is None or isinstance(template, str):
        return [template] if template else []
    return list(template.values())


def template_source(tokenizer: Any) -> str:
    """The file of a tokenizer's template, or the key that gave another one."""
    own = getattr(tokenizer, "init_kwargs", {}).get("chat_template")
    if own != tokenizer.chat_template:
        return "data.chat_template"
    folder = Path(str(getattr(tokenizer, "name_or_path", "")))
    return str(next((folder / name for name in FILES if (folder / name).is_file()), folder))


def read_template(path: str) -> str:
    """The text of a chat template file."""
    try:
        check_not_special(path)
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem(f"the chat template cannot be read: {reason}", where="data.chat_template", text=path),
            fix="--data.chat_template with a UTF-8 file",
        ) from None
