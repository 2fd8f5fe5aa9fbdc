"""All cases of bad inputs and hostile files, and seeded mutations of sound files: prints `N of N` for each part.

Usage: python tests/reliability/campaign_hostile.py [--mutations N] [--mutated] [--seed SEED] [--only WORD]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import bad_files_cases  # noqa: E402
import bad_options_cases  # noqa: E402
import bad_rows_cases  # noqa: E402
import hostile_adapters  # noqa: E402
import hostile_configs  # noqa: E402
import hostile_models  # noqa: E402
import hostile_templates  # noqa: E402
import mutated_files  # noqa: E402
from support.cases import Case, Stand  # noqa: E402

HOSTILE = (hostile_configs, hostile_models, hostile_templates, hostile_adapters)
PARTS = {
    "hostile files": [case for part in HOSTILE for case in getattr(part, "ALL", part.CASES)],
    "bad inputs": [*bad_rows_cases.CASES, *bad_files_cases.CASES, *bad_options_cases.ALL],
}


def run_part(stand: Stand, name: str, cases: Iterable[Case]) -> bool:
    """Run cases and print what is wrong with each, then how many are right."""
    right = count = 0
    for case in cases:
        wrong = stand.run(case)
        right, count = right + (not wrong), count + 1
        for line in wrong:
            print(f"{name}: {case.name}: {line}", flush=True)
    print(f"{name}: {right} of {count}", flush=True)
    return right == count


def main() -> int:
    """Run all parts; the exit code is 1 if anything is wrong."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mutations", type=int, default=400)
    options.add_argument("--mutated", action="store_true", help="only the mutations")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="cases whose name, or mutated files whose pattern, has this word")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as root:
        stand = Stand(Path(root))
        good = []
        if not args.mutated:
            good += [run_part(stand, name, [c for c in cases if args.only in c.name]) for name, cases in PARTS.items()]
        mutated_files.make_sound_files(stand)
        changed = mutated_files.mutations(stand, args.mutations, args.seed, args.only)
        good.append(run_part(stand, "mutated files", changed))
        stand.close()
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
