"""`tolerate_failures`: loggers that cannot write any more are left out, with one warning; the training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch.loggers import Logger

from dpo_lightning.log import logger as messages

METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")
"""Methods of loggers that write."""

WRITER_THREAD = "_AsyncWriterThread"
"""TensorBoard's thread, whose exception its next call raises again."""


def tolerate_failures(loggers: Iterable[Logger]) -> None:
    """Let each logger fail with a warning where its folder is full, removed or cannot be written."""
    for logger in loggers:
        failed: list[OSError] = []
        for name in METHODS:
            setattr(logger, name, tolerant(getattr(logger, name), type(logger).__name__, failed))
    if threading.excepthook is not hide_writer_thread:
        hide_writer_thread.before = threading.excepthook  # type: ignore[attr-defined]
        threading.excepthook = hide_writer_thread


def tolerant(method: Callable[..., Any], kind: str, failed: list[OSError]) -> Callable[..., Any]:
    """Wrap a method of a logger; `failed` holds the first failure of any of its methods, after which none is called."""

    def call(*args: Any, **options: Any) -> Any:
        if failed:
            return None
        try:
            return method(*args, **options)
        except OSError as error:
            failed.append(error)
            messages.warning(f"{kind} cannot write: {error}. The training goes on without it; metrics.json is written")
            return None

    return call


def hide_writer_thread(args: threading.ExceptHookArgs) -> None:
    """Print the exception of a thread, unless it is one that a logger raises again."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == WRITER_THREAD):
        hide_writer_thread.before(args)  # type: ignore[attr-defined]
