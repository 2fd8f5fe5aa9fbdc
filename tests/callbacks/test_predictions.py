"""Predictions: every held-out row once, in the order of the file, with the numbers that the module gives it."""

import json
from types import SimpleNamespace

import pytest
import torch
from support import short_runs

from dpo_lightning.callbacks.prediction_writer import PredictionWriter
from dpo_lightning.data.datamodules import PreferenceDataModule, SFTDataModule
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.sft import SFTModule


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Seven pairs: the last batch is short, and lengths differ."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl", 7)


def predict(made, data, folder, times=1):
    """The lines that a prediction writes."""
    runner = short_runs.trainer(folder, callbacks=[PredictionWriter()], enable_checkpointing=False)
    for _ in range(times):
        runner.predict(made, datamodule=data, return_predictions=False)
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("times", [1, 2])
def test_every_pair_once_in_the_order_of_the_file(times, tiny_llama, file, tmp_path):
    made = short_runs.ready(tiny_llama)
    pairs = short_runs.batch(made, file, 7)
    short_runs.take_steps(made, pairs, 2)
    data = PreferenceDataModule(eval=str(file), batch_size=2, max_length=128)
    lines = predict(made, data, tmp_path / "run", times)
    assert [(line["file"], line["line"]) for line in lines] == [(str(file), 1 + k) for k in range(7)]
    assert [line["index"] for line in lines] == list(range(7))
    with torch.no_grad():
        output, logps = made.compare(pairs)
    expected = {
        "loss": output.losses,
        "chosen_reward": output.chosen_rewards,
        "rejected_reward": output.rejected_rewards,
        "margin": output.chosen_rewards - output.rejected_rewards,
        "chosen_logps": logps.policy_chosen,
        "rejected_logps": logps.policy_rejected,
        "reference_chosen_logps": logps.reference_chosen,
        "reference_rejected_logps": logps.reference_rejected,
    }
    for name, values in expected.items():
        assert len(set(values.tolist())) > 1
        torch.testing.assert_close(torch.tensor([line[name] for line in lines]), values, atol=1e-4, rtol=1e-4)
    assert set(lines[0]) == {"file", "line", "index", *expected}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["predictions.jsonl"]


def test_demonstrations_have_their_log_probabilities(tiny_llama, tmp_path):
    rows = [{"prompt": f"Say {k}", "completion": "so " * (1 + k)} for k in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = SFTDataModule(eval=str(tmp_path / "rows.jsonl"), batch_size=2, max_length=128)
    made = SFTModule(CausalLM(str(tiny_llama)))
    lines = predict(made, data, tmp_path / "run")
    assert [line["line"] for line in lines] == [1, 2, 3]
    for index, line in enumerate(lines):
        single = score(made.policy, data.collator([(data.encoded["eval"][index], index)]))
        assert line["tokens"] == float(single.lengths)
        assert line["logps"] == pytest.approx(float(single.sums), abs=1e-4)


def test_rows_of_all_processes_are_written_by_the_first(tiny_llama, file, tmp_path, monkeypatch):
    writers = [PredictionWriter(), PredictionWriter()]
    data = SimpleNamespace(
        encoded={"eval": [SimpleNamespace(origin=SimpleNamespace(file="f", line=k)) for k in range(3)]}
    )
    outputs = {"logps": SimpleNamespace(sums=torch.tensor([-1.0, -2.0]), lengths=torch.tensor([1.0, 2.0]))}
    shares = torch.tensor([2, 0]), torch.tensor([1, -1])  # the second process fills up its share with a row
    for writer, share in zip(writers, shares, strict=True):
        writer.on_predict_batch_end(None, SFTModule(CausalLM(str(tiny_llama))), outputs, SimpleNamespace(indices=share))

    def gather(gathered, own):
        gathered[:] = [writer._rows for writer in writers]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in (1, 0):
        place = SimpleNamespace(
            world_size=2, is_global_zero=rank == 0, datamodule=data, default_root_dir=tmp_path / "run"
        )
        writers[rank].on_predict_end(place, None)
        assert (tmp_path / "run").exists() == (rank == 0)
    lines = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert [(line["line"], line["logps"]) for line in lines] == [(0, -2.0), (1, -1.0), (2, -1.0)]
