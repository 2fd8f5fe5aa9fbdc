"""`python -m benchmarks NAME`: one command for each figure; JSON and a chart go to `outputs/benchmarks`.

`python -m benchmarks gpu` is a command of its own: what this package does on a GPU, part by part.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.workers import COMPARISONS
from dpo_lightning.errors import UserError

MODEL = "models/smollm2-135m-instruct"


def trl(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds and memory of steps, ours and TRL's in turn."""
    from benchmarks.against_trl import Plan, compare

    plan = Plan(options.model, options.rows, options.batch, options.steps, options.epochs, options.max_length)
    return compare(plan, options.comparisons.split(","), folder)


def sweep(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Five betas that share one reference pass against five runs of TRL, each with its live reference."""
    from benchmarks.against_trl import Plan, compare

    passes = 5 * options.epochs
    plan = Plan(options.model, options.rows, options.batch, options.steps, passes, options.max_length)
    return compare(plan, ["defaults-precomputed"], folder) | {"epochs_per_reference_pass": passes}


def share(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The share of the machine's matrix-product speed that a step reaches, in bf16 and in float32."""
    from benchmarks.step import share as measured

    rows = encoded(options, folder, options.batch * options.steps)
    return {
        name: measured(options.model, rows, options.batch, options.steps, bf16)
        for name, bf16 in (("bf16", True), ("fp32", False))
    }


def growth(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """How operations and seconds grow with pairs, responses and prompts."""
    from benchmarks.step import growth as measured

    return measured(options.model, options.steps, bf16=True)


def profile(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Where the time of a step goes."""
    from benchmarks.step import profiled

    return profiled(options.model, encoded(options, folder, options.batch), options.batch, bf16=True)


def ddp(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Two processes of one thread each against one."""
    from benchmarks.ddp import efficiency
    from benchmarks.rows import fitting_rows

    rows = folder / "rows.jsonl"
    count = 2 * options.batch * (options.steps + 1)
    counts = fitting_rows(options.model, options.rows, rows, options.max_length, count, seed=0)
    return {"rows": counts} | efficiency(options.model, rows, options.batch, options.max_length)


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Memory of each of two processes: with whole models (DDP), and with sharded ones (FSDP2)."""
    from benchmarks.rows import fitting_rows
    from benchmarks.sharded import memory as measured

    rows = folder / "rows.jsonl"
    count = 2 * options.batch * options.steps
    counts = fitting_rows(options.model, options.rows, rows, options.max_length, count, seed=0)
    return {"rows": counts} | measured(options.model, rows, options.batch, options.max_length, folder)


def data(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The start of a run as far as its first batch: by rows, with four ranks, and against TRL."""
    from benchmarks.data import Settings, compare

    plan = Settings("", options.model, "", "", "", options.batch, options.max_length)
    return compare(plan, options.rows, options.most, folder)


def encoded(options: argparse.Namespace, folder: Path, count: int) -> Any:
    """Rows as token ids."""
    from benchmarks.rows import fitting_rows, read_rows

    fitting_rows(options.model, options.rows, folder / "rows.jsonl", options.max_length, count, seed=0)
    return read_rows(options.model, folder / "rows.jsonl", options.max_length)


COMMANDS = {command.__name__: command for command in (trl, sweep, share, growth, profile, ddp, memory, data)}


def count(text: str) -> int:
    """A whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)


def main() -> None:
    """Run what is named, write its figures, and draw them."""
    if sys.argv[1:2] == ["gpu"]:
        from benchmarks.gpu.runner import main as check_gpu

        raise SystemExit(check_gpu(sys.argv[2:]))
    lines = [f"  {name:<8} {command.__doc__}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="\n".join([__doc__, *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rows = "pairs: any file that --data.train takes, or ShareGPT's ranking form"
    parser.add_argument("name", choices=COMMANDS)
    parser.add_argument("--rows", default="data/preference_train.json", help=rows)
    parser.add_argument("--model", default=MODEL, help="a model folder, all of whose weights are trained")
    parser.add_argument("--batch", type=count, default=4, help="pairs per step")
    parser.add_argument("--steps", type=count, default=6, help="steps that count; one more before them warms up")
    parser.add_argument("--epochs", type=count, default=3, help="epochs that share a reference pass")
    parser.add_argument("--max-length", type=count, default=1024, help="rows that are longer are left out and counted")
    parser.add_argument("--most", type=count, default=100_000, help="of data: the largest number of rows")
    parser.add_argument("--comparisons", default="defaults,best,fp32", help=f"of trl: {', '.join(COMPARISONS)}")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder for JSON and chart")
    options = parser.parse_args()
    unknown = set(options.comparisons.split(",")) - set(COMPARISONS)
    if unknown:
        parser.error(f"no comparison is called {', '.join(sorted(unknown))}; there are {', '.join(COMPARISONS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = COMMANDS[options.name](options, Path(folder))
        except UserError as error:
            raise SystemExit(str(error)) from None
    target = options.out / f"{options.name}.json"
    target.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    from benchmarks.chart import draw

    draw(options.name, figures, target.with_suffix(".png"))
    print(f"{target}, {target.with_suffix('.png')}")


if __name__ == "__main__":
    main()
