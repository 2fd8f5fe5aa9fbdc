"""An argparse parser that raises its errors."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dpo_lightning.errors import ExitCode, UserError


class ShortParser(argparse.ArgumentParser):
    """An argparse parser that says what is wrong in two lines, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise what is printed and sets the exit code."""
        raise UserError(ExitCode.CONFIG, message, fix=f"{self.prog} --help lists the options")
