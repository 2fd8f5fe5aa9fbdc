"""Updates that rounding loses: the share that is told, where it is told, and where there is nothing to tell."""

import logging
from types import SimpleNamespace

import pytest
import torch
from support import short_runs
from torch import nn
from torch.optim import SGD, AdamW

from dpo_lightning.callbacks import rounded_updates
from dpo_lightning.callbacks.rounded_updates import RoundedUpdates, carries_over, count_lost, draw_samples, find_prime
from dpo_lightning.optimizers import is_settled_later


def make_step(lost, kept, idle, rate=1e-3, dtype=torch.bfloat16):
    """A parameter before a step of SGD that loses so many updates, keeps so many, and has no others to make."""
    # 0.001 is less than half of the distance of 1.0 to its neighbours, 2^-7 and 2^-8, and more than that of 0.01.
    values = torch.cat([torch.full((lost,), 1.0), torch.full((kept,), 0.01), torch.full((idle,), 1.0)])
    gradient = torch.cat([torch.ones(lost + kept), torch.zeros(idle)])
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(values[order].to(dtype))
    parameter.grad = gradient[order].to(dtype)
    return parameter, SGD([parameter], rate)


@pytest.mark.parametrize(("lost", "kept", "idle"), [(300, 700, 0), (300, 700, 5000), (0, 10, 3), (13923, 13, 0)])
def test_a_known_share(lost, kept, idle):
    parameter, optimizer = make_step(lost, kept, idle)
    samples = draw_samples([parameter], 1 << 20)
    optimizer.step()
    assert count_lost(samples).tolist() == [lost, lost + kept]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.93])
def test_a_share_of_many_weights(share):
    """A tenth of the weights is compared: the share is told within 1 %."""
    lost = round(share * 1_000_000)
    parameter, optimizer = make_step(lost, 1_000_000 - lost, 200_000)
    samples = draw_samples([parameter], 120_000)
    assert 100_000 < sum(len(sample.before) for sample in samples) <= 120_000
    optimizer.step()
    found, counted = count_lost(samples).tolist()
    assert found / counted == pytest.approx(share, abs=0.01)


def test_samples_are_of_all_columns():
    assert [find_prime(least) for least in (1, 8, 9, 64, 1000)] == [2, 11, 11, 67, 1009]
    matrix = nn.Parameter(torch.arange(64 * 64).reshape(64, 64).to(torch.bfloat16))
    matrix.grad = torch.ones_like(matrix)
    (sample,) = draw_samples([matrix], 512)
    places = torch.arange(64 * 64)[:: sample.step] % 64
    assert len(places.unique()) == 64


def test_a_step_that_was_dropped_counts_nothing():
    parameter, _ = make_step(3, 4, 5)
    samples = draw_samples([parameter], 100)
    parameter.grad = None
    assert count_lost(samples).tolist() == [0, 0]


class Watch(RoundedUpdates):
    """The share in each measured step, computed from whole copies of the weights and gradients as well."""

    def __init__(self):
        super().__init__()
        self.true, self.logged = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        trained = [each for each in pl_module.policy.parameters() if each.grad is not None]
        self.before = [(each, each.detach().clone(), each.grad != 0) for each in trained]

    def on_train_batch_end(self, trainer, pl_module, *args):
        moved = sum(int(moved.sum()) for _, _, moved in self.before)
        lost = sum(int(((each == before) & moved).sum()) for each, before, moved in self.before)
        self.true.append(lost / moved)
        super().on_train_batch_end(trainer, pl_module, *args)
        self.logged.append(float(trainer.callback_metrics.get("train/rounded_updates", float("nan"))))


def train(tiny_llama, file, folder, caplog, dtype="bfloat16", rate=5e-7, steps=4, optimizer=AdamW, **options):
    """A run of a few steps; what it watched, and what it said."""
    watch = Watch()
    made = short_runs.module(tiny_llama, dtype=dtype)
    made.learning_rate, made.optimizer = rate, optimizer
    caplog.set_level(logging.INFO, "dpo_lightning")
    logging.getLogger("dpo_lightning").addHandler(caplog.handler)
    try:
        short_runs.fit(made, file, folder, steps=steps, callbacks=[watch], **options)
    finally:
        logging.getLogger("dpo_lightning").removeHandler(caplog.handler)
    return watch, [record.getMessage() for record in caplog.records]


def test_a_run_in_bfloat16_says_what_it_loses(tiny_llama, file, tmp_path, caplog):
    """The case: a learning rate of 5e-7. It is said before, measured in the first step, and logged."""
    watch, said = train(tiny_llama, file, tmp_path, caplog, log_every_n_steps=2)
    assert watch.true[0] > 0.99
    assert watch.logged[1] == pytest.approx(watch.true[1], abs=1e-6)
    assert watch.logged[3] == pytest.approx(watch.true[3], abs=1e-6)
    (note,) = [line for line in said if "are stored in bfloat16: a change of 5e-07" in line]
    (warning,) = [line for line in said if "of the updates of bfloat16 weights were lost" in line]
    assert warning.startswith(f"step 1: {watch.true[0]:.1%} ")
    assert "--model.policy.dtype float32 with --trainer.precision bf16-mixed" in warning
    assert said.index(note) < said.index(warning)


def test_a_larger_rate_loses_less(tiny_llama, file, tmp_path, caplog):
    watch, said = train(tiny_llama, file, tmp_path, caplog, rate=1e-3, steps=1, log_every_n_steps=1)
    assert 0.01 < watch.true[0] < 0.9
    assert f"step 1: {watch.true[0]:.1%} of the updates" in "".join(said)


def test_it_is_told_again_when_it_grows(tiny_llama, file, tmp_path, caplog, monkeypatch):
    shares = iter([0.0, 0.3, 0.4, 0.6])
    monkeypatch.setattr(rounded_updates, "count_lost", lambda _: torch.tensor([next(shares), 1.0]))
    _, said = train(tiny_llama, file, tmp_path, caplog, log_every_n_steps=1)
    assert [line.split()[1:3] for line in said if "were lost" in line] == [["2:", "30.0%"], ["4:", "60.0%"]]


def test_there_is_nothing_to_tell_of_float32(tiny_llama, file, tmp_path, caplog):
    watch, said = train(tiny_llama, file, tmp_path, caplog, dtype="float32", log_every_n_steps=1)
    assert not any("lost" in line for line in said)
    assert all(map(torch.isnan, map(torch.tensor, watch.logged)))


def make_optimizer(**options):
    return SimpleNamespace(defaults=options)


@pytest.mark.parametrize(
    ("optimizer", "carries"),
    [
        (make_optimizer(lr=1, kahan_sum=None), True),
        (make_optimizer(lr=1, kahan_sum=True), True),
        (make_optimizer(lr=1, kahan_sum=False), False),
        (SimpleNamespace(defaults={"lr": 1}, bf16_stochastic_round=True), True),
        (SimpleNamespace(defaults={"lr": 1}, bf16_stochastic_round=False), False),
        (SimpleNamespace(optimizer=make_optimizer(kahan_sum=None)), True),
        (AdamW([nn.Parameter(torch.zeros(1))]), False),
    ],
)
def test_optimizers_that_carry_updates_over(optimizer, carries):
    assert carries_over(optimizer) is carries


def test_options_that_an_optimizer_settles_in_its_first_step():
    """Those of optimi, of which a checkpoint has other values than the config: that is no change of the config."""
    before = {"lr": 1.0, "kahan_sum": None, "triton": None, "setup": False, "foreach": True}
    assert [name for name in before if is_settled_later(name, before)] == ["kahan_sum", "triton", "setup"]
    assert not is_settled_later("foreach", {"lr": 1.0, "foreach": None})
