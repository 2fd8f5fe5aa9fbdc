"""Chat templates within limits of time, memory and length, and tokenizers that panic: errors that name the file."""

from __future__ import annotations

import json
import time
from typing import Any
from weakref import WeakKeyDictionary

from dpo_lightning.data.encoding.chat_templates import template_source
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.limits import ROOM, TEMPLATE_SECONDS, LimitError, limit_resources

FRAME = 1 << 20
"""Characters that a template may add to a conversation; instructions for tools take some thousands."""

EACH = 0.05
"""Seconds of the processor that any rendering may take; what one takes beyond that counts against all together."""

OVER: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
"""The seconds beyond that, by tokenizer."""

REPEATS = 4
"""How often a template may write the conversation's own text."""


def rendered(tokenizer: Any, messages: Any, **options: Any) -> str:
    """The conversation as `apply_chat_template` renders it; the template is compiled within the limits as well.

    Raises:
        UserError: 67, the template takes too much time or memory, or writes far more than it is given.
        TemplateError, TypeError, ValueError: it refuses the conversation, or fails.
    """
    from jinja2 import TemplateError

    over = OVER.get(tokenizer, 0.0)
    try:
        with limit_resources(max(TEMPLATE_SECONDS - over, EACH), ROOM):
            began = time.process_time()
            text = tokenizer.apply_chat_template(messages, **options)
            OVER[tokenizer] = max(over + time.process_time() - began - EACH, 0.0)
    except LimitError:
        raise unbounded(tokenizer, f"takes more than {TEMPLATE_SECONDS:g} s of processor time") from None
    except MemoryError:
        raise unbounded(tokenizer, f"takes more than {ROOM >> 30} GiB of memory") from None
    except (TemplateError, TypeError, ValueError):
        raise
    except Exception as error:  # a template may raise anything
        raise TemplateError(f"{type(error).__name__}: {error}") from None
    if not isinstance(text, str):
        raise TypeError(f"it renders to {type(text).__name__}")
    if len(text) > FRAME and len(text) > FRAME + REPEATS * written_length([messages, options.get("tools")]):
        raise unbounded(tokenizer, f"writes {len(text):,} characters, far more than the conversation has")
    return text


def token_ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """The ids of a text, without those that the tokenizer adds.

    Raises:
        UserError: 67, the tokenizer panics: an expression of it does not come to an end on the text.
    """
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, and no Exception
            raise
        problem = Problem(f"the tokenizer fails: {error}", str(getattr(tokenizer, "name_or_path", "")), text)
        raise UserError(ExitCode.MODEL, problem, fix="use another tokenizer") from None
    return ids


def written_length(content: Any) -> int:
    """Characters of messages and tools."""
    return len(json.dumps(content, default=str, ensure_ascii=False))


def unbounded(tokenizer: Any, what: str) -> UserError:
    """The error for a template that exceeds a limit."""
    return UserError(
        ExitCode.MODEL,
        Problem(f"the chat template {what}", template_source(tokenizer)),
        fix="give another template by --data.chat_template FILE, or leave it out by --data.template raw",
    )
