"""Commands and YAML of a how-to for script-style trainers, as a new user types them: each key leads to ours at once."""

import re

import pytest
from support.command_line import refused, run

from dpo_lightning.config.option_table import read_options

KNOWN = read_options().list_keys("fit")

COMMANDS = {
    "1 basic DPO": (
        "fit --model_name outputs/sft_model/final_model --dataset_path data/preference_train.json "
        "--output_dir outputs/dpo_model --beta 0.1 --num_epochs 1",
        {
            "model_name": "model.policy.path",
            "dataset_path": "data.train",
            "beta": "model.loss.beta",
            "num_epochs": "trainer.max_epochs",
        },
    ),
    "2 SFT": (
        "fit --model_name meta-llama/Llama-2-7b-hf --dataset_path data/train.json --output_dir outputs/sft_model "
        "--use_lora --num_epochs 3 --batch_size 4",
        {
            "model_name": "model.policy.path",
            "dataset_path": "data.train",
            "use_lora": "model.policy.lora.r 16",
            "num_epochs": "trainer.max_epochs",
            "batch_size": "data.batch_size",
        },
    ),
    "2 DPO": (
        "fit --model_name outputs/sft_model/final_model --dataset_path data/preference_train.json "
        "--output_dir outputs/dpo_model --beta 0.1 --num_epochs 1 --learning_rate 5e-7",
        {
            "model_name": "model.policy.path",
            "dataset_path": "data.train",
            "beta": "model.loss.beta",
            "num_epochs": "trainer.max_epochs",
            "learning_rate": "model.learning_rate",
        },
    ),
    "2 inference": (
        "infer --model_path outputs/dpo_model/final_model --instruction What",
        {"model_path": "model"},
    ),
    "6 beta": ("fit --config configs/dpo.yaml --beta 0.5", {"beta": "model.loss.beta"}),
    "6 loop": (
        "fit --config configs/dpo.yaml --beta 0.05 --output_dir outputs/dpo_beta_0.05",
        {"beta": "model.loss.beta"},
    ),
    "8 stage 1": (
        "fit --model_name outputs/sft_model/final_model --dataset_path data/preference_general.json "
        "--output_dir outputs/dpo_stage1",
        {"model_name": "model.policy.path", "dataset_path": "data.train"},
    ),
    "8 stage 2": (
        "fit --model_name outputs/dpo_stage1/final_model --dataset_path data/preference_safety.json "
        "--output_dir outputs/dpo_stage2 --beta 0.2",
        {"model_name": "model.policy.path", "dataset_path": "data.train", "beta": "model.loss.beta"},
    ),
}

FILES = {
    "3 LoRA": (
        """\
model:
  name: "outputs/sft_model/final_model"

data:
  train_path: "data/preference_train.json"
  max_length: 512

lora:
  use_lora: true
  r: 16
  lora_alpha: 32
  lora_dropout: 0.05

dpo:
  beta: 0.1
  use_peft_for_reference: true

training:
  output_dir: "outputs/dpo_lora"
  num_epochs: 1
  batch_size: 4
  learning_rate: 5.0e-7
""",
        {
            "2: model.name": "model.policy.path",
            "5: data.train_path": "data.train",
            "9: lora.use_lora": "model.policy.lora.r: 16",
            "10: lora.r": "model.policy.lora.r",
            "11: lora.lora_alpha": "model.policy.lora.lora_alpha",
            "12: lora.lora_dropout": "model.policy.lora.lora_dropout",
            "15: dpo.beta": "model.loss.beta",
            "16: dpo.use_peft_for_reference": "model.reference: AdapterDisabled",
            "19: training.output_dir": "output_dir",
            "20: training.num_epochs": "trainer.max_epochs",
            "21: training.batch_size": "data.batch_size",
            "22: training.learning_rate": "model.learning_rate",
        },
    ),
    "4 quantization": (
        """\
model:
  name: "meta-llama/Llama-2-13b-hf"

quantization:
  use_quantization: true
  bits: 4
  compute_dtype: "float16"

lora:
  use_lora: true
  r: 16

dpo:
  beta: 0.1

training:
  batch_size: 1
  gradient_accumulation_steps: 16
""",
        {
            "2: model.name": "model.policy.path",
            "5: quantization.use_quantization": "model.policy.quantization.bits: 4",
            "6: quantization.bits": "model.policy.quantization.bits: 4",
            "7: quantization.compute_dtype": "model.policy.quantization.compute_dtype",
            "10: lora.use_lora": "model.policy.lora.r: 16",
            "11: lora.r": "model.policy.lora.r",
            "14: dpo.beta": "model.loss.beta",
            "17: training.batch_size": "data.batch_size",
            "18: training.gradient_accumulation_steps": "trainer.accumulate_grad_batches",
        },
    ),
    "trouble: divergence": (
        "training:\n  learning_rate: 1.0e-7\n\ndpo:\n  beta: 0.3\n",
        {"2: training.learning_rate": "model.learning_rate", "5: dpo.beta": "model.loss.beta"},
    ),
    "trouble: memory": (
        "quantization:\n  use_quantization: true\n  bits: 4\n\ntraining:\n  batch_size: 1\n"
        "  gradient_accumulation_steps: 16\n\nadvanced:\n  gradient_checkpointing: true\n",
        {
            "2: quantization.use_quantization": "model.policy.quantization.bits: 4",
            "3: quantization.bits": "model.policy.quantization.bits: 4",
            "6: training.batch_size": "data.batch_size",
            "7: training.gradient_accumulation_steps": "trainer.accumulate_grad_batches",
            "10: advanced.gradient_checkpointing": "model.policy.gradient_checkpointing",
        },
    ),
}

SCRIPTS = {
    "train_dpo.py": "fit --config configs/dpo.yaml",
    "train.py": "fit --config configs/dpo.yaml",
    "inference.py": "infer --model",
    "generate_preference_data.py": "evaluate --model",
    "evaluate_model.py": "evaluate --model",
}


def suggested(text):
    """Key -> what to write, of an error with one option or with a table of them, whose rows may be wrapped."""
    lines = text.splitlines()
    if "does not exist" in lines[0]:
        names = [line.removeprefix("error: the option ").partition(" does not")[0].lstrip("-") for line in lines[::2]]
        fixes = [re.sub("^fix: (write |did you mean )(--)?", "", line).rstrip("?") for line in lines[1::2]]
        return dict(zip(names, fixes, strict=True))
    joined = re.sub(r"\n {3,}", "  ", text)
    rows = [line.strip().partition("  ") for line in joined.splitlines() if line.startswith("  ")]
    return {name.lstrip("-"): fix.strip().lstrip("-").partition("(")[0].strip() for name, _, fix in rows}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_leads_to_our_keys(case):
    line, keys = COMMANDS[case]
    ran = run(*line.split())
    assert ran.code == 64
    found = suggested(ran.err)
    assert found.keys() == keys.keys(), ran.err
    assert {name: fix.partition(" (")[0] for name, fix in found.items()} == keys


@pytest.mark.parametrize("case", FILES)
def test_a_file_leads_to_our_keys(tmp_path, case):
    text, keys = FILES[case]
    path = tmp_path / "dpo_config.yaml"
    path.write_text(text, encoding="utf-8")
    ran = run("fit", "--config", path)
    refused(ran, 64, f"{len(keys)} options do not exist", str(path))
    assert suggested(ran.err) == keys
    assert {key.partition(":")[0] for key in keys.values()} <= set(KNOWN)


def test_a_file_and_flags_are_one_message(tmp_path):
    """Chapter 6 with the file of chapter 3."""
    path = tmp_path / "dpo_config.yaml"
    path.write_text(FILES["3 LoRA"][0], encoding="utf-8")
    ran = run("fit", "--config", path, "--beta", "0.01")
    refused(ran, 64, "13 options do not exist", "command line\n  --beta", "model.loss.beta", "2: model.name")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_leads_to_our_command(script):
    refused(run(script), 64, f"there is no command {script!r}", f"python -m dpo_lightning {SCRIPTS[script]}")


def test_flags_of_the_script_that_writes_candidates(tmp_path):
    """Its counterpart is `evaluate` on prompts alone."""
    flags = "--prompts data/prompts.json --model_path m --output x.json --num_responses 2"
    ran = run("evaluate", *flags.split())
    refused(ran, 64, "--prompts does not exist\nfix: write --data", "--num_responses does not exist\nfix: write --seed")


def test_flags_of_the_script_that_evaluates_are_taken(tmp_path):
    """Chapters 6 and 9: they exist here under the same names."""
    ran = run(
        "evaluate", "--model_path", tmp_path / "none", "--eval_data", tmp_path / "e.json", "--output_path", "x.json"
    )
    assert ran.code != 0
    assert "does not exist\nfix: write" not in ran.err
    assert "unrecognized" not in ran.err
