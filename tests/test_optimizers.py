"""Weights in float16 are not trained, and the refusal comes before anything is loaded where the config tells it."""

import pytest
import torch
from support.command_line import refused, watch_loading
from torch import nn
from torch.optim import AdamW

from dpo_lightning.errors import UserError
from dpo_lightning.optimizers import make_optimizer

HALF = "--model.policy.dtype=float16"
ADAPTER = "--model.policy.lora.r=2"


def test_weights_in_float16_are_not_trained(bench, monkeypatch):
    loaded = watch_loading(monkeypatch)
    what, fix = "small gradients and updates vanish", "fix: --model.policy.dtype float32 with --trainer.precision"
    refused(bench.fit(HALF), 64, f"float16 is not trained: {what}", fix)
    assert not loaded
    assert not (bench.folder / "run").exists()


def test_an_adapter_on_weights_in_float16_is_trained(bench):
    """It is kept in float32, also when it is trained further; a module that is trained in full beside it is not."""
    ran = bench.fit(HALF, ADAPTER)
    assert ran.code == 0, ran
    ran = bench.fit(HALF, "--model.policy.path", bench.folder / "run" / "final_model", out="further")
    assert ran.code == 0, ran
    ran = bench.fit(HALF, ADAPTER, "--model.policy.lora.modules_to_save=[lm_head]", out="beside")
    refused(ran, 64, "float16 is not trained")


def test_other_commands_compute_in_float16(bench):
    ran = bench.run("validate", HALF)
    assert ran.code == 0, ran


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_of_the_parameters_decides(dtype):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=dtype))]
    if dtype == torch.float16:
        with pytest.raises(UserError, match="float16 is not trained"):
            make_optimizer(AdamW, parameters, 0.1, on_cpu=True)
    else:
        assert make_optimizer(AdamW, parameters, 0.1, on_cpu=True).defaults["lr"] == 0.1
