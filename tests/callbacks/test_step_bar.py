"""`StepBar` on a terminal of a given width: one line, in optimizer steps up to the last one, and nothing beside it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar
from support.command_line import QUIET, ROOT, quiet_bench

from dpo_lightning.activity import HEARTBEAT
from dpo_lightning.callbacks import StepBar
from dpo_lightning.default_callbacks import add_default_callbacks


@pytest.fixture
def bench(tmp_path, tiny_llama):
    """The recipe without its samples."""
    return quiet_bench(tmp_path, tiny_llama)


def run_on_terminal(columns, *args):
    """What a command writes on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "", "LINES": ""}
    command = [sys.executable, "-m", "dpo_lightning", *map(str, args)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        found = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            found += piece
        code = process.wait(timeout=300)
    os.close(ours)
    return code, found.decode(errors="replace")


def options(bench):
    return [option for option in bench.options() if option not in QUIET]


def states(text):
    """Each state of the line, as the terminal shows it one after the other."""
    return [part for part in re.split(r"[\r\n]+", text) if part.startswith(("step ", "evaluating ", "predicting "))]


@pytest.mark.parametrize("columns", [80, 44])
def test_one_line_up_to_the_last_step(bench, columns):
    code, text = run_on_terminal(columns, "fit", *options(bench), "--trainer.max_epochs=2")
    assert code == 0, text
    shown = states(text)
    assert shown[0].startswith("step 0/4")
    assert shown[-1].startswith("step 4/4")
    assert all(len(state.rstrip()) <= columns for state in shown)
    assert "loss 0." in shown[-1]
    assert text.count("training: ") == text.count("evaluating:") == 0  # no lines of a log beside it
    # The line is cleared before something is logged, and drawn again below.
    logged = [line for line in text.split("\n") if "checkpoints: 1 checkpoint" in line]
    assert re.search(r"\r *\rcheckpoints: 1 checkpoint", logged[0]) or logged[0].startswith("checkpoints: 1")


def test_a_run_that_goes_on_begins_where_it_is(bench):
    assert bench.fit("--trainer.max_epochs=2").code == 0
    code, text = run_on_terminal(80, "fit", *options(bench), "--trainer.max_epochs=3")
    assert code == 0, text
    assert states(text)[0].startswith("step 4/6")
    assert states(text)[-1].startswith("step 6/6")
    assert re.search(r"loss \S+ acc \S+ margin \S+, \S+ pairs/s", states(text)[-1])


@pytest.mark.parametrize(("command", "word"), [("validate", "evaluating"), ("predict", "predicting")])
def test_other_commands_show_rows(bench, command, word):
    code, text = run_on_terminal(80, command, *options(bench))
    assert code == 0, text
    assert states(text)[-1].startswith(f"{word} 5/5")


@pytest.mark.parametrize(
    ("options_given", "callbacks", "kinds"),
    [
        ({}, [], [StepBar]),
        ({"enable_progress_bar": False}, [], []),
        ({}, [TQDMProgressBar()], [TQDMProgressBar]),
    ],
)
def test_a_run_has_one_bar(options_given, callbacks, kinds, tmp_path):
    found = add_default_callbacks(list(callbacks), tmp_path, "fit", options_given)
    assert [type(c) for c in found if isinstance(c, (StepBar, TQDMProgressBar))] == kinds


def test_bars_that_were_shown_are_counted_out(bench):
    assert bench.fit().code == 0
    assert HEARTBEAT.shown == 0
