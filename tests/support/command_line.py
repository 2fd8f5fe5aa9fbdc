"""Commands as a user types them, run in this process: what they say, what they leave, and what they load."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dpo_lightning.__main__ import main

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
MOST_LINES = 25
QUIET = ("--trainer.enable_progress_bar", "false")
ON_CPU = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
TEXT = "the answer is 46 dollars and an island in the sea is far away from France"


class Ran(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def run(*args: object) -> Ran:
    """Run `python -m dpo_lightning ARGS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGINT)  # lightning takes it away for good when it is interrupted
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(arg) for arg in args])
    finally:
        signal.signal(signal.SIGINT, handler)
    return Ran(code, out.getvalue(), err.getvalue())


def infer(model: object, *more: object) -> Ran:
    """Ask a model for a few tokens."""
    return run("infer", "--model", model, "--instruction", "hi", "--max_new_tokens", 2, *more)


def exported(model: object, out: object, *more: object) -> Ran:
    """Write a whole model."""
    return run("export", "--model", model, "--out", out, *more)


def refused(ran: Ran, code: int, *said: str) -> None:
    """The form of every refusal: an exit code, a few lines, the remedy; no traceback, no usage."""
    assert ran.code == code, ran
    lines = ran.err.strip().splitlines()
    assert lines, ran
    assert lines[0].startswith("error: "), ran.err
    assert lines[-1].startswith("fix: "), ran.err
    assert len(lines) <= MOST_LINES, ran.err
    for noise in ("Traceback", "usage:", "jsonargparse", "Namespace("):
        assert noise not in ran.err + ran.out
    for words in said:
        assert words in ran.err, f"{words!r} is not in:\n{ran.err}"


def pairs(count: int, first: int = 0) -> list[dict[str, str]]:
    """Preference pairs of unequal lengths, no two alike."""
    return [
        {
            "prompt": f"Question {i}: {words(i, 2 + i % 4)}?",
            "chosen": f"{words(2 * i, 1 + 3 * i % 7)}.",
            "rejected": f"{words(5 * i + 1, 2 + 5 * i % 6)}!",
        }
        for i in range(first, first + count)
    ]


def words(start: int, count: int) -> str:
    """Some words of a fixed text, from a place on."""
    known = TEXT.split()
    return " ".join(known[(start + 3 * i) % len(known)] for i in range(count))


def json_lines(path: Path, rows: list[Any]) -> Path:
    """A file of JSON lines; a string is a line as it stands."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


class Bench:
    """A folder with a few pairs and the recipe of DPO on a tiny model; runs are its subfolders."""

    def __init__(self, folder: Path, model: Path, rows: Bench | None = None) -> None:
        self.folder, self.model = folder, model
        self.train = rows.train if rows else json_lines(folder / "train.jsonl", pairs(8))
        self.eval = rows.eval if rows else json_lines(folder / "eval.jsonl", pairs(5, 50))

    def options(self, out: str = "run") -> list[str]:
        """The recipe on these rows: two steps an epoch, one epoch."""
        named = {
            "config": CONFIGS / "dpo.yaml",
            "output_dir": self.folder / out,
            "model.policy.path": self.model,
            "model.learning_rate": 1e-3,
            "data.train": self.train,
            "data.eval": self.eval,
            "data.max_length": 128,
            "trainer.max_steps": -1,
            "trainer.log_every_n_steps": 1,
        }
        return [*(f"--{name}={value}" for name, value in named.items()), *QUIET, *ON_CPU]

    def run(self, command: str, *more: object, out: str = "run") -> Ran:
        """Run a command on the recipe with more options, which win."""
        return run(command, *self.options(out), *more)

    def fit(self, *more: object, out: str = "run") -> Ran:
        """Train."""
        return self.run("fit", *more, out=out)

    def overlay(self, text: str | bytes, name: str = "overlay.yaml") -> list[str]:
        """The flags that lay a config of this text over the recipe."""
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["--config", str(path)]

    def json(self, name: str, out: str = "run") -> Any:
        """A JSON file of a run."""
        return json.loads((self.folder / out / name).read_text(encoding="utf-8"))


def quiet_bench(folder: Path, model: Path) -> Bench:
    """A bench whose recipe has no callbacks of its own, so that nothing is sampled."""
    made = Bench(folder, model)
    quiet, options = made.overlay("trainer: {callbacks: []}"), made.options
    made.options = lambda out="run": [*options(out), *quiet]  # type: ignore[method-assign]
    return made


def watch_loading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the name of every tokenizer, model or config that is loaded from now on."""
    import transformers

    loaded: list[str] = []
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        kind = getattr(transformers, name)
        real = kind.from_pretrained

        def watched(*args: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            loaded.append(name)
            return real(*args, **options)

        monkeypatch.setattr(kind, "from_pretrained", watched)
    return loaded


def fail_at_start(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every run end with an error when its training begins, before the first step."""
    from dpo_lightning.callbacks.self_check import SelfCheck

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(SelfCheck, "on_train_start", fail)
