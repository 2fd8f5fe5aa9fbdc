"""What a person at the terminal reads and writes: lines from the first process only, and a parser with manners."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.terminal import one_line


def is_first_process() -> bool:
    """Whether this process speaks for all: rank 0 of a launcher or of Slurm, or the only one."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def say(line: str) -> None:
    """Print a line at once; control characters in it are written as escapes."""
    if is_first_process():
        print(one_line(line), flush=True)


class ShortParser(argparse.ArgumentParser):
    """An argparse parser that says what is wrong in two lines, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise what is printed and sets the exit code."""
        raise UserError(ExitCode.CONFIG, message, fix=f"{self.prog} --help lists the options")
