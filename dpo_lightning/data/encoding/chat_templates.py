"""Makes chat templates repeatable: the date is fixed for a run, and templates with random choices are refused."""

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
"""Files of a model folder that may contain its template; the first that exists is read."""

CLOCK = "strftime_now"
"""The function that templates call to write the date; transformers provides it."""

VARIABLE, VARIABLE_FORMAT = "date_string", "%d %b %Y"
"""The variable with the date in Llama's templates, which have a default for it, and its format."""

CHANCE = {("|", "random"), ("lipsum", "(")}
"""Pairs of tokens of Jinja that make a random choice: the filter `random` and the function `lipsum`."""

Template = str | Mapping[str, str] | None
"""A chat template, several by name, or none, as `tokenizer.chat_template` has them."""


class RunDate:
    """The date in the prompts of a run whose template writes one: it stays the same past midnight and on resuming.

    Attributes:
        day: the date, or None before a template needs one.
        written: the date in ISO format once a prompt contains it, else None.
    """

    def __init__(self, given: str | None) -> None:
        """Use a given date in ISO format; None uses the date on which a template first needs one.

        Raises:
            UserError: 64 if it is not a date.
        """
        self.day, self._given = parse_date(given), given is not None
        self.written: str | None = None

    def choose_day(self, template: Template) -> date | None:
        """Return the date with which to render a template; None if none was given and the template writes none.

        Raises:
            UserError: 67 if the template makes random choices.
        """
        check_repeatable(template)
        if self.day is None and any(CLOCK in source for source in list_sources(template)):
            self.day = date.today()
        return self.day

    def log(self, *, written: bool) -> None:
        """Log once which date the prompts contain, or that the given one is not used.

        Args:
            written: whether the prompts that were rendered so far contain the date.
        """
        if written and not self.written:
            self.written = str(self.day)
            logger.info(f"note: the chat template writes the date {self.day}; --{DATE} changes it")
        elif self._given and not self.written:
            self._given = False  # logged once
            logger.info(f"note: {DATE} is not used: the chat template writes no date")

    def save_option(self, options: dict[str, Any]) -> None:
        """Set `template_date` in the options that are saved with the run, if prompts contain the date."""
        if self.written:
            options["template_date"] = self.written

    def adopt(self, broadcast: Callable[[date], date]) -> bool:
        """Use the date of the first rank; return whether it differs: rows must be encoded again.

        Ranks that start round midnight may have chosen different dates.

        Args:
            broadcast: returns the first rank's value on every rank.
        """
        if self.written is None or self.day is None:
            return False
        own, self.day = self.day, broadcast(self.day)
        return own != self.day


def parse_date(text: str | None, key: str = DATE) -> date | None:
    """Parse a date in ISO 8601, such as `2026-11-28`; None is returned as it is.

    Args:
        text: the date.
        key: the option, for the error.

    Raises:
        UserError: 64 for any other text.
    """
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        problem = Problem("not a date", key, text or "")
        raise UserError(ExitCode.CONFIG, problem, fix="write year, month and day, such as 2026-11-28") from None


def build_date_options(source: str, day: date) -> dict[str, str]:
    """Build options of `apply_chat_template` with which a template writes the given day, at midnight.

    Empty for a template that writes no date.
    """
    if CLOCK in source:
        return {"chat_template": write_clock_macro(day) + source}
    return {VARIABLE: day.strftime(VARIABLE_FORMAT)} if VARIABLE in source else {}


def write_clock_macro(day: date) -> str:
    """Write a Jinja macro that replaces `strftime_now` by the given day.

    A macro, as transformers passes no functions of the caller to a template.
    """
    midnight = datetime(day.year, day.month, day.day)
    # Every directive of one letter, also without padding (`%-d`); the macro looks directives up in this table.
    written = {code: midnight.strftime(f"%{code}") for letter in ascii_letters for code in (letter, f"-{letter}")}
    # The newline at the end is not rendered (`trim_blocks`): the output begins as that of the template alone.
    return (
        f"{{%- macro {CLOCK}(format) -%}}{{%- set written = {json.dumps(written)} -%}}"
        "{%- for piece in format.split('%%') -%}{{- '' if loop.first else '%' -}}"
        "{%- for part in piece.split('%') -%}"
        "{%- if loop.first -%}{{- part -}}"
        "{%- elif part[:2] in written -%}{{- written[part[:2]] + part[2:] -}}"
        "{%- elif part[:1] in written -%}{{- written[part[:1]] + part[1:] -}}"
        "{%- else -%}{{- raise_exception('unknown format of a date: %' + part[:2]) -}}"
        "{%- endif -%}{%- endfor -%}{%- endfor -%}{%- endmacro %}\n"
    )


def check_repeatable(template: Template) -> None:
    """Refuse a template that makes random choices: two renderings of the same row would differ.

    Raises:
        UserError: 67 if it does.
    """
    from jinja2 import Environment, TemplateSyntaxError

    for source in list_sources(template):
        try:
            words = [text for _, kind, text in Environment().lex(source) if kind in ("name", "operator")]
        except TemplateSyntaxError:  # raised again, with its remedy, when a row is rendered
            continue
        for pair in pairwise(words):
            if pair in CHANCE:
                raise UserError(
                    ExitCode.MODEL,
                    f"the chat template makes a random choice (`{''.join(pair)}`): renderings of a row would differ",
                    fix="give a template without it by --data.chat_template FILE",
                )


def list_sources(template: Template) -> list[str]:
    """Return the source text of each template, an empty list for none."""
    if template is None or isinstance(template, str):
        return [template] if template else []
    return list(template.values())


def locate_template(tokenizer: Any) -> str:
    """Return where a tokenizer's template comes from, for errors: its file, or the option that replaced it."""
    own = getattr(tokenizer, "init_kwargs", {}).get("chat_template")
    if own != tokenizer.chat_template:
        return "data.chat_template"
    folder = Path(str(getattr(tokenizer, "name_or_path", "")))
    return str(next((folder / name for name in FILES if (folder / name).is_file()), folder))


def choose_template(tokenizer: Any, template: str, file: str | None, prefix: str = "data.") -> None:
    """Give a tokenizer the chat template of a file, if one is named, and check that there is one where it is needed.

    Args:
        tokenizer: its own template is replaced, for an export as well.
        template: the value of the option `template`; `chat` needs a template.
        file: the value of `chat_template`.
        prefix: of these options, for an error.

    Raises:
        UserError: 66 if the file cannot be read as UTF-8; 67 if there is no template.
    """
    if file:
        tokenizer.chat_template = read_template(file)
    if template == "chat" and not tokenizer.chat_template:
        raise UserError(
            ExitCode.MODEL,
            Problem("the model has no chat template", where=f"{prefix}template"),
            fix=f"--{prefix.strip('-')}chat_template FILE, or --{prefix.strip('-')}template raw",
        )


def read_template(path: str) -> str:
    """Read the source text of a chat template.

    Raises:
        UserError: 66 if the file cannot be read as UTF-8.
    """
    try:
        check_not_special(path)
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem(f"the chat template cannot be read: {reason}", where="data.chat_template", text=path),
            fix="give a text file in UTF-8 by --data.chat_template FILE",
        ) from None
