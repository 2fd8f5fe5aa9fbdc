"""`RaisingArgumentParser`: an argparse parser that raises a `UserError` and does not exit."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from dpo_lightning.errors import ExitCode, Problem, UserError


class RaisingArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are raised as `UserError`, without the usage text."""

    given: Sequence[str] = ()
    """The command line, if it may have no further options."""

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Parse a command line, all of whose options have to be known."""
        self.given = args[0] if args and args[0] is not None else sys.argv[1:]
        return super().parse_args(*args, **options)

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` with argparse's message, or with what each unknown option is called here."""
        fix = f"{self.prog} --help lists the options"
        if message.startswith(("unrecognized arguments", "the following arguments are required", "ambiguous option")):
            problems = list(self.list_unknown())
            if any(problem.fix for problem in problems):
                raise UserError(ExitCode.CONFIG, problems, fix=fix if not all(each.fix for each in problems) else "")
        raise UserError(ExitCode.CONFIG, message, fix=fix)

    def list_unknown(self) -> Iterator[Problem]:
        """Iterate over the options on the command line that do not exist, each with the right one if there is one."""
        from dpo_lightning.foreign_names import translate_flag

        known = list(dict.fromkeys(re.findall(r"(?<![\w.-])--\w[\w-]*(?![\w.-])", self.format_help())))
        for word in self.given:
            flag = word.partition("=")[0]
            if not flag.startswith("--") or flag in known:
                continue
            found = translate_flag(flag[2:], known)
            if found is None and any(name.startswith(flag) for name in known):
                continue  # an abbreviation
            near = difflib.get_close_matches(flag, known, n=1, cutoff=0.75)
            fix = f"did you mean {near[0]}?" if near else ""
            if found is not None:
                note = f" ({found.note})" if found.note else ""
                fix = f"write {found.key}{note}" if found.key else f"leave it out: {found.note}"
            yield Problem(f"the option {flag} does not exist", fix=fix)
