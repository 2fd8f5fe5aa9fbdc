"""Mistakes that only a library notices: the option is named, and none of them is called a bug."""

import pytest
from support.command_line import Bench, refused


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, tiny_llama)


def of_trainer(option, name, options=""):
    return f"trainer: {{{option}: {{class_path: {name}, init_args: {{{options}}}}}}}"


def of_model(option, name, options=""):
    path = f"torch.optim.{name}"
    return f"model: {{init_args: {{{option}: {{class_path: {path}, init_args: {{{options}}}}}}}}}"


CASES = {
    "a logger that is not installed": (of_trainer("logger", "WandbLogger"), 64, "WandbLogger", "wandb"),
    "another": (of_trainer("logger", "MLFlowLogger"), 64, "MLFlowLogger", "mlflow"),
    "a timer's interval": (
        "trainer: {callbacks: [{class_path: Timer, init_args: {interval: day}}]}",
        64,
        "Timer(interval=day)",
    ),
    "a negative constant": (of_model("optimizer", "AdamW", "eps: -1"), 64, "Invalid epsilon", "at model.optimizer"),
    "an optimizer of matrices": (of_model("optimizer", "Muon"), 64, "only supports 2D", "at model.optimizer"),
    "a factor of 0": (
        of_model("lr_scheduler", "lr_scheduler.LinearLR", "start_factor: 0"),
        64,
        "multiplicative factor",
        "at model.lr_scheduler",
    ),
    "a schedule of none": (
        of_model("lr_scheduler", "lr_scheduler.SequentialLR", "schedulers: [], milestones: []"),
        64,
        "at least one scheduler",
        "at model.lr_scheduler",
    ),
    "all devices of a CPU": ("trainer: {devices: -1}", 69, "devices", "doctor"),
    "a device that is not installed": ("trainer: {accelerator: tpu}", 64, "torch_xla"),
    "a metric that nobody measures": (
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: nope}}]}",
        64,
        "`nope`",
        "eval/loss",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_told_as_one(bench, case):
    text, code, *said = CASES[case]
    refused(bench.fit(*bench.overlay(text)), code, *said)
