"""`sweep`: a run for each combination of values, each evaluated, and a report that compares them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import check_output_path
from dpo_lightning.log import logger

if TYPE_CHECKING:
    from dpo_lightning.sweeps.grid import Point
    from dpo_lightning.sweeps.manifest import Manifest
    from dpo_lightning.sweeps.plan import Resolved
    from dpo_lightning.sweeps.runner import Runner
from dpo_lightning.sweeps.slots import Task

PROGRAM = [sys.executable, "-m", "dpo_lightning"]
JUDGES = ("implicit", "reward_model", "llm", "none")
REFERENCE_FILE = "reference.safetensors"
DATE = "data.template_date"
EPILOG = "Further options are those of `fit` and hold for all points, such as --trainer.max_steps 100."


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command's options."""
    options = RaisingArgumentParser(
        "python -m dpo_lightning sweep", description=__doc__, epilog=EPILOG, allow_abbrev=False
    )
    add = options.add_argument
    add("--config", action="append", default=[], metavar="FILE", help="the config of fit; may be repeated")
    add(
        "--over",
        nargs="+",
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="a key of the config and its values",
    )
    add("--seeds", nargs="+", type=int, default=[], help="values of seed_everything, each for every combination")
    add("--output_dir", required=True, metavar="FOLDER", help="the sweep's folder")
    add(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="points at a time, each on a GPU of its own where there are several",
    )
    add("--point", metavar="I", help="work on point I alone (from 1); auto takes it from a Slurm array")
    add("--eval_data", nargs="+", default=[], metavar="FILE", help="held-out rows; default: data.eval of the config")
    add("--evaluate", default="", metavar="OPTIONS", help="options of `evaluate` as one text: '--max_new_tokens 64'")
    add("--kl", choices=("held_out", "generated"), default="held_out", help="tokens over which the drift is measured")
    add("--judge", choices=JUDGES, default="implicit", help="of answers against the reference's; none: no win rates")
    add("--judge_model", metavar="PATH", help="model of the judge; default for implicit: another point of the sweep")
    add("--engine", choices=("grid", "optuna"), default="grid", help="optuna chooses values of --over KEY LOW..HIGH")
    add("--trials", type=int, default=20, metavar="N", help="points that Optuna tries in all")
    add("--no_precompute", action="store_true", help="let each point compute its own reference")
    add("--keep_checkpoints", action="store_true", help="keep checkpoints of points that are done")
    add("--fresh", action="store_true", help="move points aside whose config has changed; the others are kept")
    add("--dry_run", action="store_true", help="print the commands of what is missing; write nothing")
    add("--report", action="store_true", help="only write the report of what is there")
    return options


def main(argv: list[str]) -> int:
    """Run what is missing of a sweep, write its report, and return the exit code."""
    options, arguments = make_parser().parse_known_args(join_evaluate([word for word in argv if word != "--"]))
    check_options(options, arguments)
    from dpo_lightning.sweeps.manifest import FILE, Manifest
    from dpo_lightning.sweeps.runner import Runner

    folder = Path(options.output_dir)
    if options.report:
        show_report(folder, Manifest.read(folder / FILE), options.kl)
        return 0
    arguments = [*(word for path in options.config for word in ("--config", path)), *arguments]
    runner = Runner(folder, PROGRAM, options.jobs, options.keep_checkpoints)
    over = {words[0]: words[1:] for words in options.over}
    if options.engine == "optuna":
        return search_points(options, arguments, runner, over)
    from dpo_lightning.sweeps.grid import make_points
    from dpo_lightning.sweeps.win_rates import JudgeChoice, measure_win_rates

    points = make_points(over, options.seeds)
    number = point_number(options.point, len(points)) if options.point else None
    chosen = [points[number - 1]] if number else points
    manifest, tasks = carry_out(options, arguments, runner, points, [point.name for point in chosen], {})
    if options.dry_run:
        return 0
    if not number or all(map(runner.is_done, tasks)):
        measure_win_rates(runner, tasks, JudgeChoice(options.judge, options.judge_model))
        show_report(folder, manifest, options.kl)
    check_failures(runner, [task for task in tasks if task.point in chosen])
    return 0


def carry_out(
    options: argparse.Namespace,
    arguments: list[str],
    runner: Runner,
    points: Sequence[Point],
    chosen: Sequence[str],
    known: dict[str, Resolved],
) -> tuple[Manifest, list[Task]]:
    """Settle the manifest of all points and run those that are chosen, or print their commands.

    Args:
        options: of the command.
        arguments: of `fit`, for all points.
        runner: of the sweep.
        points: all of them.
        chosen: names of the points to run.
        known: configs that have been resolved before; it is added to.
    """
    manifest, tasks, reference = prepare(options, arguments, runner, points, known)
    here = [task for task in tasks if task.point.name in chosen]
    file = runner.folder / REFERENCE_FILE
    if all(map(runner.is_done, here)):
        reference = []
    if options.dry_run:
        if reference and not file.exists():
            print(runner.describe_precompute(reference, file))
        print("\n".join(runner.dry_run(here)))
        return manifest, tasks
    if reference:
        runner.precompute(reference, file)
    runner.run(here)
    return manifest, tasks


def search_points(options: argparse.Namespace, arguments: list[str], runner: Runner, over: dict[str, list[str]]) -> int:
    """Let Optuna choose points until it has tried as many as wanted, write the report, and return the exit code."""
    from dpo_lightning.sweeps.grid import make_points
    from dpo_lightning.sweeps.results import ACCURACY, collect
    from dpo_lightning.sweeps.search import open_study, parse_space, search, to_texts

    def make_point(overrides: dict[str, str]) -> Point:
        return make_points({key: [text] for key, text in overrides.items()}, [])[0]

    space, study = parse_space(over), open_study(runner.folder)
    tried = [make_point(to_texts(trial.params)) for trial in study.trials if trial.params.keys() == space.keys()]
    points = {point.name: point for point in tried}
    known: dict[str, Resolved] = {}

    def evaluate(overrides: list[dict[str, str]]) -> list[float | None]:
        new = [make_point(one) for one in overrides]
        points.update({point.name: point for point in new})
        names = [point.name for point in new]
        manifest, _ = carry_out(options, arguments, runner, list(points.values()), names, known)
        records = {record.point.name: record for record in collect(runner.folder, manifest)}
        found = [records[name].measures.get(ACCURACY) for name in names]
        return [None if accuracy is None else accuracy.estimate for accuracy in found]

    search(study, space, options.trials, options.jobs, evaluate)
    manifest, tasks = carry_out(options, arguments, runner, list(points.values()), [], known)
    show_report(runner.folder, manifest, options.kl)
    if not any(map(runner.is_done, tasks)):
        check_failures(runner, tasks)
    return 0


def join_evaluate(words: Sequence[str]) -> list[str]:
    """Join `--evaluate` and its value by `=`: argparse would take a value such as `--no_generate` for an option."""
    following = iter(words)
    return [f"{word}={next(following, '')}" if word == "--evaluate" else word for word in following]


def check_options(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Refuse options that do not fit together.

    Raises:
        UserError: 64, as described.
    """
    check_output_path(options.output_dir, "--output_dir", "--output_dir outputs/sweep")
    problems = []
    if not options.report and not options.config:
        problems.append(Problem("a config is needed", "--config"))
    if not options.report and not options.over and not options.seeds:
        problems.append(Problem("nothing is swept", "--over"))
    problems += [Problem("a key without values", f"--over {words[0]}") for words in options.over if len(words) < 2]
    if options.engine == "optuna" and (options.seeds or options.point or options.dry_run):
        problems.append(Problem("Optuna chooses points one after the other", "--seeds, --point, --dry_run"))
    keys = [words[0] for words in options.over]
    problems += [
        Problem("the key is given twice", f"--over {key}") for key in {key for key in keys if keys.count(key) > 1}
    ]
    if options.judge in ("reward_model", "llm") and not options.judge_model:
        problems.append(Problem(f"the judge {options.judge} needs a model", "--judge_model"))
    least = {"--jobs": options.jobs, "--trials": options.trials}
    problems += [Problem("expected 1 or more", name, str(value)) for name, value in least.items() if value < 1]
    if arguments and not arguments[0].startswith("--"):
        problems.append(Problem("not an option of fit", text=arguments[0]))
    if problems:
        raise UserError(ExitCode.CONFIG, problems, fix="--config configs/dpo.yaml --over model.loss.beta 0.01 0.1 0.5")


def prepare(
    options: argparse.Namespace,
    arguments: list[str],
    runner: Runner,
    points: Sequence[Point],
    known: dict[str, Resolved],
) -> tuple[Manifest, list[Task], list[str]]:
    """Read the config of every point, settle the manifest, and return the points' commands; see `carry_out`.

    Returns:
        The manifest, the tasks, and the arguments of `precompute`, empty where points compute their own reference.
    """
    from dpo_lightning.commands.point_configs import resolve, split_evaluate
    from dpo_lightning.data.cache.cache_choice import AUTO, DEFAULT
    from dpo_lightning.sweeps.grid import plain_key
    from dpo_lightning.sweeps.manifest import FILE, Manifest, describe_config, settle
    from dpo_lightning.sweeps.plan import keeps_reference, make_tasks

    folder = runner.folder
    resolved = resolve(points, arguments, known)
    configs = [describe_config(one.config) for one in resolved]
    if configs[0].get(DATE) is None:  # all points have the same date, on whatever day they are run
        there = Manifest.read(folder / FILE).configs[0] if (folder / FILE).exists() else {}
        day = there.get(DATE) or date.today().isoformat()
        arguments = [*arguments, f"--{DATE}={day}"]
        configs = [config | {DATE: day} for config in configs]
        resolved = [one.with_date(day) for one in resolved]
    if configs[0].get("data.cache") == AUTO:  # the folder of the runs beside the sweep
        arguments = [*arguments, f"--data.cache={folder.parent / DEFAULT}"]
    tasks = make_tasks(points, resolved, arguments, options.eval_data, split_evaluate(options.evaluate))
    looks_up = [one.looks_up and not options.no_precompute for one in resolved]
    reference = []
    if keeps_reference([plain_key(words[0]) for words in options.over]) and any(looks_up):
        flags = ["--model.reference=Precomputed", f"--model.reference.path={folder / REFERENCE_FILE}"]
        reference = tasks[looks_up.index(True)].fit
        tasks = [
            replace(task, fit=[*task.fit, *flags]) if known else task
            for task, known in zip(tasks, looks_up, strict=True)
        ]
    manifest = Manifest(list(points), configs)
    if not options.dry_run:
        if options.fresh:
            runner.move_changed_aside(manifest, folder / REFERENCE_FILE)
        settle(folder, manifest, extend=not options.point)
    return manifest, tasks, reference


def point_number(text: str, count: int) -> int:
    """Return the number of the point that `--point` names, from 1.

    Raises:
        UserError: 64, it is no number of a point.
    """
    named = os.environ.get("SLURM_ARRAY_TASK_ID", "") if text == "auto" else text
    if not named.isdecimal() or not 1 <= int(named) <= count:
        what = Problem(f"expected a number from 1 to {count}", "--point", named or text)
        raise UserError(ExitCode.CONFIG, what, fix=f"--point 1, or --point auto in a Slurm array (--array=1-{count})")
    return int(named)


def show_report(folder: Path, manifest: Manifest, kl: str) -> None:
    """Write the report and print its table."""
    from dpo_lightning.sweeps.report import make_report, to_terminal, write_report
    from dpo_lightning.sweeps.results import KL

    report = make_report(folder, manifest, KL[kl])
    write_report(folder, report)
    for line in to_terminal(report):
        logger.info(line)
    logger.info(f"report: {folder / 'index.html'}")


def check_failures(runner: Runner, tasks: Sequence[Task]) -> None:
    """Raise if points have failed or are not done.

    Raises:
        UserError: with the exit code and the last error line of each failed point; 75 if a point is not done because
            another process works on it.
    """
    marks = {task.point.name: runner.files(task).read_mark() for task in tasks if not runner.is_done(task)}
    failed = {name: mark for name, mark in marks.items() if mark.state == "failed"}
    if failed:
        problems = [
            Problem(mark.error, runner.folder.joinpath("points", f"{name}.log").as_posix())
            for name, mark in failed.items()
        ]
        first = next(iter(failed.values())).code
        code = next((known for known in ExitCode if known == first), ExitCode.IO)  # killed, as where memory ends
        raise UserError(code, problems, fix="correct the cause and run the same command again: done points are kept")
    if marks:
        raise UserError(
            ExitCode.RESUMABLE,
            [Problem("the point is not done: another process works on it", name) for name in marks],
            fix="wait for it, or run the same command again later",
        )
