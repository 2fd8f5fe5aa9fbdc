"""How often a run is saved, and what it says of the cost."""

import re

import pytest
from support.command_line import Bench

from dpo_lightning.callbacks import run_checkpoints

COST = re.compile(r"checkpoints: (\d+) checkpoints? in ([\d.]+) s, ([\d.]+)% of the time of training")


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, tiny_llama)


class Clock:
    """A clock that goes on by a minute with each batch, and by ten seconds with each checkpoint."""

    def __init__(self, monkeypatch):
        self.now, save, is_due = 0.0, run_checkpoints.Trainer.save_checkpoint, run_checkpoints.RunCheckpoints._is_due

        def save_slowly(*args, **options):
            self.now += 10
            return save(*args, **options)

        def count_a_minute(*args):
            self.now += 60
            return is_due(*args)

        monkeypatch.setattr(run_checkpoints.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(run_checkpoints.Trainer, "save_checkpoint", save_slowly)
        monkeypatch.setattr(run_checkpoints.RunCheckpoints, "_is_due", count_a_minute)


def test_the_interval_follows_the_cost_which_is_told(bench, monkeypatch, caplog):
    """After five minutes; the next one not before a hundred times its ten seconds; then at the end."""
    Clock(monkeypatch)
    ran = bench.fit("--data.batch_size=1", "--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=1")
    assert ran.code == 0, ran
    (told,) = COST.findall(caplog.text)
    # 16 steps of a minute: after the fifth, and at the end, as a thousand seconds have not passed by then
    assert told == ("2", "20.0", f"{20 / (16 * 60 + 20) * 100:.1f}")
