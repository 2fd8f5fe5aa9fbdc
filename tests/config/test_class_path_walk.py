"""No name that a `class_path` can reach runs, removes or sends anything, whatever option it is put to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KEPT = (
    "bitsandbytes.optim.adamw.AdamW8bit",
    "bitsandbytes.optim.adamw.PagedAdamW8bit",
    "torch.optim.adamw.AdamW",
    "torch.optim.sgd.SGD",
    "torch.optim.lr_scheduler.CosineAnnealingLR",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.loggers.csv_logs.CSVLogger",
    "lightning.pytorch.loggers.tensorboard.TensorBoardLogger",
    "lightning.pytorch.profilers.simple.SimpleProfiler",
    "lightning.pytorch.strategies.ddp.DDPStrategy",
    "lightning.fabric.plugins.environments.slurm.SLURMEnvironment",
    "dpo_lightning.losses.ipo.IPOLoss",
    "dpo_lightning.losses.divergences.ForwardKL",
    "dpo_lightning.references.synced.Synced",
    "dpo_lightning.models.lora.Lora",
)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """What the walk over all allowed packages came to, in a process of its own."""
    home, package = tmp_path_factory.mktemp("home"), Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(package), "TORCHINDUCTOR_CACHE_DIR": str(home), "TMPDIR": str(home)}
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "class_path_walk.py")]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_runs_and_nothing_is_removed_or_written_elsewhere(walked):
    """Tens of thousands of names, each option that takes a class, and each class that is taken made once."""
    assert walked["seen"] == []
    assert walked["counts"]["names"] > 20_000
    assert walked["counts"]["options"] > 15
    assert walked["counts"]["called"] >= 5
    assert walked["counts"]["made"] > 60


def test_an_option_takes_the_classes_of_its_kind_alone(walked):
    """No function, no module, no object, and nothing at all where something is only to be called."""
    assert walked["wrong"] == []
    assert set(walked["taken"]) >= set(KEPT)
    assert not [
        name
        for name in walked["taken"]
        if name.startswith(("torchmetrics.", "peft.tuners.", "dpo_lightning.data.datamodules"))
    ]
