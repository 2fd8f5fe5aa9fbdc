"""Runs of two processes that get SIGTERM or SIGUSR1, one after the other, at random moments of each stage.

    python tests/reliability/campaign_signals.py --signals 100

Each process gets the signal, the second up to 200 ms after the first, in either order; some workers get it too. Half
of the runs are started by Lightning, half by a launcher that starts each process itself, as `srun` does. After each
signal all processes have to end with exit code 75, and the checkpoints have to be whole; the same command then
continues. A run that has ended has to equal one that was left alone: weights, optimizer state, `metrics.json` and
curves, to the bit. The last line says `N of N`, with the longest time from the second signal to the end.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from support.disturbed_runs import LONGEST, TWO_RANKS, Recipe, make_command, save_models, start  # noqa: E402
from support.run_results import find_difference, read_run  # noqa: E402
from support.two_ranks import free_port  # noqa: E402

from dpo_lightning.folder_names import CHECKPOINTS  # noqa: E402
from dpo_lightning.runs.checkpoint_files import find_damage, read_manifest  # noqa: E402

STAGES = {
    "start-up": ("", 4.0),
    "reference": ("reference: computing", 0.5),
    "training": ("self-check: ", 3.0),
    "evaluation": ("evaluating: ", 0.3),
    "the end": ("training: step 64 of 64", 0.3),
}
"""Name of a stage -> what a run prints when it begins, and the longest time in seconds from then to the signal."""

RECIPE = Recipe(
    "dpo",
    "llama",
    (*TWO_RANKS, "--model.reference=Precomputed", "--trainer.val_check_interval=2", "--data.num_workers=1"),
)


class Outcome(NamedTuple):
    """What came of a signal: an exit code of each process, and the seconds from the signal to the end."""

    codes: list[int]
    seconds: float


class Run:
    """The processes of a run, and what they print."""

    def __init__(self, command: list[str], log: Path, external: bool) -> None:
        """Start them, by Lightning or one by one."""
        self.log, self._began = log, log.stat().st_size if log.exists() else 0
        self.processes = [start(command, log)] if not external else []
        if external:
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
            self.processes = [start(command, log, {**shared, "LOCAL_RANK": str(rank)}) for rank in range(2)]

    def printed(self) -> str:
        """Return what these processes have printed."""
        with self.log.open("rb") as file:
            file.seek(self._began)
            return file.read().decode(errors="replace")

    def wait_for(self, text: str) -> bool:
        """Wait until a text is printed; False if the run ends before."""
        while text not in self.printed():
            if any(process.poll() is not None for process in self.processes):
                return False
            time.sleep(0.01)
        return True

    def find_ranks(self) -> list[int]:
        """Return the process ids of all ranks that run by now."""
        ids = [process.pid for process in self.processes]
        children = [Path(f"/proc/{number}/task/{number}/children").read_text().split() for number in ids]
        ranks = [int(child) for several in children for child in several if is_rank(int(child))]
        return [*ids, *ranks]

    def signal_all(self, number: signal.Signals, draw: random.Random) -> Outcome:
        """Send a signal to each rank, up to 200 ms apart in random order, and wait for the end."""
        ranks = self.find_ranks()
        draw.shuffle(ranks)
        for place, rank in enumerate(ranks):
            time.sleep(draw.uniform(0, 0.2) if place else 0)
            try:
                os.kill(rank, number)
            except ProcessLookupError:
                continue  # the first signal has ended both
        began = time.monotonic()
        codes = self.wait()
        return Outcome(codes, time.monotonic() - began)

    def wait(self) -> list[int]:
        """Wait for the end; what does not end is killed."""
        try:
            return [process.wait(LONGEST) for process in self.processes]
        except subprocess.TimeoutExpired:
            for process in self.processes:
                os.killpg(process.pid, signal.SIGKILL)
            return [-signal.SIGKILL]


def is_rank(number: int) -> bool:
    """Whether a process is a rank that Lightning has started, and no worker of one."""
    try:
        variables = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
        command = Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False
    return b"LOCAL_RANK=1" in variables and b"dpo_lightning" in command


def find_fault(outcome: Outcome, folder: Path, text: str, stage: str) -> str:
    """Return what is wrong after a signal; empty if nothing is."""
    ended = set(outcome.codes) == {0}  # the signal came too late
    if set(outcome.codes) != {75} and not ended:
        return f"exit codes {outcome.codes}"
    if "Traceback" in text:
        return "a traceback"
    saved = "is saved" in text
    checkpoints = folder / CHECKPOINTS
    if not saved and not ended and stage == "start-up" and folder.exists() and not checkpoints.exists():
        return f"{folder} is left"
    entries = read_manifest(checkpoints) if checkpoints.exists() else {}
    for path in checkpoints.glob("*"):
        if path.suffix == ".ckpt" and (damage := find_damage(path, entries)):
            return f"{path} {damage}"
        if path.suffix == ".partial":
            return f"{path} is left"
    return ""


def main() -> int:
    """Run the campaign and print what came of each signal."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--signals", type=int, default=100, help="half SIGTERM, half SIGUSR1")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    draw, faults, slowest, where = random.Random(args.seed), 0, 0.0, Counter[str]()
    with tempfile.TemporaryDirectory(prefix="campaign-") as place:
        folder = Path(place)
        base = make_command(RECIPE, folder, save_models(folder), "--trainer.max_epochs=16")
        whole, cut = folder / "whole", folder / "cut"
        if (codes := Run([*base, "--output_dir=whole"], folder / "whole.log", False).wait()) != [0]:
            print(f"undisturbed: exit codes {codes}\n{(folder / 'whole.log').read_text()[-2000:]}")
            return 1
        expected, sent = read_run(whole), 0
        while sent < args.signals:
            stage = list(STAGES)[sent % len(STAGES)]
            number = (signal.SIGTERM, signal.SIGUSR1)[sent // len(STAGES) % 2]
            if stage == "reference":
                shutil.rmtree(folder / "outputs", ignore_errors=True)  # where it would be found
            text, longest = STAGES[stage]
            run = Run([*base, "--output_dir=cut"], folder / "cut.log", bool(draw.getrandbits(1)))
            came = run.wait_for(text)
            if came:
                time.sleep(draw.uniform(0, longest))
                outcome = run.signal_all(number, draw)
                if outcome.codes == [-number] * len(outcome.codes) and not run.printed():
                    print(f"{number.name} during {stage}: before Python ran, not counted", flush=True)
                    continue
                fault = find_fault(outcome, cut, run.printed(), stage)
                sent, slowest = sent + 1, max(slowest, outcome.seconds)
                where[stage] += 1
            else:
                codes = run.wait()
                fault = "" if set(codes) == {0} else f"exit codes {codes} before {stage}"
                outcome = Outcome(codes, 0.0)
            if not fault and set(outcome.codes) == {0}:
                fault = find_difference(expected, read_run(cut))
                shutil.rmtree(cut)
            if fault:
                faults += 1
                print(f"{number.name} during {stage}: {fault}\n{run.printed()[-3000:]}", flush=True)
                shutil.rmtree(cut, ignore_errors=True)
            elif came:
                last = [line for line in run.printed().splitlines() if line.startswith("error: ")] or ["it ended"]
                print(f"{number.name} during {stage}: {outcome.seconds:.1f} s, {last[-1]}", flush=True)
    print(f"{sent - faults} of {sent} signals ({dict(where)}), the slowest end after {slowest:.1f} s")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
