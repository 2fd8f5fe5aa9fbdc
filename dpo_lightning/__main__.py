"""`python -m dpo_lightning COMMAND`: the table of commands; each is imported when it is called."""

from __future__ import annotations

from dpo_lightning import signals

if __name__ == "__main__":
    signals.install()  # before the other imports, which take time

import difflib
import io
import os
import sys
from importlib import import_module
from signal import SIGINT

from dpo_lightning.errors import WRITE_ERRORS, ExitCode, Problem, UserError, lacks_memory, no_memory_error
from dpo_lightning.launcher_variables import check_environment
from dpo_lightning.library_variables import check_docstrings, translate_variable_error
from dpo_lightning.limits import check_address_space
from dpo_lightning.log import is_first_process, log_to_terminal
from dpo_lightning.stopping import defer_until_met, follow_slurm, raise_if_requested, set_deadline
from dpo_lightning.streams import save_traceback, surviving_streams
from dpo_lightning.terminal import one_line

COMMANDS = {
    "fit": ("dpo_lightning.commands.fit:main", "train by SFT, DPO, KTO or on ranked lists, as the config names"),
    "validate": ("dpo_lightning.commands.fit:main", "measure a model on the eval rows"),
    "test": ("dpo_lightning.commands.fit:main", "as validate, with measures named test/..."),
    "predict": ("dpo_lightning.commands.fit:main", "rewards and log-probabilities of each pair to predictions.jsonl"),
    "check-data": ("dpo_lightning.commands.check_data:main", "what fit says of rows, and what is doubtful in them"),
    "precompute": ("dpo_lightning.commands.precompute:main", "the reference's log-probabilities, once for many runs"),
    "convert": ("dpo_lightning.commands.convert:main", "rows of another format as rows of this package's own"),
    "evaluate": ("dpo_lightning.commands.evaluate:main", "held-out accuracy, drift and answers of a trained model"),
    "compare": ("dpo_lightning.commands.compare:main", "which of several models answers better, by a judge"),
    "sweep": ("dpo_lightning.commands.sweep:main", "a run for each value of a key, each evaluated, and their frontier"),
    "submit": ("dpo_lightning.commands.submit:main", "one of these commands as a job of a Slurm cluster"),
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
STOPPING = (*LIGHTNING, "precompute", "evaluate", "sweep")
"""Commands that stop at a boundary, from which they go on; a signal ends the others where they are."""

INTO_FILES = ("fit", "predict", "precompute", "evaluate", "sweep", "export", "fetch-model")
"""Commands whose results are files: they go on where nobody reads their output."""


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
        raise unknown_command_error(name)
    check_environment()
    check_docstrings()
    check_address_space()
    module, function = COMMANDS[name][0].split(":")
    command = getattr(import_module(module), function)
    defer_until_met(name in LIGHTNING and not is_first_process())
    if name in STOPPING:
        raise_if_requested()
    else:
        signals.end_at_once()
    return int(command(args if name in LIGHTNING else args[1:]) or 0)


def unknown_command_error(name: str) -> UserError:
    """Make the error for a command that does not exist, with the one that was meant: a misspelt or a foreign name."""
    from dpo_lightning.foreign_names import explain_unsupported, translate_command

    fix = "python -m dpo_lightning --help lists the commands"
    if ours := translate_command(name):
        fix = f"python -m dpo_lightning {ours}"
    elif reason := explain_unsupported(name):
        fix = f"{reason}; {fix}"
    elif near := difflib.get_close_matches(name, COMMANDS, n=1):
        fix = f"did you mean {near[0]}?"
    return UserError(ExitCode.CONFIG, f"there is no command {name!r}", fix=fix)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code, also for an error, an interrupt or a bug."""
    args = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escapes for characters that the terminal cannot encode
            stream.reconfigure(errors="backslashreplace")
    with surviving_streams(stdout=args[:1] != [] and args[0] in INTO_FILES):
        return run_reporting(args)


def describe_failure(error: Exception) -> UserError | None:
    """Make the error for what may fail in any command: a place, memory, or a variable of the environment."""
    if isinstance(error, OSError) and error.errno and error.filename:  # a place that no command had to expect
        return access_error(error)
    if lacks_memory(error):  # also while libraries are imported
        return no_memory_error()
    return translate_variable_error(error)


def run_reporting(args: list[str]) -> int:
    """Run a command, print its error, if any, and return its exit code."""
    log_to_terminal()
    set_deadline(None)  # of an earlier command in this process
    if signals.is_installed():
        follow_slurm()
    try:
        code = run(args)
        sys.stdout.flush()
        return code  # noqa: TRY300 - the flush raises if the reader of a pipe has exited
    except SystemExit as stop:  # argparse has printed an error or its help
        return int(ExitCode.CONFIG if stop.code == 2 else stop.code or 0)
    except UserError as error:
        if is_first_process() or error.code != ExitCode.RESUMABLE:  # all processes of a run stop together
            print(error, file=sys.stderr)
        return int(error.code)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, signals.Interrupted) else SIGINT
        print("interrupted" if number == SIGINT else f"ended by {number.name}", file=sys.stderr)
        return 128 + number
    except Exception as error:
        if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno in WRITE_ERRORS):
            return lose_output(error)
        if (known := describe_failure(error)) is not None:
            print(known, file=sys.stderr)
            return int(known.code)
        log = save_traceback()  # a bug in this package: one line for the user, the traceback in a file
        reason = one_line(next(iter(str(error).strip().splitlines()), ""))
        print(
            f"error: {type(error).__name__}: {reason}\nfix: this is a bug; please report it with {log}",
            file=sys.stderr,
        )
        return int(ExitCode.BUG)


def access_error(error: OSError) -> UserError:
    """Make the error for a file or folder that cannot be read or written, for a reason that its place has."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
    problem = Problem(f"reading or writing failed: {error.strerror}", name)
    return UserError(ExitCode.IO, problem, fix="look at this path, the folders above it, and their permissions")


def lose_output(error: OSError) -> int:
    """Report output that cannot be written, unless its reader has exited, and return the exit code.

    What is still buffered would fail once more when Python ends.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        where = f": {error.filename}" if error.filename else ""
        fix = "free some space, or write to another disk"
        print(f"error: writing failed: {error.strerror}{where}\nfix: {fix}", file=sys.stderr)
    return int(ExitCode.IO)


def run_program() -> int:
    """Run the command of this process, whose signals are noted from now on, and return its exit code."""
    signals.install()
    try:
        return main()
    except KeyboardInterrupt:  # once more, while the first one was reported
        return 128 + SIGINT
    finally:
        signals.ignore()


if __name__ == "__main__":
    sys.exit(run_program())
