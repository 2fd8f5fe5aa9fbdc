"""`Runner`: trains and evaluates the points that are not done, several at a time, and survives its own end."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dpo_lightning.atomic_files import move_aside
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.references.logp_store import locked
from dpo_lightning.stopping import raise_if_requested, requested
from dpo_lightning.sweeps.manifest import FILE, Manifest, replace_manifest
from dpo_lightning.sweeps.marks import POINTS, Mark, PointFiles
from dpo_lightning.sweeps.processes import (
    POLL,
    REPORT_EVERY,
    follow,
    last_line,
    signals_ignored,
    slot_environment,
    start,
    stop,
)
from dpo_lightning.sweeps.slots import Slot, Steps, Task

KEPT = "points that are done are kept, and what the others have saved"
"""What a sweep that stops has saved."""


@dataclass
class Runner:
    """Works on points in a sweep's folder.

    Attributes:
        folder: of the sweep.
        program: the words that begin every command.
        jobs: points at a time.
        keep_checkpoints: whether checkpoints of points that are done are kept.
    """

    folder: Path
    program: Sequence[str]
    jobs: int = 1
    keep_checkpoints: bool = False
    durations: list[float] = field(default_factory=list)

    def files(self, task: Task) -> PointFiles:
        """Return the files of a point."""
        return PointFiles(self.folder, task.point.name)

    def is_done(self, task: Task) -> bool:
        """Whether a point is trained, and evaluated with the options and rows of this command."""
        mark = self.files(task).read_mark()
        return mark.state == "done" and mark.evaluated == task.evaluated

    def fit_command(self, task: Task) -> list[str]:
        """Return the command that trains a point."""
        return [*self.program, "fit", *task.fit, f"--output_dir={self.files(task).run}"]

    def evaluate_command(self, task: Task) -> list[str]:
        """Return the command that evaluates a trained point."""
        files = self.files(task)
        named = ["--model", str(files.model), "--output", str(files.run / "eval.json")]
        return [*self.program, "evaluate", *named, *task.evaluate]

    def steps(self, task: Task) -> Steps:
        """Iterate over the commands of a point, from where an earlier process left it."""
        files = self.files(task)
        if not files.model.is_dir():
            code = yield "fit", self.fit_command(task)  # continues what an earlier process left
            if code == ExitCode.INPUT_MISSING and "checkpoint" in last_line(files.log, error=True):  # all are damaged
                shutil.rmtree(files.run, ignore_errors=True)
                code = yield "fit", self.fit_command(task)
            if code or not files.model.is_dir():
                return failure("fit", code, files)
        files.win_rate.unlink(missing_ok=True)  # of answers that may change now
        code = yield "evaluate", self.evaluate_command(task)
        if code == ExitCode.OUTPUT:  # there are results of other rows or options
            code = yield "evaluate", [*self.evaluate_command(task), "--fresh"]
        if code or not files.summary.is_file():
            return failure("evaluate", code, files)
        if not self.keep_checkpoints:
            shutil.rmtree(files.run / "checkpoints", ignore_errors=True)
        return Mark("done", evaluated=task.evaluated)

    def run(self, tasks: Sequence[Task]) -> None:
        """Work on all points that are not done; a failed one does not stop the others.

        Raises:
            Stopped: a signal or a time limit; all points have ended at a step or row that they continue from.
        """
        if not tasks:
            return
        waiting = deque(task for task in tasks if not self.is_done(task))
        todo, slots = len(waiting), dict[int, Slot]()
        logger.info(f"sweep: {len(tasks) - todo} of {len(tasks)} points are done")
        try:
            reported, stopping = time.monotonic(), False
            while (waiting and not stopping) or slots:
                for number in (number for number in range(self.jobs) if number not in slots and waiting):
                    if not stopping and (slot := self.begin(number, waiting.popleft())) is not None:
                        slots[number] = slot
                time.sleep(POLL)
                if requested() and not stopping:
                    stopping = True
                    for slot in slots.values():
                        slot.pass_on()
                for slot in [slot for slot in slots.values() if not self.advance(slot)]:
                    del slots[slot.number]
                    self.report_end(slot, len(tasks), len(waiting) + len(slots))
                if time.monotonic() - reported >= REPORT_EVERY:
                    reported = time.monotonic()
                    self.report_progress(list(slots.values()))
        finally:
            with signals_ignored():
                stop(slot.process for slot in slots.values() if slot.process is not None)
                for slot in slots.values():
                    slot.leave()
        raise_if_requested(KEPT)

    def begin(self, number: int, task: Task) -> Slot | None:
        """Claim a point and start its first command; None if another process works on it or has done it."""
        files, claim = self.files(task), ExitStack()
        if not claim.enter_context(files.claim()):
            claim.close()
            logger.info(f"sweep: {task.point.name}: another process works on it")
            return None
        if self.is_done(task):
            claim.close()
            return None
        slot = Slot(number, task, files, self.steps(task), claim, time.monotonic())
        return slot if self.proceed(slot, None) else None

    def advance(self, slot: Slot) -> bool:
        """Look after a point; whether there is more to do for it."""
        code = slot.process.poll() if slot.process is not None else 0
        if code is None:
            return True
        slot.process = None
        return self.proceed(slot, code)

    def proceed(self, slot: Slot, code: int | None) -> bool:
        """Start a point's next command, or write its final mark; whether a command runs."""
        try:
            stage, command = next(slot.steps) if code is None else slot.steps.send(code)
        except StopIteration as end:
            if end.value.state == "failed" and requested():  # a later start goes on with it
                slot.leave()
                return False
            slot.files.write_mark(end.value)
            slot.claim.close()
            return False
        if requested():
            slot.leave()
            return False
        if stage != slot.stage:
            logger.info(f"sweep: {slot.task.point.name}: {stage} (log: {slot.files.log})")
        slot.stage = stage
        slot.process = start(command, slot.files.log, slot_environment(slot.number, self.jobs))
        slot.files.write_mark(Mark.running(stage))
        return True

    def report_end(self, slot: Slot, total: int, left: int) -> None:
        """Log how a point ended, how many are left, and the time that they will take."""
        mark = slot.files.read_mark()
        self.durations.append(time.monotonic() - slot.began)
        if mark.state == "missing":
            logger.info(f"sweep: {slot.task.point.name}: stopped")
            return
        if mark.state == "failed":
            logger.warning(f"sweep: {slot.task.point.name} failed in {mark.stage}: {mark.error}")
        minutes = sum(self.durations) / len(self.durations) * -(-left // self.jobs) / 60
        ahead = f", about {minutes:.0f} min left" if left else ""
        logger.info(f"sweep: {slot.task.point.name}: {mark.state}; {left} of {total} points to go{ahead}")

    def report_progress(self, slots: Sequence[Slot]) -> None:
        """Log the last line of each running command, and show other machines that this one is at work."""
        for slot in slots:
            os.utime(slot.files.mark)
            logger.info(f"sweep: {slot.task.point.name}: {slot.stage}: {last_line(slot.files.log) or 'starting'}")

    def precompute(self, arguments: Sequence[str], file: Path) -> None:
        """Compute the reference's log-probabilities once; other processes wait meanwhile.

        Args:
            arguments: of `precompute`, without the file.
            file: the result.

        Raises:
            UserError: the command failed.
        """
        log = self.folder / "reference.log"
        (self.folder / POINTS).mkdir(parents=True, exist_ok=True)
        with locked(self.folder / POINTS):
            if file.is_file() and not file.with_name(f"{file.name}.parts").exists():
                return
            logger.info(f"sweep: the reference's log-probabilities, once for all points (log: {log})")
            process = start(self.precompute_command(arguments, file), log, os.environ)
            code = follow(process, lambda: logger.info(f"sweep: precompute: {last_line(log) or 'starting'}"))
            raise_if_requested(KEPT)
            if code:
                known = ExitCode(code) if code in ExitCode.__members__.values() else ExitCode.IO
                what = last_line(log, error=True).removeprefix("error: ")
                raise UserError(known, what or f"precompute ended with {code}", fix=f"see {log}; or --no_precompute")

    def precompute_command(self, arguments: Sequence[str], file: Path) -> list[str]:
        """Return the command that computes the reference's log-probabilities."""
        return [*self.program, "precompute", *arguments, f"--output_dir={self.folder / 'reference'}", f"--out={file}"]

    def describe_precompute(self, arguments: Sequence[str], file: Path) -> str:
        """Return the command for the reference as a line for a shell."""
        return shlex.join(self.precompute_command(arguments, file))

    def move_changed_aside(self, wanted: Manifest, reference: Path) -> None:
        """Rename the folders of points whose config differs from the manifest, remove their marks, and write it anew.

        Args:
            wanted: the manifest of this command.
            reference: the file of the reference, which is removed if any config has changed.

        Raises:
            UserError: 73, another process works on such a point.
        """
        if not (self.folder / FILE).exists():
            return
        changed = wanted.changes(Manifest.read(self.folder / FILE))
        for name in changed:
            files = PointFiles(self.folder, name)
            with files.claim() as free:
                if not free:
                    what = Problem("another process works on the point", "output_dir", str(files.run))
                    raise UserError(ExitCode.OUTPUT, what, fix="wait until it ends, or --output_dir NAME")
                files.mark.unlink(missing_ok=True)
                if files.run.exists():
                    logger.info(f"sweep: {name} has changed: its folder is now {move_aside(files.run)}")
        if changed:
            reference.unlink(missing_ok=True)
            shutil.rmtree(reference.with_name(f"{reference.name}.parts"), ignore_errors=True)
        replace_manifest(self.folder, wanted)

    def dry_run(self, tasks: Sequence[Task]) -> Iterator[str]:
        """Iterate over the commands of all points that are not done, as lines for a shell."""
        for task in (task for task in tasks if not self.is_done(task)):
            if not self.files(task).model.is_dir():
                yield shlex.join(self.fit_command(task))
            yield shlex.join(self.evaluate_command(task))


def failure(stage: str, code: int, files: PointFiles) -> Mark:
    """Return the mark of a point whose command failed, with the last error line of its log."""
    error = last_line(files.log, error=True).removeprefix("error: ")
    if code < 0:
        error = f"ended by signal {-code}"
    return Mark("failed", stage, error or f"{stage} left no result", code)
