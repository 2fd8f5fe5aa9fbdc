"""Going on where nothing is left, windows at the end of an epoch, some held-out rows, fp16 and fused optimizers."""

import json

import pytest
import tiny
import torch
import whole_runs as runs
from command_runs import Bench, refused
from lightning.pytorch.plugins.precision import MixedPrecision

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.module import without_fusing
from dpo_lightning.resume import check_progress

MODEL_LINE = "middle of an epoch"


def progress(*, epochs=1, steps=4, whole=True):
    """What a checkpoint tells of how far its run came."""
    batches = {"is_last_batch": whole}
    return {
        "loops": {
            "fit_loop": {"epoch_progress": {"current": {"processed": epochs}}, "epoch_loop.batch_progress": batches}
        },
        "global_step": steps,
    }


@pytest.mark.parametrize(("limits", "named"), [({"max_epochs": 1}, "max_epochs 2"), ({"max_steps": 4}, "max_steps 5")])
def test_a_run_with_nothing_left_is_refused(limits, named):
    config = {f"trainer.{name}": value for name, value in limits.items()}
    with pytest.raises(UserError, match="nothing is left to train") as told:
        check_progress(progress(), config)
    assert told.value.code == ExitCode.CONFIG
    assert told.value.fix == f"--trainer.{named} or more"


def test_an_epoch_left_in_its_middle_is_told(capsys):
    check_progress(progress(), {"trainer.max_epochs": 2, "trainer.max_steps": -1})
    assert MODEL_LINE not in capsys.readouterr().out
    check_progress(progress(whole=False), {"trainer.max_epochs": 2, "trainer.max_steps": 9})
    assert MODEL_LINE in capsys.readouterr().out


@pytest.fixture
def bench(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, tiny_llama)


def test_a_capped_run_does_not_pretend_to_go_on(bench, tmp_path):
    """Its epoch counts as done, so that the same number of epochs leaves nothing to do."""
    assert bench.fit("--trainer.max_steps", "1").code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = (tmp_path / "run" / "metrics.json").read_text()
    refused(bench.fit("--ckpt_path", checkpoint, "--trainer.max_steps", "2"), 64, "nothing is left to train")
    assert (tmp_path / "run" / "metrics.json").read_text() == before


def test_steps_after_the_last_log_line_are_logged_at_the_end(bench, tmp_path):
    assert bench.fit("--trainer.log_every_n_steps", "50").code == 0
    assert "train/loss" in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_a_loss_that_breaks_between_log_lines_leaves_no_model(bench, tmp_path):
    flags = (
        "--model.learning_rate",
        "1e30",
        "--trainer.log_every_n_steps",
        "50",
        "--trainer.gradient_clip_val",
        "null",
    )
    ran = bench.fit(*flags, "--trainer.max_epochs", "3")
    assert ran.code == ExitCode.DIVERGED, ran
    assert not (tmp_path / "run" / "final_model").exists()


def test_some_of_the_held_out_rows_are_the_first_and_not_the_longest():
    data = runs.PreferenceDataModule(train="t", eval="e", batch_size=1)
    encode = tiny.make_chat_tokenizer()

    class Row:
        def __init__(self, text):
            self.length = len(encode(text)["input_ids"])

    class Trainer:
        global_rank, world_size, limit_val_batches, limit_test_batches = 0, 1, 1.0, 1

    data.trainer, data.encoded = Trainer(), {"eval": [Row("a"), Row("a b c d"), Row("a b")]}
    assert list(data.val_dataloader().sampler) == [1, 2, 0]
    assert list(data.test_dataloader().sampler) == [0, 1, 2]


def test_a_fused_optimizer_is_unfused_where_fp16_is_clipped():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], 0.1, fused=True)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    weight.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="fused"):
        plugin.clip_gradients(optimizer, 1.0)
    without_fusing(optimizer)
    plugin.clip_gradients(optimizer, 1.0)
    optimizer.step()
    assert weight.grad.norm() < 1.01
    assert (weight < 1).all()
