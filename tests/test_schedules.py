"""Learning rates with a warm-up: the rate of each step, whatever ends the run, and after a stop."""

import math

import pytest
import torch
from support.command_line import CONFIGS, refused, run
from support.run_results import find_difference, read_curves, read_run
from support.signalled import run_signalled
from torch.optim import SGD

from dpo_lightning.errors import UserError
from dpo_lightning.schedules import ConstantWithWarmup, CosineWithWarmup, LinearWithWarmup

RATE = "train/learning_rate"
WARMUP = ("--config", CONFIGS / "warmup.yaml")


def rates(kind, steps, **options):
    """The rate of each step, of a full rate of 1."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule = kind(optimizer, **options)
    schedule.plan(steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_rates_of_each_kind():
    assert rates(ConstantWithWarmup, 4, warmup_steps=2) == [0.5, 1, 1, 1]
    assert rates(LinearWithWarmup, 6, warmup_steps=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    half = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates(CosineWithWarmup, 6, warmup_steps=2) == pytest.approx([0.5, 1, *half])
    assert rates(LinearWithWarmup, 5, warmup_ratio=0.2) == [1, 1, 0.75, 0.5, 0.25]
    assert rates(LinearWithWarmup, 4, warmup_steps=0, total_steps=2) == [1, 0.5, 0, 0]


@pytest.mark.parametrize(
    "options",
    [{"warmup_ratio": 1.0}, {"warmup_ratio": -0.1}, {"warmup_steps": -1}, {"warmup_steps": 5, "total_steps": 5}],
)
def test_what_leaves_no_schedule_is_refused(options):
    with pytest.raises(UserError, match=r"model\.lr_scheduler"):
        rates(CosineWithWarmup, 4, **options)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (["--trainer.max_epochs=3"], 6),
        (["--trainer.max_epochs=3", "--trainer.max_steps=5"], 5),
        (["--trainer.max_epochs=4", "--trainer.limit_train_batches=1"], 4),
        (["--trainer.max_epochs=4", "--trainer.accumulate_grad_batches=2"], 4),
    ],
)
def test_the_schedule_ends_with_the_run(bench, options, steps):
    ran = bench.fit(*WARMUP, *options, "--model.lr_scheduler.warmup_steps=2")
    assert ran.code == 0, ran
    found = [value for _, value in read_curves(bench.folder / "run")[RATE]]
    assert found == pytest.approx([1e-3 * rate for rate in rates(CosineWithWarmup, steps, warmup_steps=2)])


@pytest.mark.parametrize("kind", ["LinearWithWarmup", "dpo_lightning.schedules.CosineWithWarmup"])
def test_a_flag_names_a_schedule(bench, kind):
    ran = bench.fit("--model.lr_scheduler", kind, "--model.lr_scheduler.warmup_ratio=0.5", "--trainer.max_epochs=2")
    assert ran.code == 0, ran
    assert [step for step, _ in read_curves(bench.folder / "run")[RATE]] == [1, 2, 3, 4]


@pytest.mark.parametrize("schedule", [WARMUP, ("--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=1e-3",
                                               "--model.lr_scheduler.total_steps=6")])  # fmt: skip
def test_a_run_that_was_stopped_goes_on_as_one_that_was_not(bench, schedule):
    """In the middle of the warm-up, within an epoch: weights, optimizer and rates to the bit."""
    saved = ("--trainer.callbacks+=RunCheckpoints", "--trainer.callbacks.every_n_steps=1", "--trainer.max_epochs=3")
    options = [*saved, *schedule, *(["--model.lr_scheduler.warmup_steps=4"] if schedule == WARMUP else [])]
    assert bench.fit(*options, out="whole").code == 0
    place = "dpo_lightning.dpo:DPOModule.training_step:4"
    code, told = run_signalled("SIGKILL", place, "fit", *bench.options("cut"), *map(str, options))
    assert code == -9, told
    ran = bench.fit(*options, out="cut")
    assert ran.code == 0, ran
    assert find_difference(read_run(bench.folder / "cut"), read_run(bench.folder / "whole")) == ""


def test_more_steps_stretch_the_schedule(bench):
    """The same command with more epochs follows the longer schedule from there on."""
    assert bench.fit(*WARMUP, "--trainer.max_epochs=2").code == 0
    ran = bench.fit(*WARMUP, "--trainer.max_epochs=4")
    assert ran.code == 0, ran
    found = dict(read_curves(bench.folder / "run")[RATE])
    longer = rates(CosineWithWarmup, 8)
    assert [found[step] for step in (6, 7, 8)] == pytest.approx([1e-3 * rate for rate in longer[5:]])


def test_a_run_without_an_end_is_refused(bench):
    endless = ("--trainer.max_epochs=-1", "--trainer.max_steps=-1")
    refused(bench.fit(*WARMUP, *endless), 64, "the run has no end", "--model.lr_scheduler.total_steps")
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize("name", ["ReduceLROnPlateau", "torch.optim.lr_scheduler.ReduceLROnPlateau",
                                  "lightning.pytorch.cli.ReduceLROnPlateau"])  # fmt: skip
def test_a_schedule_that_needs_a_measure_is_refused(bench, name):
    monitor = ["--model.lr_scheduler.monitor=train/loss"] if "torch" not in name else []
    ran = bench.fit("--model.lr_scheduler", name, *monitor)
    refused(ran, 64, "ReduceLROnPlateau", "at model.lr_scheduler")


def test_the_overlay_is_one_of_any_recipe():
    ran = run("fit", "--config", CONFIGS / "sft.yaml", *WARMUP, "--print_config")
    assert "CosineWithWarmup" in ran.out


ONE_CYCLE = ("--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=1e-3")


def test_a_schedule_that_would_fail_in_the_middle_of_the_run_is_refused(bench):
    """Before the first step; with as many steps as the run it is taken."""
    ran = bench.fit(*ONE_CYCLE, "--model.lr_scheduler.total_steps=1")
    refused(
        ran, 64, "after total_steps=1 would fail, and the run has 2 steps", "fix: --model.lr_scheduler.total_steps 2\n"
    )
    assert not (bench.folder / "run").exists()
    assert bench.fit(*ONE_CYCLE, "--model.lr_scheduler.total_steps=2").code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["CosineWithWarmup", "warmup_steps=100"], "the warm-up takes 100 steps and the run ends after 2: the rate "
                                                   "reaches 0.02 of learning_rate"),
        (["CosineWithWarmup", "total_steps=1"], "total_steps=1: the learning rate is 0 after step 1, and the run has"),
        (["PolynomialLR", "total_iters=1"], "total_iters=1: the learning rate is 0 after step 1, and the run has"),
        (["ConstantWithWarmup", "total_steps=1"], ""),
        (["LinearWithWarmup", "warmup_steps=2"], ""),
        (["PolynomialLR", "total_iters=2"], ""),
    ],
    ids=str,
)  # fmt: skip
def test_a_schedule_that_does_not_fit_the_run_is_told(bench, options, told):
    ran = bench.fit(f"--model.lr_scheduler={options[0]}", f"--model.lr_scheduler.{options[1]}")
    assert ran.code == 0, ran
    if told:
        assert f"warning: model.lr_scheduler: {told}" in ran.out
    else:
        assert "warning: model.lr_scheduler" not in ran.out


def test_a_longer_run_than_its_schedule_begins_anew(bench):
    """A finished run that is given more steps: its schedule belongs to it, so that no other one can be named."""
    one_cycle = (*ONE_CYCLE, "--model.lr_scheduler.total_steps=2")
    assert bench.fit(*one_cycle).code == 0
    further = "--model.policy.path RUN/final_model --output_dir ANOTHER"
    refused(bench.fit(*one_cycle, "--trainer.max_epochs=2"), 64, "after total_steps=2 would fail", further)
    model = bench.folder / "run" / "final_model"
    ran = bench.fit(*ONE_CYCLE, "--model.lr_scheduler.total_steps=4", "--trainer.max_epochs=2",
                    "--model.policy.path", model, out="another")  # fmt: skip
    assert ran.code == 0, ran
