"""The logger `dpo_lightning`, which logs on the first process only."""

from __future__ import annotations

import logging
import os

from dpo_lightning.terminal import one_line

logger = logging.getLogger("dpo_lightning")
"""It has no handler until `log_to_terminal`: programs that import the package decide what is shown."""


def is_first_process(_: object = None) -> bool:
    """Whether this is rank 0, by the variables of a launcher or Slurm, or the only process."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


logger.addFilter(is_first_process)


class TerminalHandler(logging.Handler):
    """Prints each record to stdout as one line, with control characters escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; warnings are preceded by `warning:`."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(one_line(prefix + record.getMessage()), flush=True)


def log_to_terminal() -> None:
    """Print the package's log to the terminal, as the command line does; further calls change nothing."""
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries give the root logger handlers, which would print each line again
