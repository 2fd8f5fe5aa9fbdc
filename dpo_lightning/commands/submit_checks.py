"""Checks of a command before it is sent to a cluster: those of the command itself, up to its weights."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_lightning import cli
from dpo_lightning.commands import sweep
from dpo_lightning.commands.precompute import PrecomputeCLI
from dpo_lightning.commands.row_options import take_columns
from dpo_lightning.config.overrides import find_dropped_options
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.runs.run_folder import RunFolder
from dpo_lightning.sweeps.grid import make_points

UNSAID = (None, "auto", 1, "1", -1, "-1")
"""Values of `trainer.devices` and `trainer.num_nodes` that leave the number to the job."""


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        name: what the job may be called.
        points: of a sweep, otherwise 0.
        finished: whether the run has nothing left to do.
    """

    name: str
    points: int = 0
    finished: bool = False


class CheckCLI(cli.PreferenceCLI):
    """A CLI with the options of `fit` and its relatives that checks the folder and the rows, and stops there."""

    checked: Checked | None = None
    processes = (1, 1)
    gpus = 0
    """Nodes of the job, processes on each, and GPUs of each."""

    arguments: Sequence[str] = ()
    """The options on the command line."""

    def before_instantiate_classes(self) -> None:
        """Check the folder and the numbers of processes."""
        config = self.config[self.subcommand]
        for line in find_dropped_options(self.config_files, config):
            logger.warning(line)
        for name, value in zip(("num_nodes", "devices"), CheckCLI.processes, strict=True):
            given = config.trainer.get(name)
            if given in (*UNSAID, value, str(value)):
                continue
            option = "--nodes" if name == "num_nodes" else "--gpus or --processes"
            if not any(word.partition("=")[0] == f"--trainer.{name}" for word in CheckCLI.arguments):
                logger.warning(
                    f"trainer.{name}: {given} in the config gives way to {value} of the job ({option} of submit)"
                )
                continue
            what = Problem(f"{given} contradicts {value} of the job", f"trainer.{name}")
            raise UserError(ExitCode.CONFIG, what, fix=f"leave it out: {option} of submit sets it")
        accelerator = str(config.trainer.get("accelerator"))
        if accelerator in ("gpu", "cuda") and CheckCLI.gpus == 0:
            what = Problem(f"accelerator={accelerator}, but the job has no GPU", "trainer.accelerator")
            raise UserError(ExitCode.CONFIG, what, fix="--gpus 1, or --trainer.accelerator cpu")
        self.folder = RunFolder(config.output_dir)
        if self.subcommand == "fit":
            self.folder.check(fresh=config.fresh, again=self.earlier is not None, ckpt_path=config.ckpt_path)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Create no trainer, since this machine lacks the devices of the cluster."""
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        """Check and encode the rows, which the job then finds."""
        self.datamodule.run_folder = self.folder.path
        nodes, each = CheckCLI.processes
        stage = subcommand if subcommand in ("validate", "test", "predict") else "fit"
        self.datamodule.prepare(stage, self.model, nodes * each)
        CheckCLI.checked = Checked(self.folder.path.name)


class CheckPrecomputeCLI(CheckCLI, PrecomputeCLI):
    """The same for `precompute`."""


def check(command: str, arguments: Sequence[str], nodes: int, processes: int, gpus: int) -> Checked:
    """Run the checks of a command as far as they need no weights.

    Args:
        command: of this package.
        arguments: its options.
        nodes: of the job.
        processes: on each node.
        gpus: on each node.

    Raises:
        UserError: as the command itself would end.
    """
    if command == "evaluate":
        return check_evaluate(arguments)
    if command == "sweep":
        return check_sweep(arguments, gpus)
    CheckCLI.checked, CheckCLI.processes, CheckCLI.gpus, CheckCLI.arguments = None, (nodes, processes), gpus, arguments
    with placed():
        cli.main([command, *arguments], CheckPrecomputeCLI if command == "precompute" else CheckCLI)
    return CheckCLI.checked or Checked(command, finished=True)


def check_evaluate(arguments: Sequence[str]) -> Checked:
    """Check the options of `evaluate`, the folder of the model, and the rows."""
    from dpo_lightning.commands import evaluate
    from dpo_lightning.evaluation.held_out import read_held_out
    from dpo_lightning.runs.checkpoint_model import open_model

    rest, columns = take_columns(list(arguments))
    options = evaluate.make_options(evaluate.make_parser().parse_args(rest), columns)
    open_model(options.model).spec.config()
    read_held_out(options.data, options.kind, options.read)
    return Checked(f"evaluate-{Path(options.output).stem}")


def check_sweep(arguments: Sequence[str], gpus: int) -> Checked:
    """Check the options of every point of a sweep, as far as they are known, and the rows of the first."""
    options, rest = sweep.make_parser().parse_known_args(sweep.join_evaluate(arguments))
    sweep.check_options(options, rest)
    points = []
    if options.engine == "grid":
        points = make_points({words[0]: words[1:] for words in options.over}, options.seeds)
        with contextlib.redirect_stdout(io.StringIO()):
            sweep.main([*arguments, "--dry_run"])
    folder = Path(options.output_dir)
    configs = [word for path in options.config for word in ("--config", path)]
    unused = f"--output_dir={folder.parent / f'.{folder.name}.unused'}"
    check("fit", [*configs, *rest, *(points[0].flags() if points else ()), unused], 1, 1, gpus)
    return Checked(folder.name, points=len(points))


@contextlib.contextmanager
def placed() -> Iterator[None]:
    """Let several nodes count as launched together, as srun does for the job."""
    before = os.environ.get("MASTER_ADDR")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["MASTER_ADDR"]
