"""`RaisingArgumentParser`: an argparse parser that raises a `UserError` and does not exit."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dpo_lightning.errors import ExitCode, UserError


class RaisingArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are raised as `UserError`, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` with argparse's message; `__main__` prints it and sets the exit code."""
        raise UserError(ExitCode.CONFIG, message, fix=f"{self.prog} --help lists the options")
