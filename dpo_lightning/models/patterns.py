"""Regular expressions of an adapter or a tokenizer: refused if matching exceeds a time limit."""

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
from dpo_lightning.limits import LimitError, limit_resources

MATCHING_SECONDS = 2.0
"""Processor time for matching all expressions of an adapter with all module names; usually milliseconds."""

PROBE_SECONDS = 5.0
"""Wall-clock time in seconds for all expressions of a tokenizer on the probes; usually milliseconds."""

MOST_GROWTH = 10_000
"""How many times longer a tokenizer's replacements may make a text."""

PROBE = 40
"""Length of a probe, one repeated string: expressions with many ways to match it take exponential time."""

KINDS = (*"aA1 .\n\t_-한é", "ab", "a ", "a1", "a.", " \n", "가 ")
"""The strings that are repeated."""


def check_module_patterns(options: Mapping[str, Any], names: Sequence[str], code: ExitCode, where: str) -> None:
    """Check that the expressions by which an adapter selects modules terminate, matched as peft does.

    Args:
        options: of a `LoraConfig`, or of its file.
        names: of the model's modules.
        code: the exit code of the error.
        where: the file or the key of the options.

    Raises:
        UserError: an expression takes too long.
    """
    key = ""
    try:
        with limit_resources(MATCHING_SECONDS):
            for key, pattern in module_patterns(options):  # noqa: B007 - the key is reported below
                compiled = re.compile(pattern)
                for name in names:
                    compiled.match(name)
    except (LimitError, MemoryError, RecursionError, OverflowError):
        raise UserError(
            code,
            Problem(f"the regular expression in {key} takes too long", where, str(options.get(key))),
            fix=f"simplify it, or list the names of the modules in {key}",
        ) from None
    except re.error:
        return  # peft reports it


def module_patterns(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over keys and the regular expressions that peft makes of their values."""
    for key, form in (
        ("target_modules", "({})\\Z"),
        ("exclude_modules", "({})\\Z"),
        ("modules_to_save", r"(^|.*\.){}($|\..*)"),
        ("layers_pattern", r"(?:^|.*?\.){}\.(?P<idx>\d+)\."),
        ("rank_pattern", r"(.*\.)?({})$"),
        ("alpha_pattern", r"(.*\.)?({})$"),
    ):
        value = options.get(key)
        several = value if isinstance(value, (list, tuple, set, dict)) else []
        given = [value] if isinstance(value, str) else several
        names = isinstance(value, (list, tuple, set)) and key in ("target_modules", "exclude_modules")
        for pattern in given:
            yield key, form.format(re.escape(str(pattern)) if names else str(pattern))


def check_tokenizer_file(path: Path) -> None:
    """Check that a tokenizer's expressions terminate, and that its replacements do not make texts much longer.

    Raises:
        UserError: an expression or the replacements are refused.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # the loader reports it
    parts = content if isinstance(content, dict) else {}
    patterns, growth = [], 1
    waiting: list[Any] = [parts.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
            if isinstance(value.get("Regex"), str):
                patterns.append(value["Regex"])
            if value.get("type") == "Replace":
                # Replacements run one after the other, so that growth multiplies.
                growth *= max(len(str(value.get("content"))), 1)
        elif isinstance(value, list):
            waiting += value
    if growth > MOST_GROWTH:
        raise unusable_tokenizer_error(path, "makes texts too long by its replacements", "")
    for pattern in dict.fromkeys(patterns):
        if not terminates(pattern):
            raise unusable_tokenizer_error(path, "has a regular expression that takes too long", pattern)


def terminates(pattern: str) -> bool:
    """Whether a tokenizer splits the probes by an expression within the limit; invalid expressions pass."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception:  # no regular expression
        return True
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = split
    own = sorted(set(pattern) & {*string.ascii_letters, *string.digits, *string.punctuation})
    ends = ("\0", "!", "\n" + "".join(own))  # the expression's own characters, without which it may not start to match
    probes = [(kind * PROBE)[:PROBE] + end for kind in dict.fromkeys((*KINDS, *own)) for end in ends]
    return finishes_in_time(lambda: [tokenizer.encode_batch([probe]) for probe in probes])


def finishes_in_time(call: Callable[[], Any]) -> bool:
    """Whether a call returns within `PROBE_SECONDS` and without a panic; it has to release the GIL."""
    done: list[bool] = []

    def run() -> None:
        try:
            call()
        except BaseException:  # a panic of Rust does not derive from Exception
            done.append(False)
        else:
            done.append(True)

    with hide_panics():
        thread = threading.Thread(target=run, daemon=True)  # a thread cannot be stopped from outside
        thread.start()
        thread.join(PROBE_SECONDS)
    return bool(done) and done[0]


@contextmanager
def hide_panics() -> Iterator[None]:
    """Hide what Rust prints about a panic within the block; other output to stderr is delayed until its end."""
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


def unusable_tokenizer_error(path: Path, what: str, pattern: str) -> UserError:
    """Make the error for a refused tokenizer file."""
    return UserError(ExitCode.MODEL, Problem(f"the tokenizer {what}", str(path), pattern), fix="use another tokenizer")
