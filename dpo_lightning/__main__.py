"""`python -m dpo_lightning COMMAND`: the table of commands; each is imported when it is called."""

from __future__ import annotations

import difflib
import io
import os
import sys
import tempfile
import traceback
from importlib import import_module

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.log import log_to_terminal
from dpo_lightning.terminal import one_line

COMMANDS = {
    "fit": ("dpo_lightning.cli:main", "train by SFT, DPO, KTO or on ranked lists, as the config names"),
    "validate": ("dpo_lightning.cli:main", "measure a model on the eval rows"),
    "test": ("dpo_lightning.cli:main", "as validate, with measures named test/..."),
    "predict": ("dpo_lightning.cli:main", "rewards and log-probabilities of each pair to predictions.jsonl"),
    "check-data": ("dpo_lightning.commands.check_data:main", "what fit says of rows, and what is doubtful in them"),
    "precompute": ("dpo_lightning.commands.precompute:main", "the reference's log-probabilities, once for many runs"),
    "convert": ("dpo_lightning.commands.convert:main", "rows of another format as rows of this package's own"),
    "infer": ("dpo_lightning.commands.infer:main", "answer an instruction with a trained model"),
    "export": ("dpo_lightning.commands.export:main", "one whole model out of an adapter and its base"),
    "fetch-model": (
        "dpo_lightning.commands.fetch_model:main",
        "get the small instruct model that the examples use",
    ),
    "doctor": (
        "dpo_lightning.commands.doctor:main",
        "what this machine lacks and how to fix it; with --config, a run's memory",
    ),
}
LIGHTNING = ("fit", "validate", "test", "predict")


def usage() -> str:
    """Return the text of `--help`, with a line for each command."""
    lines = ["usage: python -m dpo_lightning COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<12} {line}" for name, (_, line) in COMMANDS.items()]
    lines += ["", "python -m dpo_lightning COMMAND --help   shows a command's options"]
    return "\n".join(lines)


def run(args: list[str]) -> int:
    """Import the command that `args[0]` names, run it, and return its exit code."""
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        from dpo_lightning.version import __version__

        print(__version__)
        return 0
    name = args[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UserError(
            ExitCode.CONFIG,
            f"there is no command {name!r}",
            fix=f"did you mean {near[0]}?" if near else "python -m dpo_lightning --help lists the commands",
        )
    module, function = COMMANDS[name][0].split(":")
    return int(getattr(import_module(module), function)(args if name in LIGHTNING else args[1:]) or 0)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code, also for an error, an interrupt or a bug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escapes for characters that the terminal cannot encode
            stream.reconfigure(errors="backslashreplace")
    log_to_terminal()
    try:
        code = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code  # noqa: TRY300 - the flush raises if the reader of a pipe has exited
    except SystemExit as stop:  # argparse has printed an error or its help
        return int(ExitCode.CONFIG if stop.code == 2 else stop.code or 0)
    except UserError as error:
        print(error, file=sys.stderr)
        return int(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the pipe has exited, so nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.IO)
    except Exception as error:  # a bug in this package: one line for the user, the traceback in a file
        with tempfile.NamedTemporaryFile(
            "w", prefix="dpo_lightning-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exc(file=file)
        reason = one_line(next(iter(str(error).strip().splitlines()), ""))
        print(
            f"error: {type(error).__name__}: {reason}\nfix: this is a bug; please report it with {file.name}",
            file=sys.stderr,
        )
        return int(ExitCode.BUG)


if __name__ == "__main__":
    sys.exit(main())
