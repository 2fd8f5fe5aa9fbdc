"""Two processes hold the same reference that follows the policy."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from support import short_runs

DDP = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    from support import short_runs
    from dpo_lightning.models.causal_lm import Lora
    from dpo_lightning.references import Synced
    from lightning.pytorch import Callback
    from lightning.pytorch.strategies import DDPStrategy
    torch.set_num_threads(1)

    class Draw(Callback):
        def setup(self, trainer, pl_module, stage):
            torch.manual_seed(trainer.global_rank)  # a script without a seed begins with another adapter on each

    class Tell(Callback):
        def on_train_end(self, trainer, pl_module):
            own = pl_module.reference.held_weights()
            torch.save({{k: v.detach().clone() for k, v in own.items()}}, Path({out!r}, f"{{trainer.global_rank}}.pt"))

    made = short_runs.module({model!r}, Synced(every=2, alpha=0.6), lora=Lora(r=2))
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    options = dict(strategy=strategy, devices=2, enable_checkpointing=False, callbacks=[Draw(), Tell()])
    short_runs.fit(made, Path({file!r}), Path({out!r}), steps=4, **options)
"""


@pytest.mark.slow
def test_two_processes_hold_the_same_reference(tiny_llama, tmp_path):
    """Though each drew an adapter of its own before the first one's was sent around."""
    tests = Path(__file__).parents[1]
    file = short_runs.write_pairs(tmp_path / "pairs.jsonl", rows=24)
    places = {"tests": str(tests), "model": str(tiny_llama), "file": str(file), "out": str(tmp_path)}
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(DDP).format(**places))
    environment = {**os.environ, "PYTHONPATH": str(tests.parent), "HF_HUB_OFFLINE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys() != set()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
