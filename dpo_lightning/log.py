"""The logger `dpo_lightning`: what a run reports, from the first process only."""

from __future__ import annotations

import logging
import os

from dpo_lightning.terminal import one_line

logger = logging.getLogger("dpo_lightning")
"""Without a handler of its own until `log_to_terminal`: a program that imports the package decides what it shows."""


def is_first_process(_: object = None) -> bool:
    """Return True in the process of rank 0, as a launcher or Slurm numbers them, or in the only process."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


logger.addFilter(is_first_process)


class TerminalHandler(logging.Handler):
    """Prints each record as one line to stdout at once; control characters in it are written as escapes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, warnings with that word before them."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(one_line(prefix + record.getMessage()), flush=True)


def log_to_terminal() -> None:
    """Print what the package logs, as the command line does; a second call changes nothing."""
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries give the root logger handlers, which would print each line again
