"""The figures of an evaluation against those of TRL 1.16's trainer, on the same rows and weights."""

import pytest
import torch
from support import tiny_models, whole_runs

from dpo_lightning.evaluation.options import EvaluationOptions
from dpo_lightning.evaluation.run import evaluate
from dpo_lightning.sampling import Sampling


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_rewards_are_those_of_trl(tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    policy, reference = (
        tiny_models.save(tmp_path / name, tiny_models.make_gpt2(seed=seed), tiny_models.make_tokenizer())
        for name, seed in (("policy", 3), ("reference", 4))
    )
    rows = whole_runs.preference_rows(15)
    config = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_eval_batch_size=1,  # its metrics are means of batches
        beta=0.3,
        max_length=128,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    theirs = trainer.evaluate()
    data = whole_runs.write_rows(tmp_path, "rows", rows)
    options = EvaluationOptions(
        str(policy),
        [data],
        str(tmp_path / "eval.json"),
        reference=str(reference),
        beta=0.3,
        sampling=Sampling(4),
        max_length=128,
        precision="32-true",
        accelerator="cpu",
    )
    measures = evaluate(options).summary["measures"]
    assert 0 < theirs["eval_rewards/accuracies"] < 1
    for name, other in (
        ("accuracy/reward", "eval_rewards/accuracies"),
        ("margin/reward", "eval_rewards/margins"),
        ("loss", "eval_loss"),
    ):
        assert measures[name]["estimate"] == pytest.approx(theirs[other], abs=1e-4), name
