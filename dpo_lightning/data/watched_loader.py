"""`WatchedLoader`: a loader that does not wait for its workers for ever, and names the rows they were preparing."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from dpo_lightning.data.resumable_loader import TrainingLoader
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.signals import shield_worker, starting_workers

PATIENCE = 120
"""How many times in a row a batch may take longer than `SECONDS`. It is counted in parts, so that a run that was
suspended as a whole for hours, by Ctrl-Z or with the machine, is not ended when it wakes up.
"""

SECONDS = 5.0
"""The limit of the loader, after which its workers are looked at. A handler of torch notices a killed one at once,
unless an earlier run in the same process has removed it.
"""

START = 12
"""After how many such times workers that have given no batch are started again, once. A process that is forked beside
threads may find a lock taken for ever; batches do not depend on how often their preparation begins.
"""

KEY = "data.num_workers"


class WatchedLoader(DataLoader[Any]):
    """A loader that raises an error if its workers were killed, or prepare no batch for ten minutes."""

    def __iter__(self) -> Any:
        """Iterate over the batches; the workers start here."""
        batches = self._start()
        return self._watch(batches) if self.num_workers else batches

    def _start(self) -> Any:
        with starting_workers() if self.worker_init_fn is shield_worker else nullcontext():
            return super().__iter__()

    def _watch(self, batches: Any) -> Iterator[Any]:
        waited, first = 0, True
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                text = str(error)
                if text.startswith("DataLoader timed out") and waited + 1 < PATIENCE:
                    waited += 1
                    if first and waited == START:
                        batches, first = self._start_again(batches), False
                    continue
                if not text.startswith("DataLoader"):
                    raise
                raise self._end(batches) from error
            waited, first = 0, False
            yield batch

    def _start_again(self, batches: Any) -> Any:
        logger.warning(f"no batch came within {START * SECONDS:.0f} s: the workers that prepare them are started again")
        end_workers(batches._workers)
        self._iterator = None
        return self._start()

    def _end(self, batches: Any) -> UserError:
        """Kill the workers, also those that are stopped and would not end by themselves, and make the error."""
        workers, waiting = batches._workers, min(batches._task_info, default=0)
        (number, *_) = batches._task_info.get(waiting, (0,))
        worker = workers[number]
        states = {place: describe_process(other.pid) for place, other in enumerate(workers) if other.pid is not None}
        end_workers(workers)
        ended = [place for place, state in states.items() if state == "has ended"]
        if ended and number not in ended:
            number = ended[0]
            worker = workers[number]
            waiting = min((task for task, (of, *_) in batches._task_info.items() if of == number), default=waiting)
        state = states.get(number, "has ended")
        how = f", killed by signal {-worker.exitcode}" if state == "has ended" and (worker.exitcode or 0) < 0 else ""
        what = f"worker {number} (process {worker.pid}), which prepares batches, {state}{how}"
        return UserError(
            ExitCode.IO,
            Problem(what, KEY, self._name_rows(waiting)),
            fix="--data.num_workers 0 prepares batches without workers; the system kills processes if memory is short",
        )

    def _name_rows(self, task: int) -> str:
        """Return `file:line` of the rows of a batch, by its number since the loader began to iterate."""
        rows: Any = self.dataset
        batch: list[int] = next(islice(iter(self.sampler), task, None), [])
        return ", ".join(str(rows.rows[max(row, ~row)].origin) for row in batch)


class WatchedTrainingLoader(WatchedLoader, TrainingLoader):
    """The same for training."""


def end_workers(workers: Sequence[Any]) -> None:
    """Kill processes, also those that are stopped and would not end by themselves."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for each
    try:
        for worker in workers:
            worker.kill()
            worker.join()
    finally:
        signal.signal(signal.SIGCHLD, handler)


def describe_process(pid: int) -> str:
    """Describe what a process of this machine does, as far as `/proc` shows it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        state = "X"
    return {"X": "has ended", "Z": "has ended", "T": "is stopped", "t": "is stopped"}.get(state, "does not answer")
