"""Which precision is chosen on which hardware."""

import pytest
import torch

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.hardware import choose_precision


@pytest.fixture
def machine(monkeypatch):
    """A machine whose GPUs, processor and build of torch are made up."""

    def make(gpus=(), mps=False, features=(), hip=None, onednn=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: gpus[i][0])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: gpus[i][1])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
        monkeypatch.setattr(torch.version, "hip", hip)
        capabilities = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "num_sockets": 1}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities | dict.fromkeys(features, True))

    return make


V100, A100, H100 = ("V100", (7, 0)), ("A100", (8, 0)), ("H100", (9, 0))


@pytest.mark.parametrize(
    ("gpus", "precision", "named"),
    [
        ([H100], "bf16-mixed", "H100"),
        ([A100, H100], "bf16-mixed", "A100"),
        ([H100, V100], "16-mixed", "V100"),
    ],
)
@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_weakest_gpu_decides(machine, gpus, precision, named, accelerator):
    machine(gpus=gpus)
    found, reason = choose_precision(accelerator)
    assert found == precision
    assert named in reason


def test_amd_gpu(machine):
    machine(gpus=[("MI300X", (9, 4))], hip="7.0")
    assert choose_precision()[0] == "bf16-mixed"


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "mps"])
def test_apple(machine, accelerator):
    machine(mps=True, features=["avx512_bf16"])
    assert choose_precision(accelerator)[0] == "32-true"


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_cpu_with_bf16(machine, feature, accelerator):
    machine(features=[feature])
    precision, reason = choose_precision(accelerator)
    assert precision == "bf16-mixed"
    assert feature in reason


def test_cpu_beside_a_gpu(machine):
    machine(gpus=[H100])
    assert choose_precision("cpu")[0] == "32-true"


def test_cpu_without_bf16(machine):
    machine()
    precision, reason = choose_precision()
    assert precision == "32-true"
    assert "neither amx_bf16 nor avx512_bf16" in reason


def test_cpu_without_onednn(machine):
    machine(features=["avx512_bf16"], onednn=False)
    precision, reason = choose_precision()
    assert precision == "32-true"
    assert "oneDNN" in reason


@pytest.mark.parametrize(
    ("cpuinfo", "precision"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse avx512_bf16 xsaves\n", "bf16-mixed"),
        ("processor\t: 0\nflags\t\t: fpu sse avx2\n", "32-true"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", "32-true"),
        (None, "32-true"),
    ],
)
def test_linux_is_asked_where_torch_does_not_say(machine, monkeypatch, tmp_path, cpuinfo, precision):
    machine()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr("dpo_lightning.hardware.CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert choose_precision("cpu")[0] == precision


@pytest.mark.parametrize("accelerator", ["cuda", "gpu", "mps"])
def test_absent_accelerator(machine, accelerator):
    machine()
    with pytest.raises(UserError) as caught:
        choose_precision(accelerator)
    assert caught.value.code == ExitCode.DEVICE
    assert repr(accelerator) in str(caught.value)


def test_unknown_accelerator_gets_what_runs_everywhere(machine):
    machine(gpus=[H100])
    assert choose_precision("tpu")[0] == "32-true"


def test_this_machine():
    precision, reason = choose_precision("cpu")
    assert precision in ("bf16-mixed", "32-true")
    assert reason.endswith(".")
