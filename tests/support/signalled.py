"""A command as a process that gets signals at a chosen place.

`python signalled.py SIGNALS PLACE COMMAND ...` runs `python -m dpo_lightning COMMAND ...`. SIGNALS are names, separated
by commas. PLACE is `import:MODULE`, when that is imported, or `MODULE:FUNCTION:N`, the N-th call of it.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def run_signalled(signals: str, place: str, *args: object, ignored: str = "") -> tuple[int, str]:
    """Run a command that sends itself signals at a place; its exit code, and what it printed.

    Args:
        signals: names, such as `SIGINT,SIGINT`.
        place: where they come.
        args: of `python -m dpo_lightning`.
        ignored: a signal that the process is started to ignore.
    """
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    handler = signal.signal(signal.Signals[ignored], signal.SIG_IGN) if ignored else None
    try:
        done = subprocess.run(
            [sys.executable, __file__, signals, place, *map(str, args)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        if handler is not None:
            signal.signal(signal.Signals[ignored], handler)
    return done.returncode, done.stdout


class AtImport:
    """A finder that finds nothing, and calls a function when a module is looked for."""

    def __init__(self, name: str, act: Any) -> None:
        self.name, self.act = name, act

    def find_spec(self, name: str, *_: Any) -> None:
        if name == self.name:
            self.act()


def main(signals: str, place: str, *args: str) -> None:
    """Arrange the signals, and run the command."""
    numbers = [signal.Signals[name] for name in signals.split(",")]

    def act() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    module, name = place.split(":")[:2]
    if module == "import":
        sys.meta_path.insert(0, AtImport(name, act))
    else:
        calls_left = int(place.split(":")[2])
        *above, last = name.split(".")
        owner: Any = import_module(module)
        for part in above:
            owner = getattr(owner, part)
        real = getattr(owner, last)

        def signalled(*given: Any, **options: Any) -> Any:
            nonlocal calls_left
            calls_left -= 1
            if calls_left == 0:
                act()
            return real(*given, **options)

        setattr(owner, last, signalled)
    sys.argv = ["dpo_lightning", *args]
    runpy.run_module("dpo_lightning", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
