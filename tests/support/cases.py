"""Cases: a command in a folder with something wrong in it, and what has to come of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import tiny_models
from support.case_server import CaseServer, Done, snapshot
from support.command_line import CONFIGS, MOST_LINES, json_lines, pairs

CANARY = "hf_cAnArYcAnArYcAnArYcAnArY1234567890"
"""A secret in the environment, which no file and no output may hold."""

SECRETS = dict.fromkeys(("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "COMET_API_KEY"), CANARY)
NOISE = ("Traceback", "usage:", "jsonargparse", "Namespace(", "this is a bug")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
OWN = re.compile(r"(run|encoded|grid|tmp|\.?out(\.\w+)*)(/.*)?")
"""Folders into which a command may write when it is not refused; whether it did is seen by its files."""

LOADERS = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")
STAGES = {"S0": (), "S1": LOADERS[:2], "S2": LOADERS, "S3": LOADERS}
"""The loaders that a command may have called when it refuses: none, none of weights, any, and any after a step."""

QUICK = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.precision=32-true")
RECIPE = {
    "output_dir": "run",
    "model.policy.path": "model",
    "model.learning_rate": 1e-3,
    "data.train": "train.jsonl",
    "data.eval": "eval.jsonl",
    "data.max_length": 128,
    "trainer.max_steps": -1,
    "trainer.log_every_n_steps": 1,
}


ANY, FAULTS = -1, (None, 70, 99)


@dataclass(frozen=True)
class Case:
    """A command that is refused, or one that has to pass.

    Attributes:
        name: of the case, unique.
        build: makes the files in a folder and returns the command.
        code: the exit code; `ANY` for any but those of a bug, a signal or an exceeded limit of time.
        said: what the message has to contain.
        stage: what may be loaded before the refusal, as `STAGES` has it.
        env: variables of the environment.
        stdin: what the command may read.
        twin: the command whose events it may have as well; that of its first argument if it is empty.
        seconds: of the limit of time.
        check: says what is wrong with the files that a command has left which ended with 0.
    """

    name: str
    build: Callable[[Path], list[str]]
    code: int
    said: tuple[str, ...] = ()
    stage: str = "S0"
    env: dict[str, str] = field(default_factory=dict)
    stdin: str = ""
    twin: str = ""
    seconds: float = 60
    check: Callable[[Path], list[str]] = lambda _: []


def make_template(folder: Path) -> Path:
    """The folder that every case gets a copy of: a model, rows, a home, and a place for temporary files."""
    tiny_models.save(folder / "model", tiny_models.make_llama(), tiny_models.make_chat_tokenizer())
    json_lines(folder / "train.jsonl", pairs(8))
    json_lines(folder / "eval.jsonl", pairs(5, 50))
    for name in ("home", "tmp", "outside"):
        (folder / name).mkdir()
    for name in ("home", "outside"):
        (folder / name / "important.txt").write_text("mine")
    return folder


def fit(*more: object, command: str = "fit", recipe: str = "dpo.yaml") -> list[str]:
    """The recipe on the tiny model, with further flags."""
    options = [f"--{name}={value}" for name, value in RECIPE.items()]
    return [command, f"--config={CONFIGS / recipe}", *options, *QUICK, *map(str, more)]


def infer(*more: object, model: str = "model") -> list[str]:
    """A question to the model."""
    return ["infer", "--model", model, "--instruction", "hi", "--max_new_tokens", "2", *map(str, more)]


def flags(name: str, code: int, *more: object, said: Iterable[str] = (), **options: Any) -> Case:
    """`fit` with further flags."""
    return Case(name, lambda _: fit(*more), code, tuple(said), **options)


def overlay(name: str, code: int, text: str | bytes, *more: object, said: Iterable[str] = (), **options: Any) -> Case:
    """`fit` with a second config of this text."""

    def build(place: Path) -> list[str]:
        (place / "over.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return fit("--config=over.yaml", *more)

    return Case(name, build, code, tuple(said), **options)


def rows(name: str, code: int, content: Any, *more: object, said: Iterable[str] = (), file: str = "rows.jsonl",
         command: str = "check-data", **options: Any) -> Case:  # fmt: skip
    """`check-data`, which says what `fit` says, on a file: text, bytes, rows, or a function that makes it."""

    def build(place: Path) -> list[str]:
        path = place / file
        if callable(content):
            content(path)
        elif isinstance(content, list):
            json_lines(path, content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        if command == "fit":
            return fit(f"--data.train={file}", *more)
        return [command, file, *map(str, more)]

    return Case(name, build, code, tuple(said), **options)


def model(name: str, code: int, change: Callable[[Path], Any], *, args: list[str] | None = None,
          said: Iterable[str] = (), stage: str = "S1", **options: Any) -> Case:  # fmt: skip
    """`infer`, or another command, on a model folder that a function has changed."""

    def build(place: Path) -> list[str]:
        change(place / "model")
        return args or infer()

    return Case(name, build, code, tuple(said), stage, **options)


def change(file: str, **changes: Any) -> Callable[[Path], None]:
    """A function that changes keys of a JSON file of a model."""
    return lambda folder: tiny_models.change_json(folder / file, **changes)


def write(file: str, content: str | bytes) -> Callable[[Path], None]:
    """A function that writes a file of a model."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / file).write_bytes(data) and None


TWINS = {
    "infer": infer,
    "fit": lambda: fit("--trainer.max_steps=1"),
    "logger": lambda: fit(
        "--trainer.max_steps=1", "--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=run"
    ),
    "lora": lambda: fit("--trainer.max_steps=1", "--model.policy.lora.r=2"),
    "check-data": lambda: ["check-data", "train.jsonl", "--eval", "eval.jsonl"],
    "export": lambda: ["export", "--model", "model", "--out", "out"],
    "convert": lambda: ["convert", "--input", "train.jsonl", "--output", "out.jsonl"],
    "doctor": lambda: ["doctor", *fit()[1:]],
    "evaluate": lambda: [
        "evaluate",
        "--model",
        "model",
        "--data",
        "eval.jsonl",
        "--output",
        "out.json",
        "--no_generate",
    ],
}
"""Harmless commands, by name: what they do, a hostile one may do as well."""


class Stand:
    """Runs cases, each in a folder of its own; what their harmless twins do is found once."""

    def __init__(self, root: Path) -> None:
        """Start the server; `root` takes the folders of the cases."""
        (root / "scratch").mkdir()
        self._root, self.template, self._count = root, make_template(root / "template"), 0
        self.server = CaseServer(root / "scratch")
        self._twins: dict[str, list[str]] = {}
        self.close = self.server.close

    def place(self) -> Path:
        """A new folder with copies of the model and the rows."""
        self._count += 1
        return Path(shutil.copytree(self.template, self._root / str(self._count), symlinks=True))

    def run(self, case: Case) -> list[str]:
        """Run a case, and return what is wrong with what came of it."""
        place = self.place()
        args = case.build(place)
        before = snapshot(place)
        done = self.server.run(args, place, case.seconds, case.stdin, **SECRETS, **case.env)
        twin = self._twin_events(case.twin or args[0])
        wrong = [*judge(case, done, twin), *find_changes(case, before, snapshot(place)), *find_secrets(place, done)]
        wrong += case.check(place) if done.code == 0 else []
        shutil.rmtree(place)
        return wrong

    def _twin_events(self, name: str) -> list[str]:
        if name not in self._twins and name in TWINS:
            shutil.rmtree(self.run_twin(name, lambda _: TWINS[name]()))
        return self._twins.get(name, [])

    def run_twin(self, name: str, build: Callable[[Path], list[str]]) -> Path:
        """Run a harmless command, whose events cases may have that name it as their twin; return its folder."""
        place = self.place()
        done = self.server.run(build(place), place, **SECRETS)
        assert done.code == 0, done
        assert not find_secrets(place, done)
        self._twins[name] = [event for event in done.events if not is_own(event)]
        return place


def judge(case: Case, done: Done, twin: list[str]) -> list[str]:
    """What is wrong with a command's end: its exit code, its message, what it did and loaded."""
    said, lines = done.out + done.err, done.err.strip().splitlines()
    good = done.code not in FAULTS and (done.code or 0) >= 0 if case.code == ANY else done.code == case.code
    wrong = [] if good else [f"exit code {done.code} in place of {case.code}:\n{said[-3000:]}"]
    if done.code and good:
        wrong += [f"{len(lines)} lines"] if len(lines) > MOST_LINES else []
        wrong += [] if lines and lines[0].startswith("error: ") else [f"no error first: {done.err[:300]}"]
        wrong += [] if any(line.startswith("fix: ") for line in lines) else [f"no fix: {done.err[-300:]}"]
        more = sorted({*done.loaded} - {*STAGES[case.stage]})
        wrong += [f"loaded before the refusal: {more}"] if more else []
    wrong += [f"{words!r} is not said: {said[:1500]}" for words in case.said if words not in said]
    wrong += [f"noise {noise}: {said[:1500]}" for noise in NOISE if noise in said]
    wrong += [f"control characters: {said[:1500]!r}"] if CONTROL.search(said) else []
    more = sorted({event for event in done.events if not is_own(event)} - {*twin})
    return wrong + ([f"events beyond its twin's: {more[:10]}"] if more else [])


def is_own(event: str) -> bool:
    """Whether an event is a change within the output folder, or within one that is renamed to it."""
    return OWN.fullmatch(event.split(" ", 1)[-1]) is not None


def find_changes(case: Case, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Files that a command changed, made or removed, outside of the output folder, or anywhere if it was refused.

    Rows that are encoded stay encoded, where something else is wrong.
    """
    changed = sorted(name for name in {*before, *after} if before.get(name, 0) != after.get(name, 0))
    free = (
        ("run/", "encoded/", "grid/", "out", ".out")
        if case.code in (0, ANY) or case.stage == "S3"
        else ("encoded/",)
        if case.stage != "S0"
        else ()
    )
    kept = [name for name in changed if not name.startswith(free)]
    return [f"changed: {kept[:10]}"] if kept else []


def find_secrets(place: Path, done: Done) -> list[str]:
    """Files and outputs that hold the canary."""
    files = [path for path in place.rglob("*") if path.is_file() and path.stat().st_size < 1 << 24]
    found = [str(path) for path in files if CANARY.encode() in path.read_bytes()]
    return [f"a secret in {found or 'the output'}"] if found or CANARY in done.out + done.err else []


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
