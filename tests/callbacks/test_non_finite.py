"""Losses and gradients that are NaN or infinite: the run stops before they reach the weights, or drops the step."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support import kto_runs, whole_runs
from support.command_line import refused
from support.poison import Poison

from dpo_lightning import UnpairedDataModule
from dpo_lightning.callbacks.measure import leave_out_non_finite
from dpo_lightning.callbacks.non_finite import NonFinite, find_rows, join_rows
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import BCOPairLoss
from dpo_lightning.metrics import Means

KINDS = {**whole_runs.KINDS, "kto": (kto_runs.kto, UnpairedDataModule, kto_runs.labelled_rows)}


def train(kind, model, folder, *callbacks, module=None, **options):
    """Train on 8 rows, two a micro-batch, in their order."""
    make, data_module, make_rows = KINDS[kind]
    rows = [{name: value for name, value in row.items() if name != "weight"} for row in make_rows(8)]
    file = whole_runs.write_rows(folder, "train", rows)
    data = data_module(file, batch_size=2, max_length=64, shuffle=False)
    module = module or make(model)
    return file, whole_runs.fit(module, data, folder, callbacks=list(callbacks), **options)


def stop(kind, model, folder, *callbacks, **options):
    """The message of a run that diverges."""
    with pytest.raises(UserError) as raised:
        train(kind, model, folder, *callbacks, **options)
    assert raised.value.code == ExitCode.DIVERGED
    return str(raised.value)


@pytest.mark.parametrize(("kind", "value"), [*((kind, math.nan) for kind in KINDS), ("dpo", math.inf)])
def test_a_row_stops_the_run_before_it_reaches_the_weights(kind, value, tiny_llama, tmp_path):
    poison = Poison(rows=[3], value=value)
    error = stop(kind, tiny_llama, tmp_path, poison)
    (line,) = [line for line in error.splitlines() if line.startswith("error")]
    assert line == f"error: the loss of this row is NaN or infinite in step 2 at {tmp_path}/train.jsonl:4"
    assert "learning_rate" not in error
    assert poison.after == poison.before[1]


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_a_gradient_stops_the_run_before_it_reaches_the_weights(kind, tiny_llama, tmp_path):
    poison = Poison(steps=[3])
    error = stop(kind, tiny_llama, tmp_path, poison)
    assert f"the gradient norm of step 3 is NaN or infinite; its rows are at {tmp_path}/train.jsonl:5, " in error
    assert "--model.learning_rate" in error
    assert poison.after == poison.before[2]


def test_gradients_whose_norm_overflows_stop_the_run(tiny_llama, tmp_path):
    """Clipping would make them 0."""
    assert "gradient norm" in stop("dpo", tiny_llama, tmp_path, Poison(steps=[3], value=1e30), gradient_clip_val=1.0)


def test_a_loss_without_gradient_is_seen(tiny_llama, tmp_path):
    """In any micro-batch of the window, also where all gradients are finite."""

    class Constant(Poison):
        def on_train_start(self, trainer, pl_module):
            real = pl_module.accumulate

            def poisoned(losses, weights):
                return real(losses + torch.where(self.indices == 5, math.inf, 0), weights)

            pl_module.accumulate = poisoned

    error = stop("dpo", tiny_llama, tmp_path, Constant(), accumulate_grad_batches=4)
    assert "the loss of this row is NaN or infinite in step 1 at" in error
    assert "train.jsonl:6" in error


def test_the_first_step_blames_no_learning_rate(tiny_llama, tmp_path):
    error = stop("dpo", tiny_llama, tmp_path, Poison(rows=range(8)))
    assert f"step 1 is NaN or infinite; its rows are at {tmp_path}/train.jsonl:1, {tmp_path}/train.jsonl:2\n" in error
    assert "learning_rate" not in error
    assert "there is no checkpoint yet" in error


def test_the_newest_checkpoint_is_finite_and_named(tiny_llama, tmp_path):
    saver = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
    error = stop("dpo", tiny_llama, tmp_path, Poison(rows=[5]), saver, enable_checkpointing=True)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step=1.ckpt", "step=2.ckpt"]
    assert f"the newest checkpoint is {tmp_path}/kept/step=2.ckpt" in error
    held = torch.load(tmp_path / "kept/step=2.ckpt", weights_only=False)["state_dict"]
    assert all(value.isfinite().all() for value in held.values())


@pytest.mark.parametrize(("kind", "rows", "steps"), [("dpo", [2], []), ("sft", [2], []), ("dpo", [], [2])])
def test_a_dropped_step_changes_nothing(kind, rows, steps, tiny_llama, tmp_path, capsys):
    """Neither weights nor the optimizer; the steps after it are trained as ever."""
    poison, dropping = Poison(rows, steps), NonFinite(skip=1)
    _, (memory, trainer) = train(kind, tiny_llama, tmp_path, poison, dropping)
    assert poison.before[1] == poison.before[2] != poison.before[3]
    assert (trainer.global_step, dropping.dropped) == (4, 1)
    assert "nan" not in poison.before[4]
    assert [math.isfinite(memory.steps[step]["train/loss"]) for step in (1, 3, 4)] == [True] * 3
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "dropped" in line]
    assert line.startswith("warning: step 2 is dropped (1 so far): its ")
    assert f"{tmp_path}/train.jsonl:3" in line


def test_a_whole_window_is_dropped(tiny_llama, tmp_path):
    poison, dropping = Poison(rows=[2]), NonFinite(skip=1)
    train("dpo", tiny_llama, tmp_path, poison, dropping, accumulate_grad_batches=2)
    assert poison.before[0] == poison.before[1] != poison.before[2]
    assert dropping.dropped == 1


def test_more_steps_in_a_row_than_may_be_dropped_stop_the_run(tiny_llama, tmp_path):
    dropping = NonFinite(skip=2)
    train("dpo", tiny_llama, tmp_path, Poison(steps=[1, 2, 4]), dropping)
    assert dropping.dropped == 3
    assert "gradient norm of step 4" in stop("dpo", tiny_llama, tmp_path, Poison(steps=[2, 3, 4]), NonFinite(skip=2))


def test_a_loss_with_a_running_mean_forgets_a_dropped_step(tiny_llama, tmp_path):
    module = whole_runs.dpo(tiny_llama, loss=BCOPairLoss())
    means = []

    class Look(Poison):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            means.append([(float(part.value), float(part.weight)) for part in pl_module._means()])

    train("dpo", tiny_llama, tmp_path, Look(rows=[2]), NonFinite(skip=1), module=module)
    assert means[0]
    assert means[1] == means[2] != means[3]


def test_the_loss_of_held_out_rows_names_them(tiny_llama, tmp_path):
    make, data_module, make_rows = KINDS["dpo"]
    files = [whole_runs.write_rows(tmp_path, name, make_rows(4, first)) for name, first in (("train", 0), ("eval", 50))]
    module = make(tiny_llama)
    real = module.compare

    def poisoned(batch, rows="train"):
        output, logps = real(batch, rows)
        lost = (batch.indices == 2) & (rows == "eval")
        return output._replace(losses=torch.where(lost, math.nan, output.losses)), logps

    module.compare = poisoned
    with pytest.raises(UserError, match=r"eval/loss is nan at step 2 at .*eval.jsonl:3\n") as raised:
        whole_runs.fit(module, data_module(*files, batch_size=2, max_length=64), tmp_path)
    assert raised.value.code == ExitCode.DIVERGED


def test_means_of_training_leave_dropped_values_out():
    means = Means(("a", "b"))
    values = {"a": torch.tensor([1.0, math.nan, 3.0]), "b": torch.tensor([math.inf, 2.0, 4.0])}
    means.update(*leave_out_non_finite(values, torch.tensor([1.0, 1.0, 3.0])))
    assert means.compute() == {"a": torch.tensor(2.5), "b": torch.tensor(3.5)}


def test_rows_that_fill_up_are_none_of_the_step():
    window = [(torch.tensor([4, -1]), torch.tensor([math.nan, math.nan])), (torch.tensor([7]), torch.tensor([1.0]))]
    assert find_rows(window) == ([4], [4, 7])


def test_many_rows_are_counted():
    assert join_rows([str(i) for i in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(UserError, match="skip is less than 0"):
        NonFinite(skip=-1)


def test_the_command_line_sets_how_many_steps_are_dropped(bench, monkeypatch):
    """And a diverging run ends with 76 and the remedy."""
    ran = bench.fit("--model.learning_rate", "1e30", "--trainer.max_epochs", "3")
    refused(ran, ExitCode.DIVERGED, "is NaN or infinite; its rows are at", "train.jsonl:", "--model.learning_rate")
    ran = bench.fit(
        *("--model.learning_rate", "1e30", "--trainer.max_epochs", "2", "--trainer.gradient_clip_val", "0"),
        *("--trainer.callbacks+=NonFinite", "--trainer.callbacks.skip=9"),
        out="dropped",
    )
    assert ran.code == 0, ran
    assert "is dropped (1 so far)" in ran.out


def test_a_run_that_goes_on_counts_the_dropped_steps_on():
    before, after = NonFinite(skip=2), NonFinite(skip=2)
    before.dropped, before._in_a_row, before._overflows = 5, 2, 1
    after.load_state_dict(before.state_dict())
    assert after.state_dict() == before.state_dict() == {"dropped": 5, "in_a_row": 2, "overflows": 1}
