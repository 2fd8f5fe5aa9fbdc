"""Training steps: exact over micro-batches, short windows and ranks; what is optimized; what a checkpoint holds."""

import math
from functools import partial
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from support import whole_runs
from support.two_ranks import run_on_two_ranks
from support.whole_runs import KINDS
from torch.nn.functional import softplus
from torch.optim import SGD

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import IPOLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora

ROWS, WINDOW = 10, 4


def dpo_sum(policy, reference, row):
    """DPO's loss of a pair, and 1: pairs count the same."""
    pair = whole_runs.plain_pair(policy, reference, row)
    return softplus(-0.1 * (pair["a"] - pair["r"])), 1


def sft_sum(policy, reference, row):
    """A completion's negative log-probability, and its tokens: tokens count by the weight of their row."""
    logps = whole_runs.plain_logps(policy, row.prompt_ids, row.completion.ids)
    return -row.weight * logps.sum(), row.weight * len(row.completion.ids)


def list_sum(policy, reference, row):
    """The Plackett-Luce loss of a list as a plain sum over its places, and 1: lists count the same."""

    def ratio(answer):
        with torch.no_grad():
            start = whole_runs.plain_logps(reference, row.prompt_ids, answer.ids).sum()
        return 0.1 * (whole_runs.plain_logps(policy, row.prompt_ids, answer.ids).sum() - start)

    s = torch.stack([ratio(answer) for answer in row.answers])
    return sum(s[place:].logsumexp(0) - s[place] for place in range(len(s) - 1)), 1


def train(kind, model, folder, batch_size, accumulate, rows=ROWS, module_options=None, **options):
    """Train on rows in the order of the file; module, what was logged, trainer and encoded rows."""
    make, data_module, make_rows = KINDS[kind]
    module = make(model, **({"optimizer": SGD, "learning_rate": whole_runs.SGD_RATE} | (module_options or {})))
    data = data_module(
        whole_runs.write_rows(folder, "train", make_rows(rows)), batch_size=batch_size, max_length=64, shuffle=False
    )
    memory, trainer = whole_runs.fit(module, data, folder, accumulate_grad_batches=accumulate, **options)
    return module, memory, trainer, data.encoded["train"]


def assert_same_weights(one, other, start):
    """Equal within float32's rounding, after steps that moved them a thousand times as far."""
    assert one.keys() == other.keys() == start.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)
    assert max(float((value - start[name]).abs().max()) for name, value in one.items()) > 1e-3


@pytest.fixture(scope="module")
def start(tiny_llama):
    """The weights of the model folder."""
    return dict(CausalLM(str(tiny_llama)).build().requires_grad_(False).named_parameters())


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(("kind", "loss"), [("dpo", dpo_sum), ("listwise", list_sum), ("sft", sft_sum)])
def test_a_step_is_the_mean_over_its_window(kind, loss, clip, tiny_llama, tmp_path, start):
    """10 rows, 4 or 8 a step, the last step 2: however they are cut into micro-batches, and in plain PyTorch."""
    sgd = partial(SGD, lr=whole_runs.SGD_RATE)
    for cuts in (((1, 4), (2, 2), (4, 1)), ((1, 8), (8, 1))):
        window = cuts[0][0] * cuts[0][1]
        expected, logged = None, None
        for batch_size, accumulate in cuts:
            module, memory, trainer, encoded = train(
                kind, tiny_llama, tmp_path, batch_size, accumulate, max_epochs=2, gradient_clip_val=clip
            )
            assert trainer.global_step == 2 * -(-ROWS // window)
            if expected is None:
                losses, expected = whole_runs.plain_run(tiny_llama, encoded, loss, window, sgd, clip, epochs=2)
                assert memory.curve("train/loss") == pytest.approx(losses, rel=1e-5)
                logged = memory.steps
            assert_same_weights(whole_runs.weights(module), expected, start)
            assert memory.steps.keys() == logged.keys()
            for step, metrics in memory.steps.items():
                assert metrics == pytest.approx(logged[step], rel=1e-5, abs=1e-4)


def test_a_row_of_weight_0_may_have_no_finite_loss(tiny_llama):
    """Neither NaN nor infinity reaches the sum `3 * (2 * 1.5 + 0.5 * 2)` or its gradient, as of a filler."""
    module = KINDS["dpo"][0](tiny_llama)
    module.trainer = Trainer(accelerator="cpu", devices=1, logger=False, accumulate_grad_batches=3)
    losses = torch.tensor([1.5, math.nan, math.inf, 2.0], requires_grad=True)
    total = module.accumulate(losses, torch.tensor([2.0, 0.0, 0.0, 0.5]))
    total.backward()
    assert total == 12.0
    assert losses.grad.tolist() == [6.0, 0.0, 0.0, 1.5]


def test_two_ranks_are_one(tiny_llama, tmp_path, start):
    """9 training and 5 eval rows on 2 ranks: weights and every metric of a process that sees the same global batch."""
    both = run_on_two_ranks(whole_runs.__file__, tiny_llama, tmp_path)
    for kind, two in both.items():
        one = whole_runs.odd_run(kind, tiny_llama, tmp_path / "one", ranks=1)
        assert_same_weights(two["weights"], one["weights"], start)
        assert two["logged"].keys() == one["logged"].keys() == {1, 2, 3, 4, 5, 6}
        names = set().union(*one["logged"].values())
        assert {"train/loss", "eval/loss"} <= names
        assert kind == "sft" or {"eval/rewards/accuracies", "train/rewards/margins"} <= names
        for step, metrics in one["logged"].items():
            assert two["logged"][step] == pytest.approx(metrics, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_does_not_depend_on_the_batch_size(kind, tiny_llama, tmp_path):
    """5 rows in batches of 1, 2 and 3: the short last batch weighs what it holds."""
    make, data_module, make_rows = KINDS[kind]
    results = []
    for batch_size in (1, 2, 3):
        files = [whole_runs.write_rows(tmp_path, name, make_rows(5, i)) for name, i in (("train", 0), ("eval", 50))]
        data = data_module(*files, batch_size=batch_size, max_length=64, shuffle=False)
        memory, _ = whole_runs.fit(make(tiny_llama), data, tmp_path, accumulate_grad_batches=5)
        results.append({name: value for name, value in memory.steps[1].items() if name.startswith("eval/")})
    assert len(results[0]) == {"dpo": 11, "listwise": 6, "sft": 1}[kind]
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_forgets_the_one_before(kind, tiny_llama, tmp_path):
    """Each is of its step's weights alone: the second of a run equals one more of the final weights."""
    make, data_module, make_rows = KINDS[kind]
    files = [whole_runs.write_rows(tmp_path, name, make_rows(4, i)) for name, i in (("train", 0), ("eval", 50))]
    data = data_module(*files, batch_size=2, max_length=64)
    module = make(tiny_llama)
    memory, trainer = whole_runs.fit(module, data, tmp_path, max_epochs=2)
    first, second = memory.curve("eval/loss")
    assert abs(first - second) > 0.01
    assert trainer.validate(module, datamodule=data, verbose=False)[0]["eval/loss"] == pytest.approx(second, rel=1e-6)


def test_a_log_line_is_the_mean_since_the_last_one(tiny_llama, tmp_path):
    """`log_every_n_steps` 2: every pair of both steps counts once, not the last micro-batch alone."""
    often = train("dpo", tiny_llama, tmp_path, 1, 2, rows=6)[1]
    _, seldom, trainer, _ = train("dpo", tiny_llama, tmp_path, 1, 2, rows=6, log_every_n_steps=3)
    assert list(seldom.steps) == [3]
    bar = trainer.progress_bar_metrics
    assert bar["train/loss"] == pytest.approx(seldom.curve("train/loss")[0], rel=1e-6)
    assert bar["train/rewards/margins"] == pytest.approx(seldom.curve("train/rewards/margins")[0], rel=1e-6)
    assert seldom.steps[3].pop("train/grad_norm") == pytest.approx(often.curve("train/grad_norm")[-1], rel=1e-5)
    for name, value in seldom.steps[3].items():
        assert value == pytest.approx(sum(often.curve(name)) / len(often.curve(name)), rel=1e-5, abs=1e-4)


def test_ipo_wins_by_its_own_score(tiny_llama, tmp_path):
    """rewards/* of a run with IPO come from means, those of a run with its summed form from sums."""
    by_mean, by_sum = (
        train("dpo", tiny_llama, tmp_path, 5, 1, module_options={"loss": IPOLoss(0.2, form)})[1]
        for form in ("mean", "sum")
    )
    for memory in (by_mean, by_sum):
        assert memory.curve("train/rewards/ties") == [1, 0]
    assert by_sum.curve("train/rewards/margins")[1] == pytest.approx(0.2 * by_sum.curve("train/logps/margins")[1])
    assert by_mean.curve("train/rewards/margins")[1] < 0.5 * 0.2 * by_mean.curve("train/logps/margins")[1]


def test_sft_loss_is_transformers_own(tiny_llama, tmp_path):
    """The first loss is the cross-entropy that transformers computes from labels, prompt left out."""
    from transformers import AutoModelForCausalLM

    _, memory, _, encoded = train("sft", tiny_llama, tmp_path, 1, 1)
    row, model = encoded[0], AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.tensor([[*row.prompt_ids, *row.completion.ids]])
    labels = ids.clone()
    labels[:, : len(row.prompt_ids)] = -100
    assert memory.curve("train/loss")[0] == pytest.approx(float(model(ids, labels=labels).loss.detach()), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learning_rate_is_positive_and_rarely_large(kind, tiny_llama, capsys):
    make = KINDS[kind][0]
    for rate in (0.0, -1e-6, math.nan, math.inf):
        with pytest.raises(UserError, match=f"learning_rate={rate} is not a positive number") as told:
            make(tiny_llama, learning_rate=rate)
        assert told.value.code == ExitCode.CONFIG
    make(tiny_llama, learning_rate=1e-2)
    make(tiny_llama, learning_rate=0.5, policy=CausalLM(str(tiny_llama), lora=Lora(r=2)))
    assert "very large" not in capsys.readouterr().out
    make(tiny_llama, learning_rate=0.0101)
    assert "warning: learning_rate=0.0101 is very large for training all weights" in capsys.readouterr().out


class Watched(SGD):
    """An optimizer that tells what it was given."""

    given: ClassVar = {}

    def __init__(self, params, lr, **options):
        params = list(params)
        type(self).given = {"params": params, "lr": lr, **options}
        super().__init__(params, lr)


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_optimizer_holds_what_is_trained(kind, lora, tiny_llama, tmp_path):
    """All weights once, or the adapter's: nothing of the reference, nothing frozen, nothing forgotten."""
    options = {
        "policy": CausalLM(str(tiny_llama), lora=lora),
        "optimizer": partial(Watched, foo=1),
        "learning_rate": 0.02,
    }
    module, _, _, _ = train(kind, tiny_llama, tmp_path, 2, 1, module_options=options)
    names = {id(value): name for name, value in module.policy.named_parameters()}
    held = [names[id(value)] for value in Watched.given["params"]]
    expected = {name for name in names.values() if lora is None or "lora_" in name}
    assert len(held) == len(set(held))
    assert set(held) == expected
    assert Watched.given["lr"] == 0.02
    assert Watched.given["foo"] == 1


class Paged(SGD):
    """An optimizer that would page its states to the CPU."""

    is_paged = True


@pytest.mark.parametrize(("optimizer", "told"), [(SGD, False), (Paged, True)])
def test_states_are_said_not_to_be_paged_where_they_would_be(optimizer, told, tiny_llama, capsys):
    """Runs are on a CPU here, and its memory is where they would go."""
    module = whole_runs.sft(tiny_llama, optimizer=optimizer)
    module.configure_model()
    module.configure_optimizers()
    assert ("optimizer: its states are not paged" in capsys.readouterr().out) == told


def test_the_schedule_is_stepped_once_per_optimizer_step(tiny_llama, tmp_path):
    """10 rows, accumulation 4: three steps, not ten."""
    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.5**step)
    options = {"lr_scheduler": schedule, "learning_rate": 0.08}
    _, _, trainer, _ = train("sft", tiny_llama, tmp_path, 1, 4, module_options=options)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.08 / 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_a_lora_run_holds_only_what_is_trained(kind, tiny_llama, tmp_path):
    """The embedding is tied to the head, so that the base has two names for one tensor: neither is kept."""
    options = {"policy": CausalLM(str(tiny_llama), lora=Lora(r=2)), "optimizer": whole_runs.PLAIN_ADAMW}
    module, _, trainer, _ = train(kind, tiny_llama, tmp_path, 2, 1, module_options=options)
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    trained = {f"policy.{name}" for name, value in module.policy.named_parameters() if value.requires_grad}
    assert set(state) == trained
    assert all("lora_" in name for name in trained)
    again, _, _, _ = train(kind, tiny_llama, tmp_path, 2, 1, module_options=options, ckpt_path=path)
    for name, value in whole_runs.weights(module).items():
        assert torch.equal(value, again.policy.get_parameter(name)), name
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"].pop(min(trained))
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match="Missing key"):
        train(kind, tiny_llama, tmp_path, 2, 1, module_options=options, ckpt_path=path)


def test_a_checkpoint_of_a_whole_model_holds_no_reference(tiny_llama, tmp_path):
    module, _, trainer, _ = train("dpo", tiny_llama, tmp_path, 2, 1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {f"policy.{name}" for name in module.policy.state_dict()}


def test_a_resumed_run_logs_whole_windows(tiny_llama, tmp_path):
    """Resumed after step 2 of 4 with accumulation 2: the first line is of step 3, not of step 2's one batch more."""
    options = {"rows": 8, "batch_size": 1, "accumulate": 2}
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1, save_on_train_epoch_end=False)
    train("dpo", tiny_llama, tmp_path, **options, callbacks=[saver], enable_checkpointing=True)
    rest = train("dpo", tiny_llama, tmp_path, **options, ckpt_path=tmp_path / "step=2.ckpt")[1]
    assert rest.steps.keys() == {3, 4}
