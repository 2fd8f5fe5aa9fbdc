"""What a run on unpaired rows measures and predicts, with a live reference, a precomputed one, and after a restart."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support import whole_runs
from support.kto_runs import KTO, RATE, assert_same_weights, files, losses, train

from dpo_lightning import UnpairedDataModule
from dpo_lightning.callbacks import PredictionWriter, UnpairedRewards
from dpo_lightning.losses import APOZeroUnpairedLoss, BCOLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references.precomputed import Precomputed


@pytest.fixture(scope="module")
def start(tiny_llama):
    """The weights of the model folder."""
    return dict(CausalLM(str(tiny_llama)).build().requires_grad_(False).named_parameters())


def test_an_evaluation_does_not_depend_on_the_batch_size(tiny_llama, tmp_path):
    """5 rows in batches of 1, 2 and 3, by a policy that has moved; loss and kl of KTO are of a micro-batch each."""
    module, _, _, _ = train(tiny_llama, tmp_path, losses()["apo"])
    found = []
    for size in (1, 2, 3, 5):
        data = UnpairedDataModule(eval=files(tmp_path)[1], batch_size=size, max_length=64)
        memory = whole_runs.Memory()
        trainer = whole_runs.Trainer(accelerator="cpu", devices=1, logger=memory, enable_progress_bar=False)
        (told,) = trainer.test(module, datamodule=data, verbose=False)
        found.append(told)
        (measure,) = (callback for callback in trainer.callbacks if isinstance(callback, UnpairedRewards))
        assert measure.evaluated == 5
    assert set(found[0]) == {
        f"test/{name}"
        for name in ("loss", "desirable", *(f"{a}/{b}" for a in ("rewards", "logps") for b in ("chosen", "rejected")))
    } | {"test/rewards/margins"}
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5, abs=1e-5)
    rows = data.encoded["eval"]
    with torch.no_grad():
        output, logps = module.compare(data.collator([(row, k) for k, row in enumerate(rows)]), "eval")
    good = torch.tensor([row.good for row in rows])
    chosen, rejected = float(output.rewards[good].mean()), float(output.rewards[~good].mean())
    assert found[0]["test/rewards/chosen"] == pytest.approx(chosen, rel=1e-4)
    assert found[0]["test/rewards/margins"] == pytest.approx(chosen - rejected, rel=1e-4)
    assert found[0]["test/logps/rejected"] == pytest.approx(float(logps.policy[~good].mean()), rel=1e-4)
    assert found[0]["test/desirable"] == pytest.approx(float(good.float().mean()))
    assert abs(chosen - rejected) > 0.01


def test_predictions_tell_the_judgement(tiny_llama, tmp_path):
    module, _, data, _ = train(tiny_llama, tmp_path, KTO)
    runner = whole_runs.Trainer(
        default_root_dir=tmp_path / "told",
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        callbacks=[PredictionWriter()],
    )
    runner.predict(module, datamodule=data, return_predictions=False)
    lines = [json.loads(line) for line in (tmp_path / "told/predictions.jsonl").read_text().splitlines()]
    rows = data.encoded["eval"]
    assert [line["label"] for line in lines] == [float(row.good) for row in rows]
    with torch.no_grad():
        for line, row in zip(lines, rows, strict=True):
            alone = module.compare(data.collator([(row, 0)]), "eval")[1]
            assert line["logps"] == pytest.approx(float(alone.policy), abs=1e-4)
            assert line["reference_logps"] == pytest.approx(float(alone.reference), abs=1e-4)
            assert line["reward"] == pytest.approx(0.3 * (line["logps"] - line["reference_logps"]), abs=1e-4)
    assert set(lines[0]) == {"file", "line", "index", "loss", "label", "reward", "logps", "reference_logps"}


# References


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_a_precomputed_reference_is_a_live_one(lora, tiny_llama, tmp_path, monkeypatch):
    """Mismatched answers are in the file as well; it is shared by losses that ask for them and others."""
    monkeypatch.chdir(tmp_path)
    for loss in (KTO, APOZeroUnpairedLoss(0.3)):
        ends = []
        for reference in (None, Precomputed()):
            torch.manual_seed(0)
            options = {"policy": CausalLM(str(tiny_llama), lora=lora), "reference": reference}
            options["learning_rate"] = 0.02 if lora else RATE
            _, memory, _, _ = train(tiny_llama, tmp_path, loss, module_options=options, max_epochs=2)
            ends.append(memory)
        assert max(abs(value) for value in ends[0].curve("train/rewards/chosen")) > 0.001
        for step, metrics in ends[0].steps.items():
            assert ends[1].steps[step] == pytest.approx(metrics, rel=1e-4, abs=1e-4)
    assert len(list((tmp_path / "outputs/reference").glob("*.safetensors"))) == 1


def test_bcos_mean_survives_a_restart(tiny_llama, tmp_path, start):
    """Stopped after 3 of 6 steps: the same weights and the same mean."""
    whole, _, _, _ = train(tiny_llama, tmp_path, BCOLoss(0.3), max_steps=6, max_epochs=2)
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"callbacks": [saver], "enable_checkpointing": True}
    train(tiny_llama, tmp_path, BCOLoss(0.3), max_steps=3, **options)
    again = BCOLoss(0.3)
    rest, _, _, _ = train(tiny_llama, tmp_path, again, max_steps=6, max_epochs=2, ckpt_path=tmp_path / "step=3.ckpt")
    assert_same_weights(whole_runs.weights(rest), whole_runs.weights(whole), start)
    assert torch.equal(again.state.value, whole.loss.state.value)
    assert float(again.state.value) != 0
