"""`measure_win_rates`: the answers of each point against the reference's, as a judge decides between them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.errors import ExitCode
from dpo_lightning.json_files import read_json
from dpo_lightning.log import logger
from dpo_lightning.stopping import raise_if_requested
from dpo_lightning.sweeps.manifest import file_identity, identify
from dpo_lightning.sweeps.marks import PointFiles
from dpo_lightning.sweeps.processes import follow, last_line, start
from dpo_lightning.sweeps.results import damage_reported
from dpo_lightning.sweeps.runner import KEPT, Runner
from dpo_lightning.sweeps.slots import Task

REFERENCE_ANSWERS = "reference_answers.json"
LOG = "win_rates.log"
IMPLICIT, OF_PAIRS, NO_JUDGE = "implicit", "llm", "none"
MOST_COMPARED = 25
"""Points of a comparison, to which the reference is added: `compare` takes 26 models."""


@dataclass(frozen=True)
class JudgeChoice:
    """Who judges.

    Attributes:
        kind: `implicit`, `reward_model`, `llm` or `none`.
        model: its model; None lets points judge each other by their implicit rewards.
    """

    kind: str
    model: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Points whose answers one command compares with the reference's.

    Attributes:
        points: their files.
        model: the judge's model.
        output: the comparison.
        inputs: digest of all that the win rates depend on.
    """

    points: Sequence[PointFiles]
    model: str
    output: Path
    inputs: str

    @property
    def is_done(self) -> bool:
        """Whether all points have their win rates."""
        return all(read_inputs(each) == self.inputs for each in self.points)


def measure_win_rates(runner: Runner, tasks: Sequence[Task], judge: JudgeChoice) -> None:
    """Write `win_rate.json` into the folder of each point that is done; a failure is logged and ends nothing.

    Win rates of other answers, or by another judge, are removed first, also where nothing is judged.

    Args:
        runner: of the sweep.
        tasks: its points.
        judge: who judges.
    """
    done = [task for task in tasks if runner.is_done(task)]
    comparisons = plan_comparisons(runner, done, judge)
    wanted = {each.name: comparison.inputs for comparison in comparisons for each in comparison.points}
    for files in map(runner.files, tasks):
        if files.win_rate.exists() and read_inputs(files) != wanted.get(files.name):
            files.win_rate.unlink()
    left = [comparison for comparison in comparisons if not comparison.is_done]
    if not left:
        return
    reference, answers = find_reference(done[0]), runner.folder / REFERENCE_ANSWERS
    if not run(runner, ["evaluate", "--model", reference, "--output", str(answers), *evaluate_alone(done[0])]):
        return
    for comparison in left:
        whose = comparison.points[0].name if len(comparison.points) == 1 else f"{len(comparison.points)} points"
        logger.info(f"sweep: win rate of {whose}, judged by {comparison.model} ({judge.kind})")
        judging = ["--judge", judge.kind, "--judge_model", comparison.model]
        judging += ["--judge_reference", reference] if judge.kind == IMPLICIT else []
        models = [*(str(each.run / "eval.json") for each in comparison.points), str(answers)]
        if not run(runner, ["compare", *models, *judging, "--output", str(comparison.output)]):
            return
        keep_rates(comparison, describe(judge, comparison.model))


def plan_comparisons(runner: Runner, done: Sequence[Task], judge: JudgeChoice) -> list[Comparison]:
    """Return who judges which points; empty where nobody can.

    Without a judge's model, the point in the middle judges the others, and the next one judges it: no point judges
    itself. Points were trained on the same rows, so such a win rate says whether a model answers as these rows prefer.

    A judge that scores answers scores each once, so that many points share a comparison. One that reads two answers
    would read those of each two points, of which only those against the reference are needed.
    """
    files = [runner.files(task) for task in done]
    references = {find_reference(task) for task in done}
    few = judge.model is None and len(done) < 2
    if judge.kind == NO_JUDGE or len(references) != 1 or few or not all(map(has_answers, files)):
        return []
    plans = [(files, judge.model)]
    if judge.model is None:
        middle = (len(files) - 1) // 2
        others = [each for each in files if each is not files[middle]]
        plans = [(others, str(files[middle].model)), ([files[middle]], str(files[middle + 1].model))]
    size = 1 if judge.kind == OF_PAIRS else MOST_COMPARED
    groups = [(points[at : at + size], str(model)) for points, model in plans for at in range(0, len(points), size)]
    comparisons = []
    for number, (points, model) in enumerate(groups, 1):
        place = points[0].run / "comparison.json" if size == 1 else runner.folder / f"comparison-{number}.json"
        summaries = [file_identity(each.summary) for each in points]
        judged = [judge.kind, model, identify(Path(model))]
        comparisons.append(Comparison(points, model, place, digest_of([done[0].evaluated, judged, summaries])))
    return comparisons


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
    with damage_reported(files.win_rate):
        return str(read_json(files.win_rate).get("inputs", "")) if files.win_rate.is_file() else ""


def keep_rates(comparison: Comparison, judge: str) -> None:
    """Write each point's rate against the last model of a comparison, which is the reference."""
    content = read_json(comparison.output)
    names = [model["name"] for model in content["models"]]
    found = {pair["a"]: pair["rate"] for pair in content["comparisons"] if pair["b"] == names[-1]}
    for each, name in zip(comparison.points, names, strict=False):
        if found.get(name) is not None:
            with open_atomic(each.win_rate) as file:
                json.dump({**found[name], "judge": judge, "inputs": comparison.inputs}, file)


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
