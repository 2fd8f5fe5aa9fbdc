"""An argparse parser that raises its errors as `UserError`."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dpo_lightning.errors import ExitCode, UserError


class RaisingArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are two lines, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise an error of the command line.

        Raises:
            UserError: always.
        """
        raise UserError(ExitCode.CONFIG, message, fix=f"{self.prog} --help lists the options")
