"""A program with the commands that a sweep starts, which takes a moment: training and evaluation by arithmetic.

`python fake_program.py COMMAND ...` writes what the real command would. A file `fail-NAME` or `hang-NAME` in the
current folder makes the training of a point fail, or wait until it is killed or stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

ROWS = 40


def main(argv: list[str]) -> int:
    """Run a command; every call is a line in `calls.txt`."""
    with Path("calls.txt").open("a", encoding="utf-8") as file:
        file.write(
            json.dumps([*argv, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")]) + "\n"
        )
    command, rest = argv[0], argv[1:]
    flags = dict(word.removeprefix("--").split("=", 1) for word in rest if word.startswith("--") and "=" in word)
    commands = {"fit": fit, "precompute": precompute, "evaluate": evaluate, "compare": compare}
    return commands[command](flags, rest)


def fit(flags: dict[str, str], _: list[str]) -> int:
    """Train: leave a checkpoint, then a model that holds the flags."""
    folder = Path(flags["output_dir"])
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    if Path(f"hang-{folder.name}").exists():
        (folder / "checkpoints/last.ckpt").write_text("half")
        print("step 1 of 2", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: stop_at_step(folder))
        time.sleep(600)
    if Path(f"fail-{folder.name}").exists():
        print("error: the loss became NaN\nfix: a smaller learning rate", flush=True)
        return 76
    (folder / "final_model").mkdir()
    (folder / "final_model/flags.json").write_text(json.dumps(flags))
    return 0


def stop_at_step(folder: Path) -> None:
    """Stop as `fit` does: with a checkpoint and exit code 75."""
    (folder / "checkpoints/last.ckpt").write_text("step 1")
    print("error: stopped by SIGTERM: step 1 is saved", flush=True)
    sys.exit(75)


def precompute(flags: dict[str, str], _: list[str]) -> int:
    """Write the reference's file."""
    Path(flags["out"]).write_text("reference")
    return 0


def evaluate(_: dict[str, str], rest: list[str]) -> int:
    """Evaluate: KL falls with beta, and more rows are ranked right the smaller beta is."""
    options = argparse.ArgumentParser()
    for name in ("model", "output", "reference"):
        options.add_argument(f"--{name}")
    options.add_argument("--data", nargs="+")
    options.add_argument("--max_new_tokens", type=int, default=8)
    options.add_argument("--fresh", action="store_true")
    args, _ = options.parse_known_args(rest)
    trained = Path(args.model) / "flags.json"
    flags = json.loads(trained.read_text()) if trained.exists() else {}
    beta, seed = float(flags.get("model.loss.beta", 0.1)), int(flags.get("seed_everything", 0))
    output = Path(args.output)
    if output.exists() and not args.fresh:
        print("error: the file holds results of other options")
        return 73
    right = round(ROWS * (0.55 + 0.1 * (beta < 0.3) + 0.2 * (beta < 0.02))) + seed % 2
    items = [{"logratio_margin": 0.1 if place < right else -0.1, "generated": "x"} for place in range(ROWS)]
    output.write_text(json.dumps(items))
    drift = 0.01 / beta * (1 + 0.1 * (seed % 3))

    def measure(value: float, reach: float) -> dict[str, float]:
        return {"estimate": value, "low": value - reach, "high": value + reach, "count": ROWS}

    measures = {
        "accuracy/reward": measure(right / ROWS, 0.15),
        "kl/held_out/token": measure(drift, 0.1 * drift),
        "kl/generated/token": measure(2 * drift, 0.2 * drift),
        "length/tokens": {"estimate": args.max_new_tokens, "low": None, "high": None, "count": ROWS},
    }
    Path(str(output).removesuffix(".json") + ".summary.json").write_text(
        json.dumps({"format": 1, "measures": measures})
    )
    return 0


def compare(_: dict[str, str], rest: list[str]) -> int:
    """Compare: every model wins half against the last one."""
    if Path("fail-compare").exists():
        print("error: the judge is down\nfix: start it", flush=True)
        return 75
    models, output = rest[: rest.index("--judge")], Path(rest[rest.index("--output") + 1])
    if len(models) > 26:
        print(f"error: {len(models)} models are given\nfix: give 2 to 26 of them", flush=True)
        return 64
    rate = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    pairs = [{"a": name, "b": models[-1], "rate": rate} for name in models[:-1]]
    output.write_text(json.dumps({"models": [{"name": name} for name in models], "comparisons": pairs}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
