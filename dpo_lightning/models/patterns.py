"""Regular expressions of an adapter or a tokenizer: refused where matching exceeds a time limit."""

from __future__ import annotations

import json
import os
import re
import string
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.limits import LimitError, limited

SECONDS = 2.0
"""Processor time that all expressions of an adapter may take on all names of modules; it is some milliseconds."""

WAIT = 5.0
"""Seconds by the clock that all expressions of a tokenizer may take on the probes; it is some milliseconds as well."""

MOST_GROWTH = 10_000
"""How many times longer the replacements of a tokenizer may make a text."""

PROBE = 40
"""Characters of a probe, of one kind: an expression that can read them in many ways takes exponential time."""

KINDS = (*"aA1 .\n\t_-한é", "ab", "a ", "a1", "a.", " \n", "가 ")


def check_module_patterns(options: Mapping[str, Any], names: Sequence[str], code: ExitCode, where: str) -> None:
    """See that the expressions by which an adapter finds its modules come to an end, matched as peft matches them.

    Args:
        options: those of a `LoraConfig`, or what its file holds.
        names: of the model's modules.
        code: the exit code of the error.
        where: the file or the key of the options.

    Raises:
        UserError: one takes too long.
    """
    key = ""
    try:
        with limited(SECONDS):
            for tried, pattern in module_patterns(options):
                key, compiled = tried, re.compile(pattern)
                for name in names:
                    compiled.match(name)
    except (LimitError, MemoryError, RecursionError, OverflowError):
        raise UserError(
            code,
            Problem(f"the regular expression in {key} does not come to an end", where, str(options.get(key))),
            fix=f"write a simpler one, or the names of the modules, into {key}",
        ) from None
    except (re.error, TypeError):
        return  # peft says what is wrong


def module_patterns(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key with an expression that peft makes of it."""
    for key, form in (
        ("target_modules", "({})\\Z"),
        ("exclude_modules", "({})\\Z"),
        ("modules_to_save", r"(^|.*\.){}($|\..*)"),
        ("layers_pattern", r"(?:^|.*?\.){}\.(?P<idx>\d+)\."),
        ("rank_pattern", r"(.*\.)?({})$"),
        ("alpha_pattern", r"(.*\.)?({})$"),
    ):
        value = options.get(key)
        given = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple, set, dict)) else []
        names = isinstance(value, (list, tuple, set)) and key in ("target_modules", "exclude_modules")
        for pattern in given:
            yield key, form.format(re.escape(str(pattern)) if names else str(pattern))


def check_tokenizer_file(path: Path) -> None:
    """See that a tokenizer's expressions come to an end, and that its replacements make no text much longer.

    Raises:
        UserError: by the name of the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # the loader says what is wrong
    parts = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")} if content else {}
    patterns, growth = [], 1
    waiting: list[Any] = list(parts.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
            if isinstance(value.get("Regex"), str):
                patterns.append(value["Regex"])
            if value.get("type") == "Replace":
                growth *= max(len(str(value.get("content"))), 1)
        elif isinstance(value, list):
            waiting += value
    if growth > MOST_GROWTH:
        raise unusable(path, "replaces a character by so many that texts grow without bound", "")
    for pattern in dict.fromkeys(patterns):
        if not comes_to_an_end(pattern):
            raise unusable(path, "holds a regular expression that does not come to an end", pattern)


def comes_to_an_end(pattern: str) -> bool:
    """Whether a tokenizer splits probes by an expression in a short time; a faulty one is left to the loader."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception:  # no regular expression
        return True
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = split
    own = sorted(set(pattern) & {*string.ascii_letters, *string.digits, *string.punctuation})
    ends = ("\0", "!", "\n" + "".join(own))  # with the characters without which it is not even begun
    probes = [(kind * PROBE)[:PROBE] + end for kind in dict.fromkeys((*KINDS, *own)) for end in ends]
    return in_time(lambda: [tokenizer.encode_batch([probe]) for probe in probes])


def in_time(call: Callable[[], Any]) -> bool:
    """Whether a call returns within `WAIT` seconds and without a panic; it has to release the GIL."""
    done: list[bool] = []

    def tried() -> None:
        try:
            call()
        except BaseException:  # a panic of Rust is no Exception
            done.append(False)
        else:
            done.append(True)

    with without_panics():
        thread = threading.Thread(target=tried, daemon=True)  # it cannot be ended from outside
        thread.start()
        thread.join(WAIT)
    return bool(done) and done[0]


@contextmanager
def without_panics() -> Iterator[None]:
    """Keep what Rust writes about a panic from the terminal; what else is written meanwhile comes after it."""
    if sys.platform != "linux":
        yield
        return
    sys.stderr.flush()
    kept, caught = os.dup(2), os.memfd_create("stderr")
    os.dup2(caught, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        text = os.pread(caught, 1 << 20, 0)
        if b"panicked" not in text:
            os.write(2, text)
        os.close(kept)
        os.close(caught)


def unusable(path: Path, what: str, pattern: str) -> UserError:
    """The error for a tokenizer's file."""
    return UserError(ExitCode.MODEL, Problem(f"the tokenizer {what}", str(path), pattern), fix="use another tokenizer")
