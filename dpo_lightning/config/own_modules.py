"""Errors for what a user's own module raises, which `--allow-class-path` allows: with its file and line."""

from __future__ import annotations

from collections.abc import Sequence
from traceback import walk_tb

from dpo_lightning.config.class_paths import is_within
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.streams import save_traceback

PACKAGE = "dpo_lightning"


def own_module_error(error: BaseException | None, packages: Sequence[str]) -> UserError | None:
    """Make the error for an exception that a module of the allowed packages raised, or that is caused by one.

    Args:
        error: the exception that is handled at present.
        packages: the allowed packages.

    Returns:
        The error; None if the exception comes from elsewhere, also from this package called by such a module.
    """
    while error is not None:
        if place := find_place(error, packages):
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            fix = f"correct this module; the traceback is in {save_traceback()}"
            return UserError(ExitCode.CONFIG, Problem(reason, place), fix=fix)
        error = error.__cause__ or error.__context__
    return None


def find_place(error: BaseException, packages: Sequence[str]) -> str:
    """Return `file:line` of the allowed packages where an exception was raised; empty if it was raised elsewhere."""
    own = [(str(frame.f_globals.get("__name__")), frame, line) for frame, line in walk_tb(error.__traceback__)]
    ours = [each for each in own if is_within(each[0], [*packages, PACKAGE])]
    if isinstance(error, SyntaxError) and error.filename and packages:
        return f"{error.filename}:{error.lineno}"
    if not ours or not is_within(ours[-1][0], packages):
        return ""
    return f"{ours[-1][1].f_code.co_filename}:{ours[-1][2]}"
