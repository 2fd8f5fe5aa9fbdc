"""A set-up that is interrupted leaves the environment that was there; after a SIGKILL the next call puts it back."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.toy_setup import PYTHON

TESTS = "requirements/test.lock"
CPU = "requirements/cpu.lock"
NOWHERE = {"environment": {"PYTHON": "/nowhere/python"}}
"""Nothing can be made anew without a Python: a call stops after it has put back what is due."""


def pause(toy, *extra):
    """A set-up that stays in the middle: packages are installed, the project is not. And the process that stays."""
    (toy.root / "pause").touch()
    process = toy.start(*extra)
    reached = toy.root / "reached"
    while not reached.exists() or not reached.read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    return process, int(reached.read_text())


def is_alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("changed", ["made anew", "a lock more"])
def test_a_signal(toy, stop, changed):
    before = toy.tree()
    if changed == "made anew":
        toy.edit(CPU)
    process, backend = pause(toy, *([TESTS] if changed == "a lock more" else []))
    with process:
        process.send_signal(stop)
        said = process.communicate()[0]
    assert process.returncode == 128 + stop
    assert f"{toy.venv} is again what it was before" in said
    assert not is_alive(backend)
    assert toy.tree() == before
    assert toy.packages()["torch"] == "1.0+cpu"


def test_a_signal_during_the_first_set_up(toy):
    shutil.rmtree(toy.venv)
    process, _ = pause(toy)
    with process:
        process.terminate()
        process.communicate()
    assert toy.tree() == {}
    (toy.root / "pause").unlink()
    assert toy.install()[0] == 0
    assert toy.packages()["torch"] == "1.0+cpu"


@pytest.mark.parametrize("changed", ["made anew", "a lock more"])
def test_a_kill(toy, changed):
    """What the killed set-up had started may still be writing: the next call waits for its end."""
    before = toy.tree()
    if changed == "made anew":
        toy.edit(CPU)
    process, backend = pause(toy, *([TESTS] if changed == "a lock more" else []))
    with process:
        process.kill()
        process.wait()
        assert is_alive(backend)
        (toy.root / "pause").unlink()
        toy.edit(CPU)
        with toy.start(**NOWHERE) as following:
            assert following.stdout.readline() == f"setup: waiting for another setup of {toy.venv}\n"
            os.killpg(os.getpgid(backend), signal.SIGKILL)
            said = following.communicate()[0]
    assert f"an earlier setup was interrupted\nsetup: {toy.venv} is again what it was before\n" in said
    assert toy.tree() == before
    assert toy.packages()["torch"] == "1.0+cpu"


KILLER = """#!/bin/sh
echo "${0##*/} $*" >>"$CALLS"
[ "$(wc -l <"$CALLS")" != "$KILL_AT" ] || { kill -9 $PPID; exit 1; }
PATH=${PATH#*:} exec "${0##*/}" "$@"
"""
"""A command that kills the set-up in its place, where it is the one that is due."""

FAILS_AT_ONCE = """#!/bin/sh
[ "$2" != venv ] || exit 1
exec "$BASE_PYTHON" "$@"
"""


def install_until(toy, tmp_path, kill_at, *extra):
    """A set-up that fails by itself, or is killed before one of its commands. Returns the commands."""
    calls = tmp_path / "calls"
    calls.write_text("")
    for name in ("mv", "rm", "rmdir", "mkdir", "cp"):
        (tmp_path / name).write_text(KILLER)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python").write_text(FAILS_AT_ONCE)
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "KILL_AT": str(kill_at)}
    code, said = toy.install(
        *extra, environment=environment | {"PYTHON": str(tmp_path / "python"), "BASE_PYTHON": PYTHON}
    )
    assert code == (-signal.SIGKILL if kill_at else 1), said
    return calls.read_text().splitlines()


def test_a_kill_at_every_step(toy, tmp_path):
    """Before each of the commands by which an environment is set aside and put back."""
    before = toy.tree()
    toy.edit(CPU)
    calls = install_until(toy, tmp_path, 0)
    assert len(calls) > 15
    for kill_at in range(1, len(calls) + 1):
        install_until(toy, tmp_path, kill_at)
        toy.install(**NOWHERE)
        assert toy.tree() == before, f"killed before {calls[kill_at - 1]}"


def test_a_kill_at_every_step_of_the_next_call(toy, tmp_path):
    """Putting back can be killed as well."""
    before = toy.tree()
    toy.edit(CPU)
    calls = install_until(toy, tmp_path, 0)
    middle = next(
        number for number, call in enumerate(calls, 1) if call.startswith("mv") and call.endswith(".previous")
    )
    for kill_at in range(2, 14):
        install_until(toy, tmp_path, middle + 1)
        install_until(toy, tmp_path, kill_at)
        toy.install(**NOWHERE)
        assert toy.tree() == before


def test_a_kill_while_a_lock_is_added(toy, tmp_path):
    """Before each of the commands by which an environment is copied, and the first one after a failure."""
    before = toy.tree()
    shutil.rmtree(toy.index)
    toy.index.mkdir()
    calls = install_until(toy, tmp_path, 0, TESTS)
    copied = next(number for number, call in enumerate(calls, 1) if call.startswith("cp"))
    for kill_at in range(1, copied + 4):
        install_until(toy, tmp_path, kill_at, TESTS)
        toy.edit(CPU)
        toy.install(**NOWHERE)
        toy.edit(CPU, "# another day\n", "")
        assert toy.tree() == before, f"killed before {calls[kill_at - 1]}"


def test_a_kill_after_the_change(toy):
    """The new environment was complete, and the old one not yet deleted."""
    before = toy.tree()
    old = toy.venv / ".dpo-lightning.previous"
    (old / "bin").mkdir(parents=True)
    (old / "bin" / "python").write_text("half of the old one")
    assert toy.install() == (0, "")
    assert toy.tree() == before
