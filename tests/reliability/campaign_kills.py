"""Runs that are killed at random moments and continued by the same command, compared with runs that were left alone.

    python tests/reliability/campaign_kills.py --kills 100

Each recipe is trained once without a disturbance, then again and again, killed by SIGKILL at random moments, saves and
start-up included, and continued until it ends. Final weights, optimizer state, `metrics.json` and the curves have to be
equal, to the bit. The last line says `N of N`.
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
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from support.disturbed_runs import LONGEST, RECIPES, make_command, save_models, start, write_into  # noqa: E402
from support.run_results import find_difference, read_run  # noqa: E402


def disturb(name: str, folder: Path, models: dict[str, Path], kills: int, seed: int) -> str:
    """Kill a recipe's run at random moments; return how it differs from one that was left alone, or nothing."""
    folder.mkdir()
    base, draw = make_command(RECIPES[name], folder, models), random.Random(f"{seed} {name}")
    began = time.monotonic()
    if (code := start(write_into(base, "whole"), folder / "whole.log").wait(LONGEST)) != 0:
        return f"undisturbed: exit code {code}"
    length = time.monotonic() - began
    killed = 0
    while True:
        process = start(write_into(base, "cut"), folder / "cut.log")
        try:
            # The later part: a killed start-up, which takes most of the time, changes nothing.
            code = process.wait(draw.uniform(0.4, 1.1) * length if killed < kills else LONGEST)
        except subprocess.TimeoutExpired:
            killed += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            continue
        if code != 0:
            return f"after {killed} kills: exit code {code}"
        if difference := find_difference(read_run(folder / "whole"), read_run(folder / "cut")):
            return f"after {killed} kills: {difference}"
        if killed >= kills:
            return ""
        shutil.rmtree(folder / "cut")


def main() -> int:
    """Run the campaign and print what came of each recipe."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=104, help="in all recipes together")
    options.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    each, good = -(-args.kills // len(args.recipes)), 0
    with tempfile.TemporaryDirectory(prefix="campaign-") as place:
        folder = Path(place)
        models = save_models(folder)
        for name in args.recipes:
            difference = disturb(name, folder / name, models, each, args.seed)
            good += not difference
            print(f"{name}: {each} kills: {difference or 'identical'}", flush=True)
            if difference:
                print((folder / name / "cut.log").read_text()[-2000:])
    print(f"{good * each} of {each * len(args.recipes)} kills: {good} of {len(args.recipes)} recipes identical")
    return int(good < len(args.recipes))


if __name__ == "__main__":
    sys.exit(main())
