"""Runs of many losses: on two ranks, in windows, resumed; rows that count unequally; what is refused before a step."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support import loss_runs, short_runs, whole_runs
from support.loss_cases import COMPARING, FAMILY, REFERENCE_FREE, mpo
from support.loss_runs import EXACT, ON_MICRO_BATCHES
from support.two_ranks import run_on_two_ranks
from torch.nn.functional import softplus
from torch.optim import SGD

from dpo_lightning import PreferenceDataModule
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import (
    AOTLoss,
    BCOPairLoss,
    BetaDPOLoss,
    DPOLoss,
    LDDPOLoss,
    ODPOLoss,
    SimPOLoss,
    TDPO1Loss,
    TDPO2Loss,
    WeightedSum,
)
from dpo_lightning.losses.running_mean import RunningMean
from dpo_lightning.models.causal_lm import Lora
from dpo_lightning.references import FrozenCopy, ReferenceFree
from dpo_lightning.references.precomputed import Precomputed

BCO = BCOPairLoss(2.0)


def assert_same(one, other):
    """Weights, state and every number that was logged."""
    assert one["weights"].keys() == other["weights"].keys()
    for name, value in one["weights"].items():
        torch.testing.assert_close(value, other["weights"][name], rtol=1e-4, atol=2e-6)
    assert one["state"].keys() == other["state"].keys()
    for name, value in one["state"].items():
        torch.testing.assert_close(value, other["state"][name], rtol=1e-4, atol=1e-6)
    assert one["logged"].keys() == other["logged"].keys()
    for step, metrics in one["logged"].items():
        assert metrics == pytest.approx(other["logged"][step], rel=1e-4, abs=1e-4)


def test_two_ranks_are_one(tiny_llama, tmp_path):
    """7 training and 3 eval rows, 4 a step: weights, state and metrics of every loss that no micro-batch defines."""
    both = run_on_two_ranks(loss_runs.__file__, tiny_llama, tmp_path)
    assert both.keys() == EXACT.keys()
    start = dict(short_runs.ready(tiny_llama).policy.named_parameters())
    for name, loss in EXACT.items():
        one = loss_runs.run(copy.deepcopy(loss), tiny_llama, tmp_path / "one")
        try:
            assert_same(both[name], one)
        except AssertionError as error:
            raise AssertionError(name) from error
        moved = max(float((value - start[key]).abs().max().detach()) for key, value in one["weights"].items())
        assert moved > 2e-5, name
        assert "eval/loss" in one["logged"][2]
        if one["state"]:
            assert any(value.abs() > 1e-4 for key, value in one["state"].items() if key.endswith("value")), name


def test_what_is_defined_on_a_micro_batch_says_so():
    """And it is what two ranks do change."""
    for name in ON_MICRO_BATCHES - {"mpo"}:
        assert "micro-batch" in type(FAMILY[name]).__doc__ or "token_mean" in type(FAMILY[name]).__doc__, name


@pytest.mark.parametrize("name", sorted(ON_MICRO_BATCHES - {"aot", "aot unpaired"}))
def test_a_cut_changes_what_is_defined_on_a_micro_batch(name, tiny_llama, tmp_path):
    """Otherwise the exception above would be none."""
    one, two = (
        loss_runs.run(copy.deepcopy(FAMILY[name]), tiny_llama, tmp_path, accumulate_grad_batches=n, learning_rate=0.05)
        for n in (1, 2)
    )
    with pytest.raises(AssertionError):
        assert_same(one, two)


@pytest.mark.parametrize("loss", [BCO, BetaDPOLoss(2.0, alpha=0.0), WeightedSum([DPOLoss(), BCO], [0.5, 0.5])])
def test_a_running_mean_does_not_depend_on_how_a_window_is_cut(loss, tiny_llama, tmp_path):
    """One micro-batch of 4, 2 of 2 or 4 of 1; the next step uses it, so weights would tell."""
    one, *others = (
        loss_runs.run(
            copy.deepcopy(loss), tiny_llama, tmp_path, accumulate_grad_batches=n, max_epochs=3, learning_rate=0.02
        )
        for n in (1, 2, 4)
    )
    value = next(value for name, value in one["state"].items() if name.endswith("value"))
    assert abs(value) > 0.01
    for other in others:
        assert_same(one, other)


def test_the_mean_of_bco_is_that_of_all_rewards(tiny_llama, tmp_path):
    """By weight, over all steps before; a step does not see its own."""
    result = loss_runs.run(copy.deepcopy(BCO), tiny_llama, tmp_path, batch_size=7, max_epochs=4, learning_rate=0.02)
    logged = [result["logged"][step] for step in sorted(result["logged"])]
    assert result["steps"] == len(logged) == 4
    plain = loss_runs.run(
        BCOPairLoss(2.0, shift=False), tiny_llama, tmp_path, batch_size=7, max_epochs=2, learning_rate=0.02
    )
    assert plain["state"] == {}
    assert plain["logged"][2]["train/loss"] == pytest.approx(
        logged[1]["train/loss"], rel=1e-6
    )  # the mean of step 1 is 0
    assert float(result["state"]["weight"]) == pytest.approx(4 * sum(loss_runs.WEIGHTS))


@pytest.mark.parametrize("loss", [BCO, BetaDPOLoss(2.0, keep=0.6), WeightedSum([BCO, DPOLoss()], [1.0, 0.5])])
def test_a_resumed_run_has_its_mean_again(loss, tiny_llama, tmp_path):
    """Checkpointed after step 3 of 6 and gone on with: the weights and the mean of a run that was never stopped."""
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1, save_on_train_epoch_end=False)
    run = partial(loss_runs.run, model=tiny_llama, folder=tmp_path, max_epochs=3, learning_rate=0.02)
    whole = run(copy.deepcopy(loss), callbacks=[saver], enable_checkpointing=True)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["state_dict"]
    assert {name for name in saved if name.startswith("loss_state.")} == {
        f"loss_state.{name}" for name in whole["state"]
    }
    rest = run(copy.deepcopy(loss), ckpt_path=tmp_path / "step=3.ckpt")
    for name, value in whole["weights"].items():
        assert torch.equal(value, rest["weights"][name]), name
    for name, value in whole["state"].items():
        assert torch.equal(value, rest["state"][name]), name
        assert value.abs() > 1e-4


def test_half_precision_does_not_round_a_mean(tiny_llama, tmp_path):
    """Neither while it trains nor when the model is converted once more: bf16 counts no more than 256."""
    mean = RunningMean()
    mean.add(torch.tensor([1.0, 1 / 3]), torch.tensor([300.0, 1.0]))
    mean.step(lambda value: value)
    before = {name: value.clone() for name, value in mean.state_dict().items()}
    for other in (mean.bfloat16(), mean.half(), mean.to("cpu", torch.bfloat16)):
        assert {name: value.dtype for name, value in other.state_dict().items()} == {
            "value": torch.float32,
            "weight": torch.float64,
        }
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    result = loss_runs.run(copy.deepcopy(BCO), tiny_llama, tmp_path, precision="bf16-true", learning_rate=0.02)
    value = result["state"]["value"]
    assert value.dtype == torch.float32
    assert value != value.bfloat16()


# Rows that count unequally


@pytest.mark.parametrize("weights", [[1, 0, 2, 0.25], [0.1, 0.05, 0, 0.2], [0, 0, 1, 3]])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 1), (1, 2)])
def test_weights_are_those_of_a_weighted_mean(weights, batch_size, accumulate, tiny_llama, tmp_path):
    """0 is no 1 (trap 45), 2 is twice, sums below 1 are no other mean, a step may have none: as in plain PyTorch."""
    rows = [{**row, "weight": weight} for row, weight in zip(whole_runs.preference_rows(4), weights, strict=True)]
    file = whole_runs.write_rows(tmp_path, "train", rows)
    data = PreferenceDataModule(file, batch_size=batch_size, max_length=64, shuffle=False)
    module = whole_runs.dpo(tiny_llama, optimizer=SGD, learning_rate=whole_runs.SGD_RATE)
    memory, _ = whole_runs.fit(module, data, tmp_path, accumulate_grad_batches=accumulate)

    def plain(policy, reference, row):
        pair = whole_runs.plain_pair(policy, reference, row)
        return row.weight * softplus(-0.1 * (pair["a"] - pair["r"])), row.weight

    counted = [row for row in data.encoded["train"] if row.weight]
    assert len(counted) == sum(weight > 0 for weight in weights)
    window = [row for row in data.encoded["train"][:2] if row.weight]
    sgd = partial(SGD, lr=whole_runs.SGD_RATE)
    losses, expected = whole_runs.plain_run(tiny_llama, data.encoded["train"] if window else counted, plain, 2, sgd)
    for name, value in whole_runs.weights(module).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert memory.curve("train/loss") == pytest.approx(losses, rel=1e-5)
    assert len(memory.curve("train/rewards/accuracies")) == 2


def fit(model, loss, rows, folder, reference=None):
    """A run of a step on rows."""
    data = PreferenceDataModule(whole_runs.write_rows(folder, "train", rows), batch_size=2, max_length=64)
    return whole_runs.fit(whole_runs.dpo(model, loss=loss, reference=reference), data, folder, max_steps=1)


@pytest.mark.parametrize(
    ("loss", "column", "values", "told"),
    [
        (ODPOLoss(), "margin", (1.0, None), ["ODPOLoss needs a margin", "train.jsonl:2", "column `margin`"]),
        (ODPOLoss(), "margin", (0.5, -0.5), ["here -0.5", "train.jsonl:2"]),
        (
            WeightedSum([DPOLoss(), ODPOLoss()], [1.0, 1.0]),
            "margin",
            (1.0, None),
            ["WeightedSum needs", "train.jsonl:2"],
        ),
        (AOTLoss(), "weight", (1.0, 0.5), ["AOTLoss compares pairs", "weight of 0.5", "train.jsonl:2"]),
        (WeightedSum([DPOLoss(), AOTLoss()], [1.0, 1.0]), "weight", (0.0, 1.0), ["weight of 0.0", "train.jsonl:1"]),
    ],
)
def test_rows_that_a_loss_cannot_take_are_named(loss, column, values, told, tiny_llama, tmp_path):
    """By file and line, before a step."""
    rows = [
        row | ({} if value is None else {column: value})
        for row, value in zip(whole_runs.preference_rows(2), values, strict=True)
    ]
    with pytest.raises(UserError) as caught:
        fit(tiny_llama, loss, rows, tmp_path)
    assert caught.value.code == ExitCode.DATA
    for words in told:
        assert words in str(caught.value)
    assert str(caught.value).count("train.jsonl:") == 1


@pytest.mark.parametrize("name", ["simpo", "orpo", "cpo", "sft, tokens"])
def test_a_reference_that_nobody_would_ask_is_refused(name, tiny_llama):
    with pytest.raises(UserError, match="does not use a reference; FrozenCopy would only take memory"):
        whole_runs.dpo(tiny_llama, loss=FAMILY[name], reference=FrozenCopy())


def test_a_loss_that_needs_a_reference_gets_one(tiny_llama):
    with pytest.raises(UserError, match="DPOLoss compares the policy with a reference; ReferenceFree has none"):
        whole_runs.dpo(tiny_llama, loss=DPOLoss(), reference=ReferenceFree())
    assert {"simpo", "orpo", "cpo", "sft, sums", "alphapo"} <= set(REFERENCE_FREE)
    assert {"mpo", "wpo", "dpo"} <= set(COMPARING)


def test_without_a_reference_no_second_model_is_held(tiny_llama, tmp_path, capsys):
    """And nothing is logged of it."""
    memory, _ = fit(tiny_llama, SimPOLoss(), whole_runs.preference_rows(2), tmp_path)
    assert "reference: ReferenceFree (the loss uses no reference)" in capsys.readouterr().out
    assert "train/rewards/accuracies" in memory.steps[1]
    assert "train/logps/ref_accuracies" not in memory.steps[1]


# A precomputed reference


@pytest.mark.parametrize("loss", [TDPO1Loss(), TDPO2Loss(), WeightedSum([DPOLoss(), TDPO2Loss()], [1.0, 1.0])])
def test_a_loss_of_whole_distributions_refuses_sums(loss, tiny_llama, place):
    """By name, before anything is computed."""
    with pytest.raises(UserError, match=f"{type(loss).__name__} needs log-probabilities of the whole vocabulary"):
        fit(tiny_llama, loss, whole_runs.preference_rows(2), place, Precomputed())


@pytest.mark.parametrize("loss", [LDDPOLoss(0.5, 0.3), mpo(0.5), BCO], ids=["ld-dpo", "mpo", "bco"])
def test_a_precomputed_reference_serves_every_other_loss(loss, tiny_llama, place):
    """Steps with it are those of a live one; for LD-DPO token by token."""
    rows = whole_runs.preference_rows(6)
    data = {"batch_size": 2, "max_length": 64, "shuffle": False}
    curves = []
    for reference in (None, Precomputed()):
        module = whole_runs.dpo(tiny_llama, loss=copy.deepcopy(loss), reference=reference)
        module_data = PreferenceDataModule(whole_runs.write_rows(place, "train", rows), **data)
        curves.append(whole_runs.fit(module, module_data, place)[0])
    live, looked_up = curves
    assert len(live.steps) == 3
    for name in ("loss", "rewards/chosen", "rewards/margins"):
        assert live.curve(f"train/{name}") == pytest.approx(looked_up.curve(f"train/{name}"), abs=1e-4)
    assert abs(live.curve("train/loss")[-1] - live.curve("train/loss")[0]) > 1e-3


@pytest.mark.parametrize("name", ["tdpo 1", "tdpo 2", "wpo", "ld-dpo 0"])
def test_an_adapter_that_is_switched_off_is_the_reference(name, tiny_llama, file):
    """Losses and gradients of a new adapter are those against a frozen copy, after a step as well."""
    found = []
    for reference in (None, FrozenCopy()):
        torch.manual_seed(0)
        made = short_runs.ready(tiny_llama, reference, loss=None, lora=Lora(r=4))
        made.loss = FAMILY[name]
        pairs = short_runs.batch(made, file)
        short_runs.take_steps(made, pairs)
        output, _ = made.compare(pairs)
        output.losses.mean().backward()
        trained = [value for value in made.policy.parameters() if value.requires_grad]
        found.append((*output, *(value.grad for value in trained)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert found[0][1].abs().max() > 1e-3
