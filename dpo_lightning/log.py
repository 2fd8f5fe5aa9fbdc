"""The logger `dpo_lightning`, which logs on the first process only."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dpo_lightning.activity import HEARTBEAT
from dpo_lightning.terminal import one_line

logger = logging.getLogger("dpo_lightning")
"""It has no handler until `log_to_terminal`: programs that import the package decide what is shown."""


def is_first_process(_: object = None) -> bool:
    """Whether this is rank 0, by the variables of a launcher or Slurm, or the only process."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    if "LOCAL_RANK" not in os.environ:
        return True
    # Without a RANK, Lightning counts the ranks of a machine, and the machines by these variables.
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return os.environ["LOCAL_RANK"] == node == "0"


logger.addFilter(is_first_process)


class TerminalHandler(logging.Handler):
    """Prints each record to stdout as one line, with control characters escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; warnings are preceded by `warning:`."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        with above_bars():
            print(one_line(prefix + record.getMessage()), flush=True)


def above_bars() -> AbstractContextManager[Any]:
    """Return a context that clears the progress bars of this terminal, and draws them again below what was printed."""
    bars = sys.modules.get("tqdm")  # imported by the first bar
    return bars.tqdm.external_write_mode(file=sys.stdout) if bars else nullcontext()


def log_to_terminal() -> None:
    """Print the package's log to the terminal, as the command line does; further calls change nothing."""
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
        logger.addHandler(HEARTBEAT)
        HEARTBEAT.start()
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries give the root logger handlers, which would print each line again
