"""Strategies, precisions and callbacks that cannot work with sharded models are refused before anything is loaded."""

from types import SimpleNamespace

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from support.command_line import Bench, refused, watch_loading
from torch.distributed import destroy_process_group

from dpo_lightning.config.strategies import check_strategy
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.fsdp2 import FSDP2Strategy, sharding_mesh


@pytest.fixture
def bench(tmp_path, tiny_llama):
    return Bench(tmp_path, tiny_llama)


@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp",
        "fsdp_cpu_offload",
        "deepspeed",
        "deepspeed_stage_2_offload",
        "lightning.pytorch.strategies.FSDPStrategy",
        "lightning.pytorch.strategies.ModelParallelStrategy",
    ],
)
def test_other_ways_to_shard_are_refused(strategy, bench, monkeypatch):
    """By name and by class: the remedy is the strategy that works."""
    loaded = watch_loading(monkeypatch)
    ran = bench.fit(f"--trainer.strategy={strategy}", "--trainer.devices=2")
    refused(ran, 64, strategy.rpartition(".")[2], "trainer.strategy", "fix: --trainer.strategy fsdp2")
    assert not loaded


SUPPORTED = {"ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "single_device", "fsdp2"}


@pytest.mark.parametrize("name", StrategyRegistry.available_strategies())
def test_every_strategy_of_lightning_is_supported_or_refused(name):
    """Those that are left run: one process, or processes that run the same command."""
    if name in SUPPORTED:
        assert check_strategy(name) == (name == "fsdp2")
    else:
        with pytest.raises(UserError, match=r"at trainer\.strategy"):
            check_strategy(name)


@pytest.mark.parametrize(
    "strategy",
    [
        ["ddp_spawn"],
        ["DDP_Fork"],
        ["ddp_notebook"],
        ["ddp_spawn_find_unused_parameters_true"],
        ["DDPStrategy", "--trainer.strategy.start_method=spawn"],
    ],
    ids=" ".join,
)
def test_ranks_that_are_copies_of_a_process_are_refused(strategy, bench, monkeypatch):
    loaded = watch_loading(monkeypatch)
    ran = bench.fit(f"--trainer.strategy={strategy[0]}", *strategy[1:], "--trainer.devices=2")
    refused(ran, 64, f"{strategy[0]} ", "at trainer.strategy", "fix: --trainer.strategy ddp\n")
    assert not loaded


def test_a_tensor_parallel_group_cannot_be_asked_for(bench):
    path = "--trainer.strategy=dpo_lightning.fsdp2.FSDP2Strategy"
    refused(bench.fit(path, "--trainer.strategy.tensor_parallel_size=2"), 64, "tensor_parallel_size")


def test_scaled_losses_are_refused():
    """Each rank would see other overflows, and choose another scale. (On a CPU, Lightning takes bf16 instead.)"""
    with pytest.raises(UserError, match="choose its own scale") as told:
        FSDP2Strategy().precision_plugin = SimpleNamespace(scaler=object())
    assert told.value.code == ExitCode.CONFIG
    assert "--trainer.precision bf16-mixed" in told.value.fix


def test_averages_of_weights_are_refused(bench):
    ran = bench.fit("--trainer.strategy=fsdp2", "--trainer.callbacks+=EMAWeightAveraging")
    refused(ran, 64, "EMAWeightAveraging copies models", "trainer.callbacks")


def test_more_processes_than_rows_are_refused(bench, monkeypatch):
    """8 rows for 9 processes, before a tokenizer is loaded and without starting any."""
    loaded = watch_loading(monkeypatch)
    for strategy in ("ddp", "fsdp2"):
        ran = bench.fit("--trainer.devices=9", f"--trainer.strategy={strategy}", "--data.batch_size=1")
        refused(ran, 64, "8 training rows are fewer than the 9 devices", "fix: --trainer.devices 8 or fewer")
    assert not {"AutoTokenizer", "AutoModelForCausalLM"} & set(loaded)
    refused(bench.fit("--trainer.devices=3", "--trainer.strategy=ddp", "--data.batch_size=3"), 65, "(3 x 3 devices)")


def test_slurm_tasks_that_are_no_devices_are_refused(bench, monkeypatch):
    """Two tasks on a node, and one device: each would train alone, or wait for others."""
    variables = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "PROCID": "0", "LOCALID": "0", "STEP_ID": "0", "JOB_ID": "7"}
    for name, value in {**variables, "JOB_NAME": "run", "NODEID": "0", "JOB_NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    loaded = watch_loading(monkeypatch)
    for devices in ("1", "auto", "3"):
        ran = bench.fit(f"--trainer.devices={devices}", "--trainer.strategy=ddp")
        refused(ran, 64, "2 tasks of Slurm (--ntasks-per-node)", "trainer.devices", "fix: --trainer.devices 2")
    assert not loaded


def test_modules_name_the_strategy_that_works():
    """In a Python program as well."""
    assert isinstance(Trainer(strategy="fsdp2", accelerator="cpu", logger=False).strategy, FSDP2Strategy)
    assert sharding_mesh(Trainer(accelerator="cpu", logger=False).strategy) is None
    with pytest.raises(UserError, match=r"fix: --trainer\.strategy fsdp2") as told:
        sharding_mesh(ModelParallelStrategy())
    assert told.value.code == ExitCode.CONFIG


def test_compiled_layers_are_refused(bench, monkeypatch):
    """By one process that shards with itself alone."""
    loaded = watch_loading(monkeypatch)
    try:
        refused(bench.fit("--trainer.strategy=fsdp2", "--model.policy.compile=true"), 64, "model.policy.compile")
    finally:
        destroy_process_group()
    assert "AutoModelForCausalLM" not in loaded
