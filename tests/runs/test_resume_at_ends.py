"""Going on where nothing is left, windows at the end of an epoch, some held-out rows, fp16 and fused optimizers."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from support import tiny_models, whole_runs
from support.command_line import refused

from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.pairs import EncodedPair
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.optimizers import without_fusing
from dpo_lightning.runs.resume import check_progress

MODEL_LINE = "from within an epoch"


def progress(*, epochs=1, steps=4, whole=True, places=()):
    """What a checkpoint tells of how far its run came."""
    loop = {
        "epoch_progress": {"current": {"processed": epochs}},
        "epoch_loop.batch_progress": {"is_last_batch": whole},
        "state_dict": {"combined_loader": list(places)} if places else {},
    }
    return {"loops": {"fit_loop": loop}, "global_step": steps}


@pytest.mark.parametrize(("limits", "named"), [({"max_epochs": 1}, "max_epochs 2"), ({"max_steps": 4}, "max_steps 5")])
def test_a_run_with_nothing_left_is_refused(limits, named):
    config = {f"trainer.{name}": value for name, value in limits.items()}
    with pytest.raises(UserError, match="training is complete") as told:
        check_progress(progress(), config)
    assert told.value.code == ExitCode.CONFIG
    assert told.value.fix == f"--trainer.{named} or more"


def test_an_epoch_whose_place_was_not_kept_is_told(capsys):
    """A loader of somebody else's keeps none."""
    limits = {"trainer.max_epochs": 2, "trainer.max_steps": 9}
    check_progress(progress(), limits)
    check_progress(progress(whole=False, places=[{"epoch": 1, "batches": 2}]), limits)
    assert MODEL_LINE not in capsys.readouterr().out
    check_progress(progress(whole=False), limits)
    assert MODEL_LINE in capsys.readouterr().out


def test_an_epoch_that_a_cap_ended_does_not_count():
    """Lightning counts it as processed."""
    limits = {"trainer.max_epochs": 1, "trainer.max_steps": -1}
    check_progress(progress(whole=False, places=[{"epoch": 0, "batches": 2}]), limits)
    with pytest.raises(UserError, match="the checkpoint has 1 of 1"):
        check_progress(progress(epochs=0, places=[{"epoch": 1, "batches": 0}]), limits)  # the last step's own


@pytest.mark.parametrize("cap", ["-1", "2"])
def test_a_capped_run_goes_on_to_the_end_of_its_epoch(bench, tmp_path, cap):
    """As if it had never been stopped, and not beyond its cap or its epochs."""
    assert bench.fit("--trainer.max_steps", "1", out="half").code == 0
    checkpoint = tmp_path / "half" / "checkpoints" / "last.ckpt"
    refused(bench.fit("--ckpt_path", checkpoint, "--trainer.max_steps", "1"), 64, "training is complete")
    ran = bench.fit("--ckpt_path", checkpoint, "--trainer.max_steps", cap)
    assert ran.code == 0, ran
    assert MODEL_LINE not in ran.out
    assert bench.fit(out="whole").code == 0
    models = [load_file(tmp_path / name / "final_model" / "model.safetensors") for name in ("run", "whole")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    whole = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    refused(bench.fit("--ckpt_path", whole), 64, "training is complete: the checkpoint has 1 of 1")


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
    data = whole_runs.PreferenceDataModule(train="t", eval="e", batch_size=1)
    encode = tiny_models.make_chat_tokenizer()

    def make_row(text):
        answer = EncodedAnswer(encode(text)["input_ids"], [True])
        return EncodedPair(Origin("e", 1), [], (answer, answer))

    class Trainer:
        global_rank, world_size, limit_val_batches, limit_test_batches = 0, 1, 1.0, 1
        lightning_module = SimpleNamespace(takes_trees=lambda: False)

    data.trainer, data.encoded = Trainer(), {"eval": [make_row(text) for text in ("a", "a b c d", "a b")]}
    assert list(data.val_dataloader().sampler) == [[1], [2], [0]]
    assert list(data.test_dataloader().sampler) == [[0], [1], [2]]


def test_a_fused_optimizer_is_unfused_where_fp16_is_clipped():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], 0.1, fused=True)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    weight.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="fused"):
        plugin.clip_gradients(optimizer, 1.0)
    without_fusing(optimizer)
    assert [options["fused"] for options in (optimizer.defaults, *optimizer.param_groups)] == [False, False]
    plugin.clip_gradients(optimizer, 1.0)
    optimizer.step()
    assert weight.grad.norm() < 1.01
    assert (weight < 1).all()


def test_an_optimizer_stays_fused_where_no_gradient_is_scaled(tiny_llama, tmp_path, capsys):
    rows = whole_runs.write_rows(tmp_path, "train", whole_runs.preference_rows(2))
    data = whole_runs.PreferenceDataModule(rows, batch_size=2, max_length=128)
    made = whole_runs.dpo(tiny_llama, optimizer=partial(torch.optim.AdamW, fused=True))
    _, trainer = whole_runs.fit(made, data, tmp_path, max_steps=1, gradient_clip_val=1.0)
    assert trainer.optimizers[0].param_groups[0]["fused"]
    assert "not fused" not in capsys.readouterr().out
