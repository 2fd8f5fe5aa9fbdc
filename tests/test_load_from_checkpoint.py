"""`load_from_checkpoint`: the trained module by the arguments of its run, or an error that says what to do."""

import json

import pytest
import torch
from support import short_runs

from dpo_lightning import DPOModule, SFTModule
from dpo_lightning.data.datamodules import SFTDataModule
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.losses import BetaDPOLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


def run_dpo(model, file, folder, lora=None, loss=None):
    made = short_runs.module(model, lora=lora, loss=loss)
    short_runs.fit(made, file, folder, enable_checkpointing=True)
    return made.eval(), folder / "checkpoints/step=2.ckpt"


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_a_preference_module_is_loaded(lora, tiny_llama, file, tmp_path):
    made, path = run_dpo(tiny_llama, file, tmp_path, lora)
    loaded = DPOModule.load_from_checkpoint(path, policy=CausalLM(str(tiny_llama), lora=lora)).eval()
    pairs = short_runs.batch(made, file)
    start = short_runs.ready(tiny_llama, lora=lora)
    with torch.no_grad():
        for one, other in zip(loaded.compare(pairs)[1].each, made.compare(pairs)[1].each, strict=True):
            assert torch.equal(one, other)
        assert float(loaded.compare(pairs)[0].margins.abs().max()) > 0.01
        assert float(start.compare(pairs)[0].margins.abs().max()) == 0


def run_sft(model, folder, lora=None):
    rows = [{"prompt": f"Say {k}", "completion": f"{k}."} for k in range(4)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = SFTDataModule(str(folder / "rows.jsonl"), batch_size=2, max_length=64)
    made = SFTModule(CausalLM(str(model), lora=lora), learning_rate=1e-2)
    short_runs.fit(made, None, folder, data=data, enable_checkpointing=True)
    return made, data, folder / "checkpoints/step=2.ckpt"


def test_an_sft_module_is_loaded(tiny_llama, tmp_path):
    made, data, path = run_sft(tiny_llama, tmp_path)
    loaded = SFTModule.load_from_checkpoint(path, policy=CausalLM(str(tiny_llama)))
    rows = data.encoded["train"]
    batch = data.collator.collate(rows, range(len(rows)))
    assert torch.equal(score(loaded.policy.eval(), batch).sums, score(made.policy.eval(), batch).sums)
    with pytest.raises(UserError, match="a checkpoint holds no arguments of a module at policy"):
        SFTModule.load_from_checkpoint(path)


def test_the_remedy_is_named_without_arguments(tiny_llama, file, tmp_path):
    _, path = run_dpo(tiny_llama, file, tmp_path)
    with pytest.raises(UserError, match="a checkpoint holds no arguments of a module at policy") as raised:
        DPOModule.load_from_checkpoint(path)
    assert raised.value.code == ExitCode.CONFIG
    for part in ("DPOModule.load_from_checkpoint(path, policy=", 'CausalLM("RUN/final_model")', "--ckpt_path"):
        assert part in raised.value.fix


@pytest.mark.parametrize("kind", [SFTModule, DPOModule])
def test_arguments_of_another_run_are_refused(kind, tiny_llama, file, tmp_path):
    """An adapter's weights into a whole model, and a loss without the running mean of the run's."""
    if kind is SFTModule:
        *_, path = run_sft(tiny_llama, tmp_path, Lora(r=2))
    else:
        _, path = run_dpo(tiny_llama, file, tmp_path, loss=BetaDPOLoss())
    with pytest.raises(UserError, match="holds other weights than a module with these arguments trains") as raised:
        kind.load_from_checkpoint(path, policy=CausalLM(str(tiny_llama)))
    assert raised.value.code == ExitCode.CONFIG
    assert str(path) in str(raised.value)


def test_another_reference_is_refused(tiny_llama, file, tmp_path):
    _, path = run_dpo(tiny_llama, file, tmp_path, Lora(r=2))
    with pytest.raises(UserError, match="trained against another reference"):
        DPOModule.load_from_checkpoint(path, policy=CausalLM(str(tiny_llama)))


def test_other_errors_are_handed_on(tiny_llama, file, tmp_path, monkeypatch):
    _, path = run_dpo(tiny_llama, file, tmp_path)

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(DPOModule, "configure_model", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        DPOModule.load_from_checkpoint(path, policy=CausalLM(str(tiny_llama)))
