"""A long run of a tiny model: do memory, file descriptors, threads and temporary files stay as they are?

    python tests/reliability/campaign_soak.py --steps 20000

A run with evaluations, checkpoints, answers of `Samples`, TensorBoard and workers for batches is looked at fifty times.
Memory is that of the process alone, and may grow by 2 % from the middle of the run to its end. The other counts have to
be the same in both halves. The last line says `N of N`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from support.disturbed_runs import Recipe, make_command, save_models, start  # noqa: E402

GROWTH = 0.02

WATCH = '''
import json, os, tempfile
from pathlib import Path
from lightning.pytorch import Callback


class Watch(Callback):
    """Write down what the process holds, every so many steps."""

    def __init__(self, path: str, every: int):
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step % self.every:
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found = {
            "step": trainer.global_step,
            "MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "temporary files": sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
            "files": sum(1 for _ in Path(trainer.default_root_dir).rglob("*")),
        }
        with open(self.path, "a") as file:
            print(json.dumps(found), file=file)
'''


def main() -> int:
    """Train, and compare the halves of the run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20_000)
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="campaign-") as place:
        folder = Path(place)
        (folder / "watch.py").write_text(WATCH)
        (folder / "tmp").mkdir()
        recipe = Recipe("dpo", "llama", ("--data.batch_size=2", "--data.num_workers=1"))
        more = ["--output_dir=run", "--trainer.max_epochs=-1", f"--trainer.max_steps={args.steps}"]
        more += ["--trainer.log_every_n_steps=10", "--trainer.check_val_every_n_epoch=20", "--allow-class-path=watch"]
        more += ["--trainer.callbacks+=watch.Watch", "--trainer.callbacks.path=watched.jsonl"]
        more += [f"--trainer.callbacks.every={max(args.steps // 50, 1)}"]
        command = make_command(recipe, folder, save_models(folder), *more, saved=max(args.steps // 200, 1))
        paths = f"{Path(__file__).parents[2]}:{folder}"
        run = start(command, folder / "run.log", {"PYTHONPATH": paths, "TMPDIR": str(folder / "tmp")})
        if (code := run.wait()) != 0:
            print(f"exit code {code}\n{(folder / 'run.log').read_text()[-3000:]}")
            return 1
        found = [json.loads(line) for line in (folder / "watched.jsonl").read_text().splitlines()]
    quarter = max(len(found) // 4, 1)
    early, late = found[quarter * 2 : quarter * 3], found[quarter * 3 :]
    good = 0
    for name in [name for name in found[0] if name != "step"]:
        before, after = (statistics.median(row[name] for row in rows) for rows in (early, late))
        flat = after <= before * (1 + GROWTH) if name == "MiB" else after == before
        good += flat
        print(f"{name}: {found[0][name]:.6g} at step {found[0]['step']}, {before:.6g}, {after:.6g} at the end")
    print(f"{good} of {len(found[0]) - 1} flat over {args.steps} steps")
    return int(good < len(found[0]) - 1)


if __name__ == "__main__":
    sys.exit(main())
