"""Trainer options that train nothing or do nothing, and variables of a launcher that say nothing."""

import pytest
from support.command_line import refused, watch_loading

from dpo_lightning.config.class_paths import Namespace
from dpo_lightning.config.trainer_options import LAUNCHERS, check_trainer
from dpo_lightning.errors import UserError

NAN, INF = float("nan"), float("inf")
WRONG = [
    {"gradient_clip_val": -1},
    {"gradient_clip_val": NAN},
    {"gradient_clip_val": INF},
    {"gradient_clip_algorithm": "norm", "gradient_clip_val": None},
    {"gradient_clip_algorithm": "norm", "gradient_clip_val": 0},
    {"limit_train_batches": 0},
    {"limit_train_batches": 0.0},
    {"limit_train_batches": -1},
    {"limit_train_batches": NAN},
    {"limit_train_batches": 1.5},
    {"limit_val_batches": -0.5},
    {"overfit_batches": -1},
    {"overfit_batches": INF},
    {"val_check_interval": 0},
    {"val_check_interval": 0.0},
    {"val_check_interval": -2},
    {"val_check_interval": NAN},
    {"val_check_interval": "00:00:00:00"},
    {"check_val_every_n_epoch": 0},
    {"num_sanity_val_steps": -2},
    {"accumulate_grad_batches": 0},
    {"log_every_n_steps": 0},
    {"max_epochs": 0},
    {"max_epochs": -2},
    {"max_steps": 0},
    {"min_epochs": -1},
    {"min_steps": -1},
    {"min_steps": 5, "max_steps": 3},
    {"min_epochs": 5, "max_epochs": 3},
    {"fast_dev_run": -1},
    {"num_nodes": 0},
    {"num_nodes": 2},
    {"barebones": True},
    {"precision": 64},
    {"precision": "64-true"},
    {"reload_dataloaders_every_n_epochs": -1},
    {"max_time": "00:00:00:00"},
    {"max_time": "soon"},
    {"max_time": {"hours": 0}},
    {"max_time": {"hours": -1}},
    {"max_time": {"lightyears": 1}},
    {"max_time": {"days": 10**12}},
    {"default_root_dir": "elsewhere"},
    {"model_registry": "organization/project/model"},
]
RIGHT = [
    {"gradient_clip_val": 0, "max_steps": -1, "max_epochs": -1, "num_sanity_val_steps": -1, "fast_dev_run": False},
    {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value", "min_steps": 0, "max_steps": 3},
    {"min_steps": 5, "max_steps": -1, "min_epochs": 2, "max_epochs": -1},
    {"limit_train_batches": 1, "limit_val_batches": 0, "overfit_batches": 0.0, "val_check_interval": 1.0},
    {"limit_train_batches": 0.5, "val_check_interval": 500, "check_val_every_n_epoch": None, "max_time": None},
    {"max_time": "00:12:00:00", "default_root_dir": None},
    {"max_time": " 00:12:00:00 "},
    {"max_time": {"hours": 1}, "val_check_interval": {"minutes": 5}},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_what_trains_nothing_is_refused(options, monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError) as caught:
        check_trainer(Namespace(options), "fit")
    first = next(iter(options))
    assert caught.value.code == 64
    assert f"at trainer.{first}" in str(caught.value)
    assert f"fix: change --trainer.{first}" in str(caught.value)


@pytest.mark.parametrize("options", RIGHT, ids=str)
def test_what_trains_something_is_not(options):
    check_trainer(Namespace(options), "fit")


@pytest.mark.parametrize(
    ("command", "name", "other"),
    [
        ("fit", "limit_train_batches", "validate"),
        ("validate", "limit_val_batches", "fit"),
        ("test", "limit_test_batches", "fit"),
        ("predict", "limit_predict_batches", "fit"),
    ],
)
def test_a_command_that_would_do_nothing(command, name, other):
    """And the other commands may leave the part out."""
    with pytest.raises(UserError, match=f"{name}=0 leaves no batch"):
        check_trainer(Namespace({name: 0}), command)
    check_trainer(Namespace({name: 0}), other)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "precompute"])
def test_an_interval_of_0_is_one_for_no_command(command):
    """The configuration would be refused by the `fit` that it is for."""
    with pytest.raises(UserError, match="val_check_interval=0 leaves no batch"):
        check_trainer(Namespace({"val_check_interval": 0}), command)


@pytest.mark.parametrize(
    "text",
    ["gradient_clip_val: -1", "limit_train_batches: 0", "max_time: {hours: 0}", "default_root_dir: x", "max_time: '0'"],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_the_command_line_refuses_it(bench, monkeypatch, command, text):
    """As a file gives it; a limit of training alone is nothing to `validate`."""
    text = "limit_val_batches: 0" if (command, text) == ("validate", "limit_train_batches: 0") else text
    loaded = watch_loading(monkeypatch)
    refused(bench.run(command, *bench.overlay(f"trainer: {{{text}}}")), 64, f"at trainer.{text.partition(':')[0]}")
    assert not loaded
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_several_machines_with_a_launcher(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    check_trainer(Namespace({"num_nodes": 2}), "fit")


CALLBACKS = {
    "BackboneFinetuning": "",
    "BaseFinetuning": "",
    "BatchSizeFinder": "",
    "GradientAccumulationScheduler": "scheduling: {0: 2}",
    "LearningRateFinder": "",
    "ModelPruning": "pruning_fn: l1_unstructured",
    "StochasticWeightAveraging": "swa_lrs: 0.01",
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("several", [True, False])
def test_a_callback_that_changes_what_is_trained_is_refused(bench, monkeypatch, name, several):
    loaded = watch_loading(monkeypatch)
    given = f"{{class_path: {name}, init_args: {{{CALLBACKS[name]}}}}}"
    overlay = bench.overlay(f"trainer: {{callbacks: {f'[{given}]' if several else given}}}")
    refused(bench.fit(*overlay), 64, f"{name} ", "at trainer.callbacks")
    assert not loaded


@pytest.mark.parametrize(
    ("name", "option"),
    [("ModelSummary", "max_depth"), ("RichModelSummary", "max_depth"), ("EarlyStopping", "patience")],
)
def test_an_option_with_which_a_callback_would_fail_later_is_refused(bench, monkeypatch, name, option):
    """A number in the message was taken for the value of a variable."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = f"trainer: {{callbacks: {{class_path: {name}, init_args: {{monitor: eval/loss, {option}: -3}}}}}}"
    overlay = bench.overlay(given if name == "EarlyStopping" else given.replace("monitor: eval/loss, ", ""))
    refused(bench.fit(*overlay), 64, f"{option} is less than", f"fix: --trainer.callbacks.{option} ")


def test_a_callback_of_ones_own_may_have_such_a_name():
    """Also a subclass of an abstract one; and other commands train nothing."""
    check_trainer(Namespace(callbacks=[Namespace(class_path="my_callbacks.BaseFinetuning")]), "fit")
    check_trainer(Namespace(callbacks=[Namespace(class_path="lightning.pytorch.callbacks.ModelPruning")]), "validate")


STOPPING = "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: eval/loss, OPTIONS}}]}"


def test_a_run_that_ends_before_its_first_evaluation_may_stop_early(bench):
    """Nothing was measured then; the evaluation at the end, and the final model, are still there."""
    ran = bench.fit(*bench.overlay(STOPPING.replace("OPTIONS", "patience: 3")), "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    assert bench.json("metrics.json")["eval/pairs"] == 5
    assert (bench.folder / "run" / "final_model").exists()


def test_early_stopping_ends_a_run_after_an_evaluation(bench):
    worse = STOPPING.replace("OPTIONS", "patience: 1, min_delta: 100.0")
    ran = bench.fit(*bench.overlay(worse), "--trainer.max_epochs", "5")
    assert ran.code == 0, ran
    assert bench.json("metrics.json")["step"] == 4  # the second evaluation was no better than the first


def test_rows_that_are_not_measured_are_told(bench):
    ran = bench.fit("--trainer.limit_val_batches", "0", "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    assert "note: none of the 5 held-out rows is evaluated: trainer.limit_val_batches is 0\n" in ran.out
