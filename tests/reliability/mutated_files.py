"""Sound files of every kind that a command reads, the commands that read them, and seeded mutations of each."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hostile_adapters import adapter
from mutations import MUTATIONS
from support.cases import ANY, CONFIGS, Case, Stand, fit, infer, write_json
from support.command_line import pairs

EVALUATE = ["evaluate", "--model", "model", "--reference", "none", "--data", "eval.jsonl", "--batch_size", "2",
            "--max_new_tokens", "2", "--output"]  # fmt: skip
COMPARE = ["compare", "a.json", "b.json", "--judge", "implicit", "--judge_model", "run/final_model",
           "--output", "out.json"]  # fmt: skip
REPORT = ["sweep", "--output_dir", "grid", "--report"]
REFERENCE = ("--model.reference=Precomputed", "--model.reference.path=reference.safetensors")
ONE, TWO = "--trainer.max_steps=1", "--trainer.max_steps=2"
KEEP = (
    "import sys; from dpo_lightning.evaluation.work_file import WorkFolder as W; W.remove = lambda _: None; "
    "from dpo_lightning.__main__ import main; sys.exit(main(sys.argv[1:]))"
)
"""A program that leaves the rows of an evaluation as one does that is killed at its end."""

NEW = ("--output_dir=out", "--data.cache=encoded")
TRAINED = "final_model/model.safetensors"


@dataclass(frozen=True)
class Subject:
    """A kind of file.

    Attributes:
        files: a pattern of the files, one of which is changed.
        command: what reads them.
        ways: names of mutations, from `MUTATIONS`.
        result: a file that is the same as without the mutation, if the command ends with 0; empty where the file
            is an input, by which the result changes rightly.
        prepare: makes the file out of those that are there, before it is changed.
    """

    files: str
    command: list[str]
    ways: tuple[str, ...] = ("bytes",)
    result: str = ""
    prepare: Callable[[Path], object] = lambda place: None


def table(name: str) -> Callable[[Path], object]:
    """A function that writes the rows as another format."""

    def write(place: Path) -> None:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
        import yaml

        rows, path = pairs(8), place / name
        columns = pyarrow.table({key: [row[key] for row in rows] for key in rows[0]})
        if name.endswith("csv"):
            pyarrow.csv.write_csv(columns, path)
        elif name.endswith("parquet"):
            pyarrow.parquet.write_table(columns, path)
        elif name.endswith("arrow"):
            with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, columns.schema) as writer:
                writer.write_table(columns)
        elif name.endswith("yaml"):
            path.write_text(yaml.safe_dump(rows))
        elif name.endswith("gz"):
            import gzip

            path.write_bytes(gzip.compress((place / "train.jsonl").read_bytes()))
        else:
            shutil.make_archive(str(path.with_suffix("")), "zip", place, "train.jsonl")

    return write


def rows(name: str, *ways: str) -> Subject:
    """A file of rows."""
    return Subject(name, ["check-data", name], ways or ("bytes",), prepare=table(name))


def of_model(name: str, *ways: str) -> Subject:
    """A file of a model folder."""
    return Subject(f"model/{name}", infer(), ways)


def of_run(name: str, *ways: str) -> Subject:
    """A file of a run, which goes on for a second step."""
    return Subject(f"run/{name}", fit(TWO), ways, f"run/{TRAINED}")


def drop_manifest(place: Path) -> None:
    """Leave the checkpoint to speak for itself."""
    (place / "run" / "checkpoints" / "manifest.json").unlink()


def copy_checkpoint(place: Path) -> None:
    """A checkpoint without the run that wrote it."""
    shutil.copy(place / "run" / "checkpoints" / "last.ckpt", place / "x.ckpt")


def copy_config(place: Path) -> None:
    """A config that is laid over the others."""
    shutil.copy(CONFIGS / "dpo.yaml", place / "over.yaml")


def interrupt(place: Path) -> None:
    """The rows of an evaluation that was interrupted before it wrote its output."""
    (place / ".work.json.work").rename(place / ".out.json.work")


SUBJECTS = [
    Subject("train.jsonl", ["check-data", "train.jsonl"], ("bytes", "lines")),
    rows("rows.csv"),
    rows("rows.parquet"),
    rows("rows.arrow"),
    rows("rows.yaml", "bytes", "yaml"),
    rows("rows.jsonl.gz"),
    rows("rows.zip"),
    of_model("config.json", "bytes", "json", "json", "json"),
    of_model("tokenizer.json", "bytes", "json", "json", "json"),
    of_model("tokenizer_config.json", "bytes", "json", "json"),
    of_model("generation_config.json", "bytes", "json"),
    of_model("chat_template.jinja", "bytes"),
    of_model("model.safetensors", "bytes", "safetensors"),
    Subject("adapter/adapter_config.json", infer(model="adapter"), ("bytes", "json", "json"), prepare=adapter()),
    Subject("adapter/adapter_model.safetensors", infer(model="adapter"), ("bytes", "safetensors"), prepare=adapter()),
    Subject("over.yaml", ["fit", "--config=over.yaml", *fit(ONE, *NEW)[2:]], ("bytes", "yaml", "yaml"),
            prepare=copy_config),
    of_run("checkpoints/last.ckpt", "bytes", "checkpoint"),
    of_run("checkpoints/manifest.json", "bytes", "json"),
    of_run("config.yaml", "bytes", "yaml"),
    of_run("metrics.json", "bytes", "json"),
    of_run("final_model/*.json", "bytes", "json"),
    of_run("final_model/model.safetensors", "bytes"),
    replace(of_run("checkpoints/last.ckpt", "bytes"), prepare=drop_manifest),
    replace(of_run("checkpoints/last.ckpt", "checkpoint"), prepare=drop_manifest, result=""),
    Subject("x.ckpt", fit(TWO, *NEW, "--ckpt_path=x.ckpt"), ("bytes", "checkpoint", "checkpoint"),
            prepare=copy_checkpoint),
    Subject("encoded/*/manifest.json", fit(ONE, *NEW), ("bytes", "json"), f"out/{TRAINED}"),
    Subject("encoded/*/*/*", fit(ONE, *NEW), ("bytes",), f"out/{TRAINED}"),
    Subject("encoded/files.json", fit(ONE, *NEW), ("bytes", "json"), f"out/{TRAINED}"),
    Subject("reference.safetensors", fit(ONE, *NEW, *REFERENCE), ("bytes", "safetensors"), f"out/{TRAINED}"),
    Subject("a.json", COMPARE, ("bytes", "json")),
    Subject("a.summary.json", COMPARE, ("bytes", "json", "json")),
    Subject(".out.json.work/*.json*", [*EVALUATE, "out.json"], ("bytes", "lines", "lines"), "out.json",
            prepare=interrupt),
    Subject("grid/manifest.json", REPORT, ("bytes", "json")),
    Subject("grid/points/*.status.json", REPORT, ("bytes", "json")),
    Subject("grid/points/*/eval.summary.json", REPORT, ("bytes", "json", "json")),
    Subject("grid/points/*/eval.json", REPORT, ("bytes", "json")),
    Subject("grid/points/*/win_rate.json", REPORT, ("bytes", "json")),
    Subject("grid/points/*/tensorboard/*", REPORT, ("bytes",)),
]  # fmt: skip
"""All kinds."""


def make_sound_files(stand: Stand) -> None:
    """Add a run, its encoded rows, a reference, evaluations and a sweep to the folder that every case is a copy of."""
    place = stand.template
    for command in (
        fit(ONE),
        ["precompute", *fit(*REFERENCE, "--data.cache=none")[1:]],
        [*EVALUATE, "a.json"],
        [*EVALUATE, "b.json"],
    ):
        done = stand.server.run(command, place, 120)
        assert done.code == 0, done
    subprocess.run([sys.executable, "-c", KEEP, *EVALUATE, "work.json"], cwd=place, check=True, capture_output=True)
    make_grid(place)
    for name in ("home", "tmp"):
        for path in (place / name).iterdir():
            if path.name != "important.txt":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_grid(place: Path) -> None:
    """A sweep of two points that are done, with the evaluations that are there."""
    from dpo_lightning.sweeps.grid import make_points
    from dpo_lightning.sweeps.manifest import Manifest, settle
    from dpo_lightning.sweeps.marks import Mark, PointFiles

    points = make_points({"model.loss.beta": ["0.1", "0.5"]}, [])
    folder = place / "grid"
    settle(folder, Manifest(points, [{"model.loss.beta": 0.1}, {"model.loss.beta": 0.5}]))
    for point, name in zip(points, ("a", "b"), strict=True):
        files = PointFiles(folder, point.name)
        shutil.copytree(place / "run", files.run)
        for ending in (".json", ".summary.json"):
            shutil.copy(place / f"{name}{ending}", files.run / f"eval{ending}")
        rate = {"estimate": 0.5, "low": 0.25, "high": 0.75, "judge": "implicit reward", "inputs": "x"}
        write_json(files.run / "win_rate.json", rate)
        files.write_mark(Mark("done", evaluated="x"))


def mutation(subject: Subject, way: str, seed: float) -> Callable[[Path], list[str]]:
    """A function that changes a file in a folder and returns the command that reads it."""

    def build(place: Path) -> list[str]:
        chance = random.Random(seed)
        subject.prepare(place)
        file = chance.choice(sorted(path for path in place.glob(subject.files) if path.is_file()))
        file.write_bytes(MUTATIONS[way](file.read_bytes(), chance))
        return subject.command

    return build


def mutations(stand: Stand, count: int, seed: int, only: str = "") -> Iterator[Case]:
    """Cases of mutated files, as many of each kind: any exit code will do that is none of a bug.

    Where the result may not depend on the file, as on a checkpoint that is damaged, it is compared.
    """
    chance = random.Random(seed)
    sound: dict[int, str] = {}
    for number in range(count):
        which = number % len(SUBJECTS)
        subject, way, made = SUBJECTS[which], "", chance.random()
        way = chance.choice(subject.ways)
        if only not in subject.files:
            continue
        twin = f"sound {which}"
        if which not in sound:
            place = stand.run_twin(twin, lambda place, subject=subject: (subject.prepare(place), subject.command)[1])
            sound[which] = digest(place / subject.result) if subject.result else ""
            shutil.rmtree(place)

        def check(place: Path, subject: Subject = subject, expected: str = sound[which]) -> list[str]:
            same = not expected or digest(place / subject.result) == expected
            return [] if same else [f"{subject.result} is not that of the sound file"]

        name = f"mutation {number} of {subject.files} ({way}): {' '.join(subject.command)[:40]}"
        yield Case(name, mutation(subject, way, made), ANY, stage="S3", twin=twin, check=check)


def digest(path: Path) -> str:
    """A digest of a file; empty if it is missing."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
