"""Two processes that share the rows of a step, by DDP or FSDP2, train as one process does, also after a stop."""

import contextlib
import os
import shutil
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from support import sharded_runs
from support.sharded_runs import DDP, FSDP2, STOPPED
from support.two_ranks import run_on_two_ranks
from torch.distributed import destroy_process_group, is_initialized

from dpo_lightning import DPOModule
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.folder_names import CHECKPOINTS
from dpo_lightning.runs.checkpoint_files import LAST, PREVIOUS, find_checkpoint_of_run

CASES = [("ddp", name) for name in DDP] + [("fsdp2", name) for name in FSDP2]


@pytest.fixture(scope="module", autouse=True)
def own_folder(tmp_path_factory):
    """A folder to work in, where files of references come to lie."""
    with contextlib.chdir(tmp_path_factory.mktemp("work")):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of the models."""
    return sharded_runs.save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def shared(models, tmp_path_factory):
    """The folder in which two ranks work, with checkpoints of one rank."""
    folder = tmp_path_factory.mktemp("shared")
    for name, case in STOPPED.items():
        sharded_runs.stop(case, models, folder / "one" / name)
    return folder


@pytest.fixture(scope="module")
def both(models, shared):
    """Losses and weights of all cases on two ranks."""
    return run_on_two_ranks(sharded_runs.__file__, models, shared)


@pytest.fixture(scope="module")
def wholes(models, tmp_path_factory):
    """Losses and weights of the runs that are stopped elsewhere, by one rank that does not stop."""
    found = {}
    for name, case in STOPPED.items():
        module, losses, _ = sharded_runs.run(case, models, tmp_path_factory.mktemp("whole"))
        found[name] = losses, sharded_runs.whole_weights(module)
    return found


def assert_same(one, other):
    """Weights that are equal but for rounding, under the same names."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("strategy", "name"), CASES)
def test_two_ranks_train_as_one(strategy, name, both, models, tmp_path):
    """The loss of each step within 1e-5, and weights and the gradients' norm after the last."""
    two = both[strategy, name]
    module, losses, trainer = sharded_runs.run(FSDP2[name], models, tmp_path)
    assert two["losses"] == pytest.approx(losses, abs=1e-5, rel=0)
    assert two["norm"] == pytest.approx(sharded_runs.last_norm(trainer), rel=1e-3)
    assert len(losses) == sharded_runs.STEPS
    assert max(losses) - min(losses) > 1e-3
    assert two["split"] == {strategy == "fsdp2"}  # the reference's weights too
    assert_same(sharded_runs.whole_weights(module), two["weights"])


@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize("origin", ["two ranks", "one rank"])
def test_two_ranks_go_on(origin, name, both, wholes):
    """From their own checkpoint, and from that of a rank which held all."""
    losses, weights = wholes[name]
    assert both[origin, name]["losses"] == pytest.approx(losses[-2:], abs=1e-5, rel=0)
    assert_same(weights, both[origin, name]["weights"])


@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_one_rank_goes_on_from_two(strategy, name, both, wholes, shared, models, tmp_path):
    """From the checkpoint of two ranks that share the weights."""
    checkpoint = shared / name / "stopped/checkpoints" / LAST
    with mock.patch.dict(os.environ):  # in which a strategy leaves its port
        try:
            module, losses, _ = sharded_runs.go_on(STOPPED[name], models, tmp_path, checkpoint, strategy)
            weights = sharded_runs.whole_weights(module)
        finally:
            if is_initialized():
                destroy_process_group()
    assert losses == pytest.approx(wholes[name][0][-2:], abs=1e-5, rel=0)
    assert_same(wholes[name][1], weights)


@pytest.mark.parametrize("name", STOPPED)
def test_the_final_model_is_whole(name, both, shared):
    """It loads in transformers or peft, with the weights that the ranks have trained."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    folder, adapter = shared / name / "two ranks/final_model", name == "adapter"
    kind = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    model = kind.from_pretrained(folder)
    trained = {key: value for key, value in model.named_parameters() if not adapter or "lora_" in key}
    expected = both["two ranks", name]["weights"]
    assert trained.keys() == expected.keys()
    for key, value in trained.items():
        assert torch.equal(value, expected[key]), key
    if not adapter:
        assert model.config.architectures == [type(model).__name__]
        assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def load_module(name, models, folder, **options):
    """The module of a stopped run's last checkpoint."""
    case = STOPPED[name]
    made_of = sharded_runs.module_options(case, models / case.model)
    return DPOModule.load_from_checkpoint(folder / LAST, **{**made_of, **options})


@pytest.mark.parametrize("name", [name for name in STOPPED if name != "experts"])
def test_a_checkpoint_of_two_ranks_is_a_module(name, both, shared, models):
    """`load_from_checkpoint` reads its parts."""
    loaded = load_module(name, models, shared / name / "two ranks" / CHECKPOINTS)
    expected = both["two ranks", name]["weights"]
    found = {key: value for key, value in loaded.policy.named_parameters() if value.requires_grad}
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


def test_a_module_lacks_its_parts(both, shared, models, tmp_path):
    """Which were not copied."""
    shutil.copy(shared / "whole/two ranks" / CHECKPOINTS / LAST, tmp_path)
    with pytest.raises(UserError, match=r"the checkpoint lacks step-4\.shards/rank-00000-of-00002\.pt") as told:
        load_module("whole", models, tmp_path)
    assert told.value.code == ExitCode.INPUT_MISSING


def test_a_module_of_a_precomputed_reference_is_refused(both, shared, models):
    """Without rows there are no log-probabilities; the policy can be exported."""
    with pytest.raises(UserError, match="needs the rows of a data module") as told:
        load_module("experts", models, shared / "experts/two ranks" / CHECKPOINTS)
    assert told.value.code == ExitCode.CONFIG
    assert "python -m dpo_lightning export --model PATH.ckpt" in told.value.fix


def test_a_trainer_that_reads_no_parts_is_refused(both, shared, models, tmp_path):
    """Lightning's own plugin reads the file alone."""
    checkpoint = shared / "whole/stopped" / CHECKPOINTS / LAST
    with pytest.raises(UserError, match="without the parts of its ranks") as told:
        sharded_runs.run(STOPPED["whole"], models, tmp_path, ckpt_path=checkpoint, plugins=[])
    assert told.value.code == ExitCode.CONFIG
    assert "Trainer(plugins=[CheckpointFiles()])" in told.value.fix


@pytest.mark.parametrize("fault", ["flipped", "missing", "torn"])
def test_a_damaged_part_is_found(fault, both, shared, tmp_path, capsys):
    """The checkpoint before it is used; parts that no checkpoint has are gone."""
    folder = shutil.copytree(shared / "whole/stopped/checkpoints", tmp_path / "checkpoints")
    assert [path.name for path in sorted(folder.glob("*.shards"))] == ["step-1.shards", "step-2.shards"]
    assert find_checkpoint_of_run(folder).path.name == LAST
    part = folder / "step-2.shards/rank-00001-of-00002.pt"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.unlink()
    if fault != "missing":
        part.write_bytes(content if fault == "flipped" else content[:100])
    found = find_checkpoint_of_run(folder)
    assert found.path.name == PREVIOUS
    assert found.damaged == [folder / LAST]
    assert "step-2.shards/rank-00001-of-00002.pt" in capsys.readouterr().out
