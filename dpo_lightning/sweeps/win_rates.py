"""`measure_win_rates`: the answers of each point against the reference's, as a judge decides between them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.errors import ExitCode
from dpo_lightning.json_files import read_json
from dpo_lightning.log import logger
from dpo_lightning.stopping import raise_if_requested
from dpo_lightning.sweeps.manifest import file_identity
from dpo_lightning.sweeps.marks import PointFiles
from dpo_lightning.sweeps.processes import follow, last_line, start
from dpo_lightning.sweeps.results import damage_reported
from dpo_lightning.sweeps.runner import KEPT, Runner
from dpo_lightning.sweeps.slots import Task

FILE = "win_rate.json"
REFERENCE_ANSWERS = "reference_answers.json"
LOG = "win_rates.log"
IMPLICIT, NO_JUDGE = "implicit", "none"


@dataclass(frozen=True)
class JudgeChoice:
    """Who judges.

    Attributes:
        kind: `implicit`, `reward_model`, `llm` or `none`.
        model: its model; None lets points judge each other by their implicit rewards.
    """

    kind: str
    model: str | None = None


def measure_win_rates(runner: Runner, tasks: Sequence[Task], judge: JudgeChoice) -> None:
    """Write `win_rate.json` into the folder of each point that is done; a failure is logged and ends nothing.

    Without a judge's model, the point in the middle judges the others, and the next one judges it: no point judges
    itself. Points were trained on the same rows, so such a win rate says whether a model answers as these rows prefer.

    Args:
        runner: of the sweep.
        tasks: its points.
        judge: who judges.
    """
    done = [task for task in tasks if runner.is_done(task)]
    references = {find_reference(task) for task in done}
    if judge.kind == NO_JUDGE or len(references) != 1 or (judge.model is None and len(done) < 2):
        return
    (reference,) = references
    files = [runner.files(task) for task in done]
    if not all(has_answers(each) for each in files):
        return
    plans = [(files, judge.model)]
    if judge.model is None:
        middle = (len(files) - 1) // 2
        others = [each for each in files if each is not files[middle]]
        plans = [(others, str(files[middle].model)), ([files[middle]], str(files[middle + 1].model))]
    answers = runner.folder / REFERENCE_ANSWERS
    for number, (several, model) in enumerate(plans, 1):
        output = runner.folder / f"comparison-{number}.json"
        inputs = digest_of([done[0].evaluated, judge.kind, model, [file_identity(each.summary) for each in several]])
        if all(read_inputs(each) == inputs for each in several):
            continue
        logger.info(f"sweep: win rates of {len(several)} points, judged by {model} ({judge.kind})")
        judging = ["--judge", judge.kind, "--judge_model", str(model)]
        judging += ["--judge_reference", reference] if judge.kind == IMPLICIT else []
        models = [str(each.run / "eval.json") for each in several]
        commands = [
            ["evaluate", "--model", reference, "--output", str(answers), *evaluate_alone(done[0])],
            ["compare", *models, str(answers), *judging, "--output", str(output)],
        ]
        if not all(run(runner, command) for command in commands):
            return
        keep_rates(several, read_json(output), describe(judge, str(model)), inputs)


def describe(judge: JudgeChoice, model: str) -> str:
    """Name a judge: a point of the sweep by its name, another model by its path or URL."""
    name = model if judge.model is not None else Path(model).parent.name
    return f"implicit reward of {name}" if judge.kind == IMPLICIT else f"{judge.kind} {name}"


def find_reference(task: Task) -> str:
    """Return the model with which `evaluate` compares a point."""
    return task.evaluate[task.evaluate.index("--reference") + 1]


def evaluate_alone(task: Task) -> list[str]:
    """Return the arguments of `evaluate` for a model without a reference, on the same rows."""
    place = task.evaluate.index("--reference") + 1
    return [*task.evaluate[:place], "none", *task.evaluate[place + 1 :]]


def has_answers(files: PointFiles) -> bool:
    """Whether a point has generated answers."""
    path = files.run / "eval.json"
    with damage_reported(path):
        items = read_json(path)
        return bool(items) and "generated" in items[0]


def read_inputs(files: PointFiles) -> str:
    """Return the digest of what a point's win rate was made of; empty without one."""
    path = files.run / FILE
    with damage_reported(path):
        return str(read_json(path).get("inputs", "")) if path.is_file() else ""


def keep_rates(files: Sequence[PointFiles], comparison: dict[str, Any], judge: str, inputs: str) -> None:
    """Write each point's rate against the last model of a comparison, which is the reference."""
    names = [model["name"] for model in comparison["models"]]
    found = {pair["a"]: pair["rate"] for pair in comparison["comparisons"] if pair["b"] == names[-1]}
    for each, name in zip(files, names, strict=False):
        if found.get(name) is not None:
            with open_atomic(each.run / FILE) as file:
                json.dump({**found[name], "judge": judge, "inputs": inputs}, file)


def run(runner: Runner, command: Sequence[str]) -> bool:
    """Run a command of this package, and once more with `--fresh` where its output is of other inputs."""
    log = runner.folder / LOG
    for more in ([], ["--fresh"]):
        code = follow(start([*runner.program, *command, *more], log, os.environ))
        raise_if_requested(KEPT)
        if code != ExitCode.OUTPUT:
            break
    if code:
        logger.warning(f"sweep: no win rates: {last_line(log, error=True).removeprefix('error: ')} (log: {log})")
    return not code
