"""`OptimizerLog`: learning rates and gradient norms under TRL's names, whatever the batches and the clipping."""

import json
import math

import pytest
import torch
from support import short_runs
from support.poison import Poison
from support.run_results import read_curves
from torch.optim import SGD

from dpo_lightning.callbacks import NonFinite, OptimizerLog
from dpo_lightning.data.datamodules import PreferenceDataModule

RATE, NORM = "train/learning_rate", "train/grad_norm"


def fit(made, file, folder, *callbacks, batch=2, **options):
    """Two steps of four pairs; the `OptimizerLog` after them."""
    data = PreferenceDataModule(train=str(file), batch_size=batch, max_length=128, shuffle=False)
    options = {"enable_checkpointing": False, "limit_val_batches": 0, "log_every_n_steps": 1} | options
    trainer = short_runs.fit(made, None, folder, data=data, callbacks=list(callbacks), **options)
    (log,) = (callback for callback in trainer.callbacks if isinstance(callback, OptimizerLog))
    return log


def true_norm(made, pairs):
    """The norm of the gradient of the pairs' mean loss, by the definition."""
    made.compare(pairs)[0].losses.mean().backward()
    return torch.cat([p.grad.flatten() for p in made.policy.parameters() if p.grad is not None]).norm().item()


@pytest.mark.parametrize(("batch", "window"), [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("clipping", [None, 1e-3])
def test_the_norm_is_that_of_the_mean_loss_before_clipping(batch, window, clipping, tiny_llama, file, tmp_path):
    log = fit(
        short_runs.module(tiny_llama), file, tmp_path, batch=batch, accumulate_grad_batches=window,
        gradient_clip_val=clipping, steps=1,
    )  # fmt: skip
    made = short_runs.ready(tiny_llama)
    assert log.logged[NORM] == pytest.approx(true_norm(made, short_runs.batch(made, file, 4)), rel=1e-4)
    assert log.logged[RATE] == 1e-2


def test_groups_of_unequal_rates_have_a_name_each(tiny_llama, file, tmp_path, monkeypatch):
    made = short_runs.module(tiny_llama)

    def two_groups():
        one, *others = made.policy.parameters()
        return SGD([{"params": [one], "lr": 0.5}, {"params": others, "lr": 0.25}])

    monkeypatch.setattr(made, "configure_optimizers", two_groups)
    log = fit(made, file, tmp_path)
    assert {name: value for name, value in log.logged.items() if name != NORM} == {
        f"{RATE}/pg1": 0.5,
        f"{RATE}/pg2": 0.25,
    }


def test_a_norm_that_is_no_number_is_left_out(tiny_llama, file, tmp_path):
    """`metrics.json` could not hold it."""
    log = fit(short_runs.module(tiny_llama), file, tmp_path, Poison(steps=[2]), NonFinite(skip=1))
    assert log.logged == {RATE: 1e-2}


def test_every_logged_step_of_the_command_line(bench):
    """In TensorBoard and in `metrics.json`: the rate that a step was taken with, not the next one."""
    ran = bench.fit(
        "--trainer.max_epochs=3", "--trainer.log_every_n_steps=2",
        "--model.lr_scheduler=LinearLR", "--model.lr_scheduler.start_factor=0.5", "--model.lr_scheduler.total_iters=5",
    )  # fmt: skip
    assert ran.code == 0, ran
    curves = read_curves(bench.folder / "run")
    assert [step for step, _ in curves[NORM]] == [2, 4, 6]
    assert all(value > 0 for _, value in curves[NORM])
    assert curves[RATE] == [(k, pytest.approx(1e-3 * (0.5 + 0.1 * (k - 1)))) for k in (2, 4, 6)]
    metrics = bench.json("metrics.json")
    assert metrics[RATE] == pytest.approx(1e-3)
    assert math.isclose(metrics[NORM], curves[NORM][-1][1], rel_tol=1e-6)


def test_the_last_step_of_an_epoch_is_logged(bench):
    assert bench.fit("--trainer.log_every_n_steps=50").code == 0
    assert [step for step, _ in read_curves(bench.folder / "run")[NORM]] == [2]
    assert json.dumps(bench.json("metrics.json")[NORM])
