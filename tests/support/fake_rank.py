"""A program in place of this package's, for tests of job scripts: `python fake_rank.py MODE`, as each task of a job.

wait: until a signal comes, then exit 75; from the second attempt on, exit 0 at once.
again: exit 75 at once. unready: as wait, but the signal ends the process. CODE: exit with it.
late: as wait, but rank 0 ends 4 seconds after the others.
"""

from __future__ import annotations

import os
import signal
import sys
import time

RANK, ATTEMPT = int(os.environ["SLURM_PROCID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
LONGEST = 120


def main(mode: str) -> int:
    """Do what the mode says, and return the exit code."""
    came: list[int] = []
    if mode != "unready":
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, lambda number, _: came.append(number))
    print(f"rank {RANK} begins attempt {ATTEMPT}", flush=True)
    if mode.isdecimal():
        return int(mode)
    if mode == "again":
        return 75
    if ATTEMPT > 1:
        return 0
    end = time.monotonic() + LONGEST
    while not came and time.monotonic() < end:
        time.sleep(0.05)
    if mode == "late" and RANK == 0:
        time.sleep(4)
    print(f"rank {RANK} is stopped by {signal.Signals(came[0]).name}", flush=True)
    return 75


if __name__ == "__main__":
    sys.exit(main(sys.argv[-1]))
