"""The table of commands: light help, exit codes, and what a bug, Ctrl-C or a closed pipe come to."""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from importlib import import_module

import pytest
from support.command_line import ROOT, Bench, refused, run

from dpo_lightning import __version__
from dpo_lightning.__main__ import COMMANDS, LIGHTNING, usage
from dpo_lightning.errors import ExitCode, Problem, UserError

HEAVY = ("torch", "lightning", "transformers", "peft", "jsonargparse", "datasets", "numpy")
PROBE = """
import contextlib, io, json, sys
from dpo_lightning.__main__ import main
said = {}
for args in ([], ["--help"], ["-h"], ["--version"], ["bogus"], ["--bogus"]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    said[" ".join(args)] = [code, out.getvalue(), err.getvalue()]
print(json.dumps([said, sorted(sys.modules)]))
"""


def environment(*kept):
    """The environment, or the named part of it, in which this checkout is found."""
    env = {name: os.environ[name] for name in kept or os.environ if name in os.environ}
    return env | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def python(*args, **options):
    """Run Python on this checkout, as a user does."""
    options = {"env": environment(), "stdout": subprocess.PIPE, "cwd": ROOT} | options
    return subprocess.run([sys.executable, *args], stderr=subprocess.PIPE, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def probed():
    done = python("-c", PROBE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Make `oops` a command that does what the test says, and keep what is written for a bug in `tmp_path`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(COMMANDS, "oops", (f"{__name__}:oops", "a test's own"))
    return lambda function: monkeypatch.setattr(sys.modules[__name__], "oops", function, raising=False)


def raising(error):
    """A command that ends with an error."""

    def fail(argv):
        raise error

    return fail


def test_help_lists_every_command(probed):
    """Each with its line, and how to learn more."""
    said, _ = probed
    for args in ("", "--help", "-h"):
        code, out, err = said[args]
        assert (code, out, err) == (0, usage() + "\n", "")
    lines = usage().splitlines()
    for name, (_, line) in COMMANDS.items():
        assert [shown for shown in lines if shown.split()[:1] == [name]] == [f"  {name:<12} {line}"]
    assert "COMMAND --help" in lines[-1]


def test_help_and_a_typo_import_nothing_heavy(probed):
    """They answer at once: nothing that takes seconds to import is touched."""
    _, modules = probed
    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)


def test_an_unknown_command_is_refused(probed):
    said, _ = probed
    for args in ("bogus", "--bogus"):
        code, out, err = said[args]
        assert (code, out) == (64, "")
        assert err == f"error: there is no command {args!r}\nfix: python -m dpo_lightning --help lists the commands\n"


def test_version(probed):
    assert probed[0]["--version"] == [0, f"{__version__}\n", ""]


@pytest.mark.parametrize(("typed", "meant"), [("fti", "fit"), ("doctr", "doctor"), ("fetch_model", "fetch-model")])
def test_a_typo_gets_the_near_command(typed, meant):
    refused(run(typed), 64, f"there is no command {typed!r}", f"did you mean {meant}?")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_explains_itself(name):
    """What the table names can be called, and `COMMAND --help` says who speaks."""
    module, function = COMMANDS[name][0].split(":")
    assert callable(getattr(import_module(module), function))
    ran = run(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("usage: python -m dpo_lightning")


def test_lightning_commands_get_their_name_and_others_only_their_options(command, monkeypatch):
    got = []
    command(got.append)
    run("oops", "--a", "1")
    monkeypatch.setattr("dpo_lightning.__main__.LIGHTNING", ("oops",))
    run("oops", "--a", "1")
    assert got == [["--a", "1"], ["oops", "--a", "1"]]
    assert set(LIGHTNING) <= set(COMMANDS)


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (69, 69), (ExitCode.DATA, 65)])
def test_what_a_command_returns_is_the_exit_code(command, returned, code):
    command(lambda argv: returned)
    ran = run("oops")
    assert (ran.code, type(ran.code)) == (code, int)


@pytest.mark.parametrize("code", ExitCode)
def test_a_users_mistake_is_printed_with_its_code(command, code):
    command(raising(UserError(code, Problem("it is wrong", "rows.json:3", "a\nb"), fix="mend it")))
    ran = run("oops")
    assert ran == (code, "", "error: it is wrong at rows.json:3\n  | a\\nb\nfix: mend it\n")


@pytest.mark.parametrize(("status", "code"), [(2, 64), (0, 0), (None, 0), (3, 3)])
def test_an_exit_from_within_is_returned(command, status, code):
    """argparse leaves with 2, which is no exit code of ours."""
    command(raising(SystemExit(status)))
    assert run("oops").code == code


def test_a_bug_leaves_its_traceback_in_a_file(command, tmp_path):
    """One line for the user, everything for whoever mends it."""
    command(raising(ZeroDivisionError("first line\nsecond line")))
    ran = run("oops")
    refused(ran, 70, "ZeroDivisionError: first line", "this is a bug")
    assert "second line" not in ran.err
    (file,) = tmp_path.iterdir()
    assert str(file) in ran.err
    kept = file.read_text(encoding="utf-8")
    assert kept.startswith("Traceback (most recent call last)")
    assert "second line" in kept


def test_a_bug_without_a_word_is_named_too(command):
    command(raising(RuntimeError()))
    refused(run("oops"), 70, "error: RuntimeError")


def test_ctrl_c(command):
    command(raising(KeyboardInterrupt()))
    assert run("oops") == (130, "", "interrupted\n")


def test_the_program_exits_with_the_code():
    """`python -m dpo_lightning` hands the code on, and prints nothing but the error."""
    done = python("-m", "dpo_lightning", "bogus")
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.splitlines()[0] == "error: there is no command 'bogus'"


def test_the_installed_program_notes_signals_as_the_module_does():
    """A container runs `dpo-lightning`: a signal ended it at once there."""
    (named,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values()
    module, function = named.split(":")
    called = f"import sys; sys.argv[1:] = ['--version']; from {module} import {function} as program; program()"
    done = python("-c", f"{called}; from dpo_lightning import signals; sys.exit(not signals.is_installed())")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_traceback(unbuffered):
    """`python -m dpo_lightning --help | true`, whether Python notices while it prints or when it ends."""
    read, write = os.pipe()
    os.close(read)
    done = python("-m", "dpo_lightning", "--help", stdout=write, env=environment() | {"PYTHONUNBUFFERED": unbuffered})
    os.close(write)
    assert (done.returncode, done.stderr) == (74, "")


def test_fit_runs_where_there_is_no_home(tmp_path, tiny_llama):
    """The whole program, in another folder, without HOME: cluster jobs and containers have none."""
    command = ["-m", "dpo_lightning", "fit", *Bench(tmp_path, tiny_llama).options(), "--trainer.max_steps", "1"]
    done = python(*command, cwd=tmp_path, env=environment("PATH", "HF_HUB_OFFLINE"))
    assert done.returncode == 0, done.stderr
    assert "summary after 1 steps" in done.stdout
    assert done.stderr == ""
    assert {entry.name for entry in tmp_path.iterdir()} == {"train.jsonl", "eval.jsonl", "run", "encoded"}


def test_a_path_that_cannot_be_used_is_named(command):
    """In place of a report of a bug, where no command expected it."""
    command(raising(OSError(36, "File name too long", "a/b")))
    refused(run("oops"), 74, "File name too long at a/b")
