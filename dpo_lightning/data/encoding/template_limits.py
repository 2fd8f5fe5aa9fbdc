"""Runs chat templates within limits of time, memory and length."""

from __future__ import annotations

import json
import time
from typing import Any
from weakref import WeakKeyDictionary

from dpo_lightning.data.encoding.chat_templates import locate_template
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.limits import ROOM, TEMPLATE_SECONDS, LimitError, limit_resources

MAX_ADDED = 1 << 20
"""Characters that a template may add to a conversation; instructions for tools have some thousands."""

MAX_REPEATS = 4
"""How many times a template may write the conversation's own text."""

FREE_SECONDS = 0.05
"""Processor time in s that every rendering may take, however many there are.

What a rendering takes beyond it is added up: all renderings of a tokenizer together may exceed it by
`TEMPLATE_SECONDS`.
"""

EXCESS: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
"""Seconds beyond `FREE_SECONDS` that the renderings of each tokenizer took so far."""


def render_template(tokenizer: Any, messages: Any, **options: Any) -> str:
    """Render a conversation by `apply_chat_template`; compiling the template is limited as well.

    A template is code from a downloaded folder: its loops may not end, and its output may fill the memory.

    Args:
        tokenizer: the tokenizer with the template.
        messages: the conversation.
        options: passed to `apply_chat_template`.

    Raises:
        UserError: 67 if the template takes too much time or memory, or writes far more than the conversation has.
        TemplateError, TypeError, ValueError: the template rejects the conversation, or fails.
    """
    from jinja2 import TemplateError

    excess = EXCESS.get(tokenizer, 0.0)
    try:
        with limit_resources(max(TEMPLATE_SECONDS - excess, FREE_SECONDS), ROOM):
            began = time.process_time()
            text = tokenizer.apply_chat_template(messages, **options)
            EXCESS[tokenizer] = max(excess + time.process_time() - began - FREE_SECONDS, 0.0)
    except LimitError:
        raise _limit_error(tokenizer, f"takes more than {TEMPLATE_SECONDS:g} s of processor time") from None
    except MemoryError:
        raise _limit_error(tokenizer, f"takes more than {ROOM >> 30} GiB of memory") from None
    except (TemplateError, TypeError, ValueError):
        raise
    except Exception as error:  # a template may raise anything
        raise TemplateError(f"{type(error).__name__}: {error}") from None
    if not isinstance(text, str):
        raise TypeError(f"its output is {type(text).__name__}, not text")
    # The first comparison avoids writing the conversation as JSON for nearly all rows.
    if len(text) > MAX_ADDED and len(text) > MAX_ADDED + MAX_REPEATS * count_characters(
        [messages, options.get("tools")]
    ):
        raise _limit_error(tokenizer, f"writes {len(text):,} characters, far more than the conversation has")
    return text


def renders_chat(tokenizer: Any) -> bool:
    """Whether the chat template renders the simplest conversation: if not, no row is at fault."""
    exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        render_template(tokenizer, exchange, tokenize=False)
    except Exception:  # a template may raise anything
        return False
    return True


def count_characters(content: Any) -> int:
    """Count the characters of messages and tools written as JSON."""
    return len(json.dumps(content, default=str, ensure_ascii=False))


def _limit_error(tokenizer: Any, what: str) -> UserError:
    """Return the error for a template that exceeds a limit."""
    return UserError(
        ExitCode.MODEL,
        Problem(f"the chat template {what}", locate_template(tokenizer)),
        fix="give another template by --data.chat_template FILE, or use none by --data.template raw",
    )
