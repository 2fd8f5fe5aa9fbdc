"""Mistakes that only a library notices: the option is named, and none of them is called a bug."""

import errno
import os

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from support.command_line import refused

from dpo_lightning.config.library_errors import translate_error, user_error
from dpo_lightning.errors import ExitCode, UserError


def of_trainer(option, name, options=""):
    return f"trainer: {{{option}: {{class_path: {name}, init_args: {{{options}}}}}}}"


def of_model(option, name, options=""):
    path = f"torch.optim.{name}"
    return f"model: {{init_args: {{{option}: {{class_path: {path}, init_args: {{{options}}}}}}}}}"


CASES = {
    "a logger that is not installed": (of_trainer("logger", "WandbLogger"), 64, "WandbLogger", "wandb"),
    "another": (of_trainer("logger", "MLFlowLogger"), 64, "MLFlowLogger", "mlflow"),
    "a timer": ("trainer: {callbacks: [{class_path: Timer}]}", 64, "as if it were complete", "trainer.max_time"),
    "a negative constant": (of_model("optimizer", "AdamW", "eps: -1"), 64, "Invalid epsilon", "at model.optimizer"),
    "an optimizer of matrices": (of_model("optimizer", "Muon"), 64, "only supports 2D", "at model.optimizer"),
    "no optimizer": (of_model("optimizer", "Optimizer"), 64, "at model.optimizer"),
    "an optimizer of several passes": (of_model("optimizer", "LBFGS"), 64, "LBFGS", "at model.optimizer"),
    "an optimizer of sparse gradients": (of_model("optimizer", "SparseAdam"), 64, "dense", "at model.optimizer"),
    "a differentiable step": (
        of_model("optimizer", "AdamW", "differentiable: true, fused: false"),
        64,
        "differentiable",
        "at model.optimizer",
    ),
    "options that exclude one another": (
        of_model("optimizer", "AdamW", "differentiable: true, fused: true"),
        64,
        "`fused` does not support `differentiable`",
        "at model.optimizer",
    ),
    "a graph on a CPU": (of_model("optimizer", "Adam", "capturable: true"), 64, "capturable", "at model.optimizer"),
    "a schedule by a measure": (
        of_model("lr_scheduler", "lr_scheduler.ReduceLROnPlateau"),
        64,
        "ReduceLROnPlateau",
        "LinearLR",
        "at model.lr_scheduler",
    ),
    "a schedule that is shorter than the run": (
        of_model("lr_scheduler", "lr_scheduler.OneCycleLR", "max_lr: 1.0e-4, total_steps: 1"),
        64,
        "total_steps=1",
        "at model.lr_scheduler",
    ),
    "a schedule without a period": (
        of_model("lr_scheduler", "lr_scheduler.CosineAnnealingLR", "T_max: 0"),
        64,
        "at model.lr_scheduler",
    ),
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
    "all devices of a CPU": ("trainer: {devices: -1}", 64, "devices", "auto"),
    "a device that is not installed": ("trainer: {accelerator: tpu}", 64, "torch_xla"),
    "a metric that nobody measures": (
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: nope}}]}",
        64,
        "'nope'",
        "train/loss",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_told_as_one(bench, case):
    text, code, *said = CASES[case]
    refused(bench.fit(*bench.overlay(text)), code, *said)


def failed_write(number):
    """What writing raises."""
    return OSError(number, os.strerror(number))


KNOWN = [
    *((failed_write(number), 74, "writing failed") for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 74, "the device is out of memory"),
    (RuntimeError("Out of memory"), 74, "the device is out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 74, "the device is out of memory"),
    (ImportError("a.so: failed to map segment from shared object"), 74, "the device is out of memory"),
    (RuntimeError("can't start new thread"), 74, "the device is out of memory"),
    (failed_write(errno.EFBIG), 74, "writing failed: File too large"),
    (PermissionError(errno.EACCES, "Permission denied", "run/file"), 74, "Permission denied: run/file"),
    (ValueError("Error while serializing: I/O error: Permission denied (os error 13)"), 74, ": Permission denied (os"),
    (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), 74, "unexpected pos 64 vs 0"),
    (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), 74, "--data.num_workers 0"),
    (RuntimeError("[../gloo/transport/tcp/pair.cc:5] Connection closed by peer"), 74, "another process of the run"),
    (RuntimeError("Error(s) in loading state_dict for DPO:\n\tsize mismatch"), 64, "belongs to another model"),
    (ValueError("a group that doesn't match the size of optimizer's group"), 64, "belongs to another model"),
    (
        MisconfigurationException("No supported GPU backend found!\nmore"),
        69,
        "error: No supported GPU backend found!\n",
    ),
    (MisconfigurationException("CUDA is not there"), 69, "doctor"),
    (MisconfigurationException("MPS is not there"), 69, "doctor"),
    (MisconfigurationException("too many devices"), 69, "doctor"),
    (MisconfigurationException("an invalid accelerator name: gpus"), 64, "--help"),
    (MisconfigurationException("no such option\nmore"), 64, "error: no such option\n"),
    (ValueError("Errors:\n  - Problem with given class_path 'a.B':\n  it is wrong"), 64, "error: it is wrong at a.B\n"),
    (ValueError("Errors:\n  - it is wrong"), 64, "error: it is wrong\n"),
    (RuntimeError("Early stopping conditioned on metric `x`\nmore"), 64, "metric `x`\nfix"),
]
UNKNOWN = [
    failed_write(errno.EACCES),
    RuntimeError("No space left on device"),
    RuntimeError("a memory of the devices"),
    RuntimeError("Errors:\n  - it is wrong"),
    KeyError("x"),
]


@pytest.mark.parametrize(("error", "code", "said"), KNOWN, ids=str)
def test_each_is_known_by_what_it_says(error, code, said):
    found = translate_error(error)
    assert found.code == code
    assert said in str(found)


@pytest.mark.parametrize("error", UNKNOWN, ids=str)
def test_another_error_stays_one(error):
    assert translate_error(error) is None


def test_an_error_of_ours_is_found_however_it_was_wrapped():
    own = UserError(ExitCode.DATA, "mine")
    caused, meanwhile = ValueError("out of memory"), KeyError()
    caused.__cause__, meanwhile.__context__ = meanwhile, own
    assert translate_error(own) is translate_error(caused) is user_error(caused) is own
    assert user_error(KeyError()) is user_error(None) is None
