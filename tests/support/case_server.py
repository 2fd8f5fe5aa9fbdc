"""Commands in forks of one process that has imported all: with a limit of time, under an audit hook, as a user's shell.

As a program, it reads requests from its standard input, a JSON object a line, and answers with a line each.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from support.audit_events import make_recorder

MODULES = (
    *("dpo_lightning.__main__", "dpo_lightning.cli", "dpo_lightning.models.generation", "dpo_lightning.losses"),
    *(f"dpo_lightning.commands.{name}" for name in ("check_data", "convert", "doctor", "evaluate", "export", "infer")),
    *("dpo_lightning.commands.precompute", "dpo_lightning.commands.estimate", "dpo_lightning.commands.compare"),
    *("dpo_lightning.evaluation.run", "dpo_lightning.models.merging", "dpo_lightning.models.reward_model"),
    *(
        "torch",
        "lightning.pytorch.cli",
        "transformers.models.llama.modeling_llama",
        "peft",
        "pyarrow",
        "pyarrow.parquet",
    ),
    *("torchmetrics", "tensorboard.summary", "torch._dynamo", "transformers.models.auto.tokenization_auto"),
    *("transformers.generation.utils", "transformers.integrations.hub_kernels", "torch.utils.tensorboard"),
)
LOADERS = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")
ROOM = 6 << 30
"""Bytes that a command may map beside what is mapped at its start: a bomb shall not fill the machine."""

STARTS = 120
"""Seconds that the imports may take."""


class Done(NamedTuple):
    """What a command came to.

    Attributes:
        code: the exit code; negative for a signal, None if the limit of time was exceeded.
        out: what it printed.
        err: what it printed to stderr.
        events: what it started, connected to and wrote.
        loaded: the loaders of transformers that it called.
    """

    code: int | None
    out: str
    err: str
    events: list[str]
    loaded: list[str]


class CaseServer:
    """The client: starts the program and asks it for commands."""

    def __init__(self, scratch: Path) -> None:
        """Start it; `scratch` takes what commands print."""
        root = Path(__file__).parents[2]
        paths = os.pathsep.join([str(root), str(root / "tests")])
        self._scratch = scratch
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.case_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        assert self._read() == {"ready": True}

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def run(self, args: list[str], place: Path, seconds: float = 60, stdin: str = "", **env: str) -> Done:
        """Run a command in a folder."""
        assert self._process.stdin is not None
        asked = {"args": args, "place": str(place), "seconds": seconds, "stdin": stdin, "env": env}
        self._process.stdin.write(json.dumps(asked | {"scratch": str(self._scratch)}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        said = {name: (self._scratch / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")}
        lines = (self._scratch / "events").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        loaded = [event.removeprefix("load ") for event in events if event.startswith("load ")]
        others = [event for event in events if not event.startswith("load ")]
        return Done(answer["code"], said["out"], said["err"], others, loaded)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def serve() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    for name in MODULES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    answers.write('{"ready": true}\n')
    answers.flush()
    for line in sys.stdin:
        code = run_forked(json.loads(line))
        answers.write(json.dumps({"code": code}) + "\n")
        answers.flush()
    os._exit(0)


def run_forked(request: dict[str, Any]) -> int | None:
    """Run a command in a fork and return its exit code; None if it had to be killed."""
    child = os.fork()
    if not child:
        run_here(request)
    end = time.monotonic() + request["seconds"]
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left behind
    return os.waitstatus_to_exitcode(status)


def run_here(request: dict[str, Any]) -> None:
    """Run a command in this process, which ends with it."""
    os.setpgid(0, 0)
    scratch, place = Path(request["scratch"]), Path(request["place"])
    (scratch / "in").write_bytes(request["stdin"].encode("utf-8", "surrogateescape"))
    made = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, (name, flags) in enumerate((("in", os.O_RDONLY), ("out", made), ("err", made))):
        os.dup2(os.open(scratch / name, flags, 0o600), number)
    events = os.open(scratch / "events", made | os.O_APPEND, 0o600)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ |= {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp")} | request["env"]
    os.chdir(place)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import tempfile

    tempfile.tempdir = None
    record = _make_record(events)
    watch_loaders(record)
    from dpo_lightning.__main__ import main

    sys.addaudithook(make_recorder(place, record))
    try:
        code = main(request["args"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    os._exit(code)


def _make_record(file: int) -> Any:
    def record(event: str) -> None:
        os.write(file, f"{json.dumps(event)}\n".encode())

    return record


def watch_loaders(record: Any) -> None:
    """Record which of the loaders of transformers are called."""
    import transformers

    for name in LOADERS:
        kind = getattr(transformers, name)
        real = kind.from_pretrained

        def watched(*args: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            record(f"load {name}")
            return real(*args, **options)

        kind.from_pretrained = watched


def snapshot(place: Path) -> dict[str, Any]:
    """Every entry of a folder with its size and time, or target."""
    return {
        str(path.relative_to(place)): (path.readlink() if path.is_symlink() else (stat.st_size, stat.st_mtime_ns))
        for path in sorted(place.rglob("*"))
        if (stat := path.lstat()) and (path.is_symlink() or not path.is_dir())
    } | {f"{path.relative_to(place)}/": None for path in sorted(place.rglob("*")) if path.is_dir()}


if __name__ == "__main__":
    serve()
