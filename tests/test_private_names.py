"""Private and undocumented names of libraries that this package uses: each is looked up, and no other is used.

An upgrade that takes one away fails here, by the library's name and the version that it was tried with.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from datasets import Dataset
from jsonargparse import ArgumentParser
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.mixtral import modeling_mixtral

import dpo_lightning

TRIED = {
    "lightning": "2.6.6",
    "jsonargparse": "4.53.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "bitsandbytes": "0.50.2",
    "datasets": "5.2.0",
    "peft": "0.21.2",  # nothing private is used
}


def trainer():
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", **options)


def fit_loop():
    return trainer().fit_loop


def fused_adamw():
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)


def in_source(owner, name):
    """Of an attribute that only a running object has: whether the library's source sets or reads it."""
    return name in inspect.getsource(owner)


PRIVATE = {
    "lightning": {
        "_dump_config": lambda: LightningCLI._dump_config,
        "_get": lambda: LightningCLI._get,
        "_parse_ckpt_path": lambda: LightningCLI._parse_ckpt_path,
        "_run_subcommand": lambda: LightningCLI._run_subcommand,
        "_subcommand_parsers": lambda: in_source(LightningCLI, "self._subcommand_parsers"),
        "_accelerator_connector": lambda: [trainer()._accelerator_connector.cluster_environment],
        "_signal_connector": lambda: trainer()._signal_connector.register_signal_handlers,
        "_child_processes": lambda: in_source(_ChildProcessObserver, "self._child_processes"),
        "_batches_that_stepped": lambda: [fit_loop().epoch_loop._batches_that_stepped],
        "_should_check_val_fx": lambda: fit_loop().epoch_loop._should_check_val_fx,
        "_data_fetcher": lambda: [fit_loop()._data_fetcher],
        "_logger_connector": lambda: trainer()._logger_connector,
        "_first_loop_iter": lambda: [trainer()._logger_connector._first_loop_iter],
        "_kwargs": lambda: [TensorBoardLogger("x")._kwargs],
        "_check_on_train_epoch_end": lambda: [EarlyStopping("eval/loss")._check_on_train_epoch_end],
        "_flush_logs_every_n_steps": lambda: [CSVLogger("x")._flush_logs_every_n_steps],
        "_save_topk_checkpoint": lambda: ModelCheckpoint._save_topk_checkpoint,
        "_rewrite_with_new_header": lambda: ExperimentWriter._rewrite_with_new_header,
        "_skip_next_val": lambda: [fit_loop().epoch_loop._skip_next_val],
        "_timeout": lambda: DDPStrategy()._timeout,
        "_setup_distributed": lambda: ModelParallelStrategy._setup_distributed,
        "_trainer": lambda: [LightningModule()._trainer],
    },
    "jsonargparse": {"_actions": lambda: ArgumentParser()._actions},
    "datasets": {"_fingerprint": lambda: Dataset.from_list([{"a": 1}])._fingerprint},
    "torch": {
        "_DropoutNd": lambda: nn.modules.dropout._DropoutNd,
        "_apply": lambda: nn.Module._apply,
        "_cdata": lambda: [torch.zeros(1).untyped_storage()._cdata],
        "_foreach_add_": lambda: torch._foreach_add_,
        "_foreach_div_": lambda: torch._foreach_div_,
        "_foreach_norm": lambda: torch._foreach_norm,
        "_modules": lambda: [nn.Module()._modules],
        "_parameters": lambda: [nn.Module()._parameters],
        "_softmax_backward_data": lambda: torch._softmax_backward_data,
        "_step_supports_amp_scaling": lambda: fused_adamw()._step_supports_amp_scaling,
        "_task_info": lambda: in_source(_MultiProcessingDataLoaderIter, "self._task_info"),
        "_workers": lambda: in_source(_MultiProcessingDataLoaderIter, "self._workers"),
    },
    "transformers": {
        "_attn_implementation": lambda: [LlamaConfig()._attn_implementation],
        "_commit_hash": lambda: in_source(import_module("transformers.configuration_utils"), '"_commit_hash"'),
        "_no_split_modules": lambda: [PreTrainedModel._no_split_modules],
    },
}
"""Names with an underscore: how each is looked up. What is found may be None, but not the whole answer."""

UNDOCUMENTED = {
    "lightning": {
        "fit_loop.is_resuming": lambda: [fit_loop().is_resuming],
        "fit_loop.restarting": lambda: [fit_loop().restarting],
        "fit_loop.epoch_progress": lambda: fit_loop().epoch_progress.current.started + 1,
        "fit_loop.on_iteration_done": lambda: fit_loop().on_iteration_done,
        "epoch_loop.on_iteration_done": lambda: fit_loop().epoch_loop.on_iteration_done,
        "epoch_loop.batch_progress": lambda: [fit_loop().epoch_loop.batch_progress.is_last_batch],
        "val_loop.batch_progress": lambda: fit_loop().epoch_loop.val_loop.batch_progress.reset,
        "checkpoint: epoch_loop.batch_progress": lambda: fit_loop().state_dict()["epoch_loop.batch_progress"],
        "checkpoint: epoch_progress": lambda: fit_loop().state_dict()["epoch_progress"],
        "MixedPrecision.scaler": lambda: [MixedPrecision("bf16-mixed", "cpu").scaler],
        "child-process-observer": lambda: in_source(_ChildProcessObserver, '"child-process-observer"'),
        "strategy.reduce_boolean_decision": lambda: trainer().strategy.reduce_boolean_decision,
        "Precision.clip_gradients": lambda: Precision.clip_gradients,
        "default_pg_timeout": lambda: (
            import_module("lightning.fabric.plugins.collectives.torch_collective").default_pg_timeout
        ),
    },
    "torch": {
        "mkldnn.matmul.fp32_precision": lambda: torch.backends.mkldnn.matmul.fp32_precision,
        "DataLoader's messages": lambda: all(
            in_source(module, text)
            for module, text in (
                (_MultiProcessingDataLoaderIter, "DataLoader timed out after"),
                (_MultiProcessingDataLoaderIter, "DataLoader worker (pid(s)"),
            )
        ),
    },
    "transformers": {"load_balancing_loss_func": lambda: modeling_mixtral.load_balancing_loss_func},
    "bitsandbytes": {
        "Linear4bit.support_avx512bf16_for_cpu": lambda: [Linear4bit(8, 8).support_avx512bf16_for_cpu],
        "Linear8bitLt.init_8bit_state": lambda: Linear8bitLt.init_8bit_state,
        "Linear8bitLt.state.CB": lambda: [Linear8bitLt(8, 8, has_fp16_weights=False).state.CB],
        "Linear8bitLt.state.SCB": lambda: [Linear8bitLt(8, 8, has_fp16_weights=False).state.SCB],
        "Linear8bitLt.weight.CB": lambda: [Linear8bitLt(8, 8, has_fp16_weights=False).weight.CB],
        "Linear8bitLt.weight.SCB": lambda: [Linear8bitLt(8, 8, has_fp16_weights=False).weight.SCB],
    },
}
NAMES = [(library, name) for table in (PRIVATE, UNDOCUMENTED) for library, names in table.items() for name in names]
DOCUMENTED = {"_replace", "_asdict", "_make", "_fields"}
"""Methods of a NamedTuple."""

STANDARD = {"_is_protocol", "_exit"}
"""Of Python itself: `typing.is_protocol` is there from Python 3.13 on; `os._exit` is documented."""


def look_up(library: str, name: str) -> None:
    try:
        assert (PRIVATE.get(library, {}) | UNDOCUMENTED.get(library, {}))[name]()
    except (AttributeError, KeyError, TypeError, AssertionError) as error:
        pytest.fail(f"{library} {version(library)} has no {name}, which {library} {TRIED[library]} had: {error}")


@pytest.mark.parametrize(("library", "name"), NAMES)
def test_the_name_is_there(library, name):
    look_up(library, name)


def test_the_name_of_python_is_there():
    assert typing.Protocol._is_protocol


def test_a_name_that_is_gone_is_named_with_its_version(monkeypatch):
    monkeypatch.setitem(PRIVATE["torch"], "_gone", lambda: torch._gone)
    with pytest.raises(pytest.fail.Exception, match=r"torch 2.* has no _gone, which torch 2\.13\.0 had"):
        look_up("torch", "_gone")


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and len(name) > 1


def own_names(trees: dict[str, ast.AST]) -> set[str]:
    """Private names that the package itself defines, as functions, classes, variables or attributes of `self`."""
    found = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


def foreign_names(trees: dict[str, ast.AST], package: str = "dpo_lightning") -> Iterator[tuple[str, str]]:
    """Place and name of each private attribute that is used and not defined here, and of each private import."""
    own = own_names(trees)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            names: list[object] = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
                names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(package):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            for name in names:
                if is_private(name) and name not in own | DOCUMENTED | STANDARD:
                    yield f"{file}:{node.lineno}", str(name)


def overridden_names() -> set[str]:
    """Private methods of libraries that classes of this package replace."""
    found = set()
    for info in pkgutil.walk_packages(dpo_lightning.__path__, "dpo_lightning."):
        module = import_module(info.name)
        for kind in vars(module).values():
            if not inspect.isclass(kind) or not kind.__module__.startswith("dpo_lightning"):
                continue
            above = [base for base in kind.__mro__ if base.__module__.partition(".")[0] in TRIED]
            methods = {name for name, value in vars(kind).items() if is_private(name) and inspect.isfunction(value)}
            found |= {name for name in methods if any(name in vars(base) for base in above)}
    return found


def read_package() -> dict[str, ast.AST]:
    root = Path(dpo_lightning.__file__).parent
    return {str(path.relative_to(root)): ast.parse(path.read_text("utf-8")) for path in root.rglob("*.py")}


def test_no_other_private_name_is_used():
    listed = {name for names in PRIVATE.values() for name in names}
    used = list(foreign_names(read_package()))
    assert [f"{place}: {name}" for place, name in used if name not in listed] == []
    assert overridden_names() <= listed
    assert listed - {name for _, name in used} - overridden_names() == set(), "listed, and not used any more"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("x = trainer._hidden\n", "_hidden"),
        ("optimizer._hidden = False\n", "_hidden"),
        ("x = getattr(optimizer, '_hidden', None)\n", "_hidden"),
        ("from torch.nn.modules.dropout import _DropoutNd\n", "_DropoutNd"),
        ("from lightning._inner import Thing\n", "_inner"),
        ("import torch._inductor\n", "_inductor"),
        ("def _own(): ...\nx = self._own\n", None),
        ("class A:\n    def f(self):\n        self._own = 1\n        return other._own\n", None),
        ("x = row._replace(a=1)\ny = row.__class__\nz = _\n", None),
        ("from dpo_lightning.models import _own\n", None),
    ],
)
def test_a_private_name_is_found(source, name):
    found = [found for _, found in foreign_names({"file.py": ast.parse(source)})]
    assert found == ([name] if name else [])


def test_versions_are_those_of_the_locks():
    """The versions that the names were tried with are the ones that every other test runs with."""
    pins = (Path(__file__).parents[1] / "requirements/cpu.lock").read_text()
    for library, tried in TRIED.items():
        assert f"\n{library}=={tried}" in pins, f"look each name of {library} up again and raise TRIED"
