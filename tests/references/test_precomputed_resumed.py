"""`Precomputed` in a run that goes on, and rows, folders and data modules that are not there when it needs them."""

from pathlib import Path

import pytest
import torch
from support import short_runs, tiny_models
from support.precomputed import data, loaded, looked_up, scoring_of

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.references import FrozenCopy
from dpo_lightning.references.precomputed import Precomputed

pytestmark = pytest.mark.usefixtures("place")


def test_a_run_goes_on_without_the_reference_model(tiny_llama, file, tmp_path):
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())

    def reference():
        return Precomputed(path="ref.safetensors", model=str(other))

    short_runs.fit(short_runs.module(tiny_llama, reference()), file, tmp_path / "first", steps=2)
    other.rename(tmp_path / "gone")
    ckpt = tmp_path / "first/checkpoints/step=2.ckpt"
    trainer = short_runs.fit(short_runs.module(tiny_llama, reference()), file, tmp_path / "second", steps=3, ckpt=ckpt)
    assert trainer.global_step == 3
    for strange in (Precomputed(), FrozenCopy()):
        with pytest.raises(UserError, match="another reference"):
            short_runs.fit(short_runs.module(tiny_llama, strange), file, tmp_path / "third", steps=3, ckpt=ckpt)


def test_a_resumed_run_computes_a_lost_file_from_its_start(tiny_llama, file, tmp_path):
    """And not from the weights of the checkpoint."""
    path = Path("ref.safetensors")
    short_runs.fit(short_runs.module(tiny_llama, Precomputed(path=str(path))), file, tmp_path / "first", steps=2)
    before = path.read_bytes()
    path.unlink()
    ckpt = tmp_path / "first/checkpoints/step=2.ckpt"
    short_runs.fit(
        short_runs.module(tiny_llama, Precomputed(path=str(path))), file, tmp_path / "second", steps=3, ckpt=ckpt
    )
    assert path.read_bytes() == before


def test_rows_that_come_up_after_the_policy_has_moved_are_refused(tiny_llama, file, tmp_path):
    made = short_runs.module(tiny_llama, Precomputed())
    held_out = short_runs.write_pairs(tmp_path / "eval.jsonl", rows=2, prompt="Another question")
    rows = data(file, eval=str(held_out))
    runner = short_runs.trainer(tmp_path / "run", 1, enable_checkpointing=False)
    runner.validate(made, datamodule=rows, verbose=False)
    runner.fit(made, datamodule=rows)  # rows that are known by then, and those that are not
    runner.validate(made, datamodule=rows, verbose=False)
    others = data(file, eval=str(short_runs.write_pairs(tmp_path / "more.jsonl", rows=3, prompt="A third")))
    with pytest.raises(UserError, match="the policy is trained already"):
        runner.validate(made, datamodule=others, verbose=False)
    looked_up(tiny_llama, file, eval=str(tmp_path / "more.jsonl"))  # as `precompute` does
    assert "eval/loss" in runner.validate(made, datamodule=others, verbose=False)[0]


def test_rows_are_looked_up_once_and_other_rows_anew(tiny_llama, file, tmp_path):
    """The same rows cost nothing, not even the file; others of the same names and number have values of their own."""
    made, live = loaded(tiny_llama, Precomputed(path="ref.safetensors")), short_runs.ready(tiny_llama, FrozenCopy())
    others = short_runs.write_pairs(tmp_path / "others.jsonl", rows=9, prompt="Another question")
    for pairs in (file, others):
        run = scoring_of(made, data(pairs))
        made.reference.look_up(made.policy, run)
        Path("ref.safetensors").unlink()
        made.reference.look_up(made.policy, run)
        assert not Path("ref.safetensors").exists()
    batch = short_runs.batch(made, others)
    expected = live.reference(live.policy, batch).sums
    torch.testing.assert_close(made.reference(made.policy, batch).sums, expected, rtol=1e-5, atol=1e-4)


def test_a_policy_without_its_folder_is_told(tiny_llama, file, tmp_path):
    folder = tiny_models.save(tmp_path / "policy", tiny_models.make_llama(), tiny_models.make_chat_tokenizer())
    looked_up(folder, file, Precomputed(path="ref.safetensors"))
    folder.rename(tmp_path / "gone")
    with pytest.raises(UserError, match="the model folder does not exist") as raised:
        short_runs.fit(short_runs.module(folder, Precomputed(path="ref.safetensors")), file, tmp_path / "run")
    assert raised.value.code == ExitCode.INPUT_MISSING


def test_a_trainer_without_a_data_module_is_told(tiny_llama, file, tmp_path):
    made = short_runs.module(tiny_llama, Precomputed())
    batches = torch.utils.data.DataLoader([1], collate_fn=lambda rows: short_runs.batch(made, file))
    with pytest.raises(UserError, match="the trainer has none"):
        short_runs.trainer(tmp_path / "run", 1, enable_checkpointing=False).fit(made, batches)
