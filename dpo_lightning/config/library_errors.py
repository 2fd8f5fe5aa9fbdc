"""Exceptions of libraries for a user's mistake or a full machine, translated into errors that name the remedy."""

from __future__ import annotations

import re

from lightning.fabric.utilities.exceptions import MisconfigurationException

from dpo_lightning.errors import WRITE_ERRORS, ExitCode, Problem, UserError, lacks_memory, no_memory_error
from dpo_lightning.ranks import translate_rank_error

PROGRAM = "python -m dpo_lightning"

REASON = re.compile(r"Errors:\n\s*- (?:Problem with given class_path '([\w.]+)':\s*)?(.*)")
"""In jsonargparse's message about an object that cannot be created: its class and the reason of the first alternative.
"""


PACKAGE = re.compile(r"Requirement '([^']+)' not met")
"""How Lightning reports that a logger or callback needs a package which is not installed."""

TWICE = re.compile(r"more than one stateful callback of type `(\w+)`")

WRITE_MESSAGE = re.compile(
    r"PytorchStreamWriter failed.*|unexpected pos \d+ vs \d+|[^:]*\(os error (?:5|13|27|28|30|122)\)"
)
"""How torch and safetensors report that a file could not be written."""


def user_error(error: BaseException | None) -> UserError | None:
    """Return the `UserError` that a library wrapped into another exception, if any."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def translate_error(error: Exception) -> UserError | None:
    """Translate an exception of a library into a `UserError`, or return None if it is unknown."""
    text = str(error)
    if known := user_error(error):
        return known
    if isinstance(error, ValueError) and (reason := REASON.search(text)):
        return creation_error(*reason.groups(""))
    if text.startswith("Early stopping conditioned on metric"):
        return UserError(ExitCode.CONFIG, text.splitlines()[0], fix="set --trainer.callbacks.monitor to one of these")
    if twice := TWICE.search(text):
        problem = Problem("two callbacks of one class and state cannot be saved", "trainer.callbacks", twice[1])
        return UserError(ExitCode.CONFIG, problem, fix=f"list {twice[1]} once")
    if isinstance(error, MisconfigurationException):
        if re.search("should be an int|not a valid input", text):
            problem = Problem(text.splitlines()[0], "trainer.devices")
            return UserError(ExitCode.CONFIG, problem, fix="--trainer.devices auto, or a number of devices")
        if "invalid accelerator name" not in text and re.search(r"\bgpus?\b|cuda|mps|devices?\b", text, re.IGNORECASE):
            fix = f"{PROGRAM} doctor lists the devices of this machine"
            return UserError(ExitCode.DEVICE, text.splitlines()[0], fix)
        return UserError(ExitCode.CONFIG, text.splitlines()[0], fix=f"{PROGRAM} fit --help lists the options")
    if (failed := translate_failure(error)) is not None:
        return failed
    if "Error(s) in loading state_dict" in text or "doesn't match the size of" in text:
        return UserError(
            ExitCode.CONFIG,
            Problem("the checkpoint belongs to another model", "ckpt_path", text.splitlines()[-1].strip()),
            fix="use the run's own config.yaml",
        )
    return None


def creation_error(place: str, what: str) -> UserError:
    """Make the error for an object of a config that cannot be made: its class, and what was said."""
    if missing := PACKAGE.match(what):
        problem = Problem(f"the package {missing[1]} is not installed", place)
        return UserError(ExitCode.CONFIG, problem, fix=f"pip install '{missing[1]}'")
    return UserError(ExitCode.CONFIG, Problem(what, place), fix="change the options of this class, or leave it out")


def translate_failure(error: Exception) -> UserError | None:
    """Translate an exception for lack of memory, a process that ended, or a disk that cannot be written."""
    text = str(error)
    if lacks_memory(error):
        return no_memory_error()
    if (lost := translate_rank_error(error)) is not None:
        return lost
    if text.startswith("DataLoader worker"):
        return UserError(
            ExitCode.IO,
            Problem("a process that prepares batches has ended", "data.num_workers", text),
            fix="--data.num_workers 0 prepares batches without workers; the system kills processes if memory is short",
        )
    reason = write_failure(error)
    if reason is not None:
        return UserError(
            ExitCode.IO,
            f"writing failed: {reason}",
            fix="free some space, make the folder writable, or choose --output_dir on another disk",
        )
    return None


def write_failure(error: Exception) -> str | None:
    """Return why a file could not be written, or None if this is not what an error is about."""
    denied = isinstance(error, PermissionError) and error.filename
    if isinstance(error, OSError) and (error.errno in WRITE_ERRORS or denied):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    found = WRITE_MESSAGE.search(str(error))
    return " ".join(found[0].split()) if found else None
