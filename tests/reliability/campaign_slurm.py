"""A job on two nodes of a private Slurm whose ranks get SIGUSR1 by `scancel --signal` at random moments.

    python tests/reliability/campaign_slurm.py --signals 10 [--sif dpo_lightning-cpu.sif]

After each signal both ranks have to end with exit code 75, no process of theirs may be left, and the job script has to
requeue the job, which goes on. A run that is finished has to equal one that was left alone, without Slurm on two ranks:
weights, optimizer state, `metrics.json` and curves, to the bit. The last line says `N of N`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from support.command_line import ROOT  # noqa: E402
from support.disturbed_runs import TWO_RANKS  # noqa: E402
from support.run_results import find_difference, read_run  # noqa: E402
from support.slurm_cluster import Cluster, find_obstacle  # noqa: E402
from support.slurm_jobs import ON_TWO_NODES, TWO_NODES, Workplace, run_here  # noqa: E402

EPOCHS = "--trainer.max_epochs=16"
PAUSE = 0.3
"""Seconds after each of 64 steps."""

STAGES = (("data: ", 25.0), ("self-check: ", 10.0))
"""What an attempt prints when a stage begins, and the longest time in seconds from then to the signal, in turn."""


def disturb_runs(place: Workplace, signals: int, seed: int) -> int:
    """Signal jobs until all signals are sent and every job has finished; return the number of faults."""
    draw, sent, faults, runs = random.Random(seed), 0, 0, 0
    run_here(place, place.fit("dpo", "whole", *TWO_RANKS, EPOCHS), "whole.log", ranks=2)
    expected = read_run(place.folder / "whole")
    while sent < signals:
        out, runs = f"cut-{runs}", runs + 1
        job = place.send(TWO_NODES, place.fit("dpo", out, *ON_TWO_NODES, EPOCHS), PAUSE)
        found = ""
        while sent < signals and not found:
            after, longest = STAGES[sent % len(STAGES)]
            found = place.disturb(job, draw, longest, after)
            if found == "late":
                break
            sent += 1
            if not found:
                place.wait_for_attempt(job)
            print(f"signal {sent}: {found or stopped_at(job.printed())}", flush=True)
        if not found or found == "late":
            place.finish(job, 600)
            found = find_difference(expected, read_run(place.folder / out))
            print(f"{out}: {found or 'equal to the run that was left alone'}", flush=True)
        else:
            place.cluster.run("scancel", job.number)
        if found:
            faults += 1
            print(job.printed()[-3000:], flush=True)
    return faults


def contain(sif: Path | None) -> list[str]:
    """Return how a process is started in a SIF; nothing without one."""
    if sif is None:
        return []
    return ["apptainer", "exec", "--bind", f"{ROOT}:{ROOT}:ro", str(sif.resolve()), "python", "-m", "dpo_lightning"]


def stopped_at(printed: str) -> str:
    """Return what the last stop has kept."""
    return [line for line in printed.splitlines() if line.startswith("error: stopped by")][-1]


def main() -> int:
    """Run the campaign."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--signals", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--sif", type=Path, help="both ranks run in it; the run that is left alone does not")
    args = options.parse_args()
    if obstacle := find_obstacle():
        print(f"0 of {args.signals} signals: {obstacle}")
        return 1
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        cluster = Cluster(Path(folder) / "slurm")
        runs = Path(folder) / "runs"
        runs.mkdir()
        try:
            cluster.start()
            faults = disturb_runs(Workplace(cluster, runs, contain(args.sif)), args.signals, args.seed)
        finally:
            cluster.stop()
    print(f"{args.signals - faults} of {args.signals} signals: exit code 75 on both ranks, requeued and finished")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
