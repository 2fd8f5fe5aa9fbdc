"""`evaluate` from the command line: what it writes and what it refuses."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from support import tiny_models
from support.command_line import Bench, exported, json_lines, refused, run
from support.evaluations import SMALL, check_same, evaluate
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_lightning.evaluation.result_file import read_result


def test_what_is_written(bench, result):
    """The how-to's `json.load(open(...))[0]["generated"]`, and all that the summary and the page hold."""
    with (bench.folder / "eval.json").open() as file:
        items = json.load(file)
    assert isinstance(items[0]["generated"], str)
    rows = [json.loads(line) for line in bench.eval.read_text().splitlines()]
    assert [(item["prompt"], item["chosen"], item["rejected"]) for item in items] == [
        (row["prompt"], row["chosen"], row["rejected"]) for row in rows
    ]
    assert [item["line"] for item in items] == list(range(1, 10))
    assert all(item["kl"] >= 0 and 1 <= item["tokens"] <= 6 and item["chosen_kl"] > 0 for item in items)
    measures = result.summary["measures"]
    assert {"loss", "margin/nats", "kl/held_out/token", "kl/generated/token", "perplexity/chosen"} <= measures.keys()
    assert measures["margin/reward"]["estimate"] == pytest.approx(0.1 * measures["margin/nats"]["estimate"], rel=1e-5)
    assert set(result.summary["slices"]) == {"length difference", "group", "language"}
    assert sum(part["accuracy"]["count"] for part in result.summary["slices"]["group"].values()) == 9
    assert result.summary["made_by"]["reference"]["path"] == str(bench.model)
    assert "accuracy by implicit reward" in (bench.folder / "eval.html").read_text()
    assert not (bench.folder / ".eval.json.work").exists()


def test_two_models_side_by_side(bench, place):
    """As the users' how-to compares two models: its options, and two answers printed."""
    for name, model in (("sft", bench.model), ("dpo", bench.folder / "run" / "final_model")):
        options = ["--model_path", model, "--eval_data", bench.eval, "--output_path", f"eval_{name}.json"]
        ran = run("evaluate", *options, *SMALL)
        assert ran.code == 0, ran
    code = """
import json
sft = json.load(open('eval_sft.json'))
dpo = json.load(open('eval_dpo.json'))
print('SFT:', sft[0]['generated'][:100])
print('DPO:', dpo[0]['generated'][:100])
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("SFT:")
    assert "\nDPO:" in printed


def test_measures_are_those_of_the_run(bench):
    """On the rows that the run evaluated, the figures are those that the run printed."""
    ran = evaluate(bench, bench.folder / "same.json", data=bench.folder / "eval.jsonl")
    assert ran.code == 0, ran
    measures, known = read_result(bench.folder / "same.json").summary["measures"], bench.json("metrics.json")
    for name, other in (
        ("loss", "eval/loss"),
        ("margin/reward", "eval/rewards/margins"),
        ("margin/nats", "eval/logps/margins"),
        ("accuracy/reward", "eval/rewards/accuracies"),
        ("accuracy/likelihood", "eval/logps/accuracies"),
        ("accuracy/likelihood/reference", "eval/logps/ref_accuracies"),
    ):
        assert measures[name]["estimate"] == pytest.approx(known[other], abs=1e-4), name


@pytest.mark.parametrize(
    "more",
    [
        ("--batch_size", 1),
        ("--batch_size", 3),
        *(("--batch_size", 2, "--collator", name) for name in ("Padded", "SharedPrefix", "Packed")),
    ],
    ids=str,
)
def test_batches_and_layouts_change_nothing(bench, result, more):
    output = bench.folder / f"{'_'.join(map(str, more))}.json"
    assert evaluate(bench, output, *more).code == 0
    check_same(result, read_result(output))


def test_two_ranks_are_one(bench, result):
    """As a user starts them; each has a share of the rows."""
    output = bench.folder / "two.jsonl"
    command = ["evaluate", "--model", bench.folder / "run" / "final_model", "--data", bench.eval, "--output", output]
    ran = call(*command, *SMALL, "--devices", 2, "--batch_size", 2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    check_same(result, read_result(output))
    assert ran.stdout.count("evaluation of") == 1


def call(*args, **options):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "dpo_lightning", *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize("way", ["same", "copied", "linked", "saved in parts", "the start itself"])
def test_the_model_is_not_its_own_reference(bench, tmp_path, way):
    """All rewards and divergences would be 0."""
    model = bench.folder / "run" / "final_model"
    if way == "same":
        other = model
    elif way == "copied":
        other = shutil.copytree(model, tmp_path / "copy")
    elif way == "saved in parts":
        other = tmp_path / "parts"
        AutoModelForCausalLM.from_pretrained(model).save_pretrained(other, max_shard_size="20KB")
        AutoTokenizer.from_pretrained(model).save_pretrained(other)
    elif way == "linked":
        other = tmp_path / "link"
        other.symlink_to(model)
    else:
        model, other = bench.model, shutil.copytree(bench.model, tmp_path / "copy")
    ran = evaluate(bench, tmp_path / "eval.json", "--reference", other, model=model)
    refused(ran, 64, "the reference is the model itself", "--reference none")


def test_a_reference_that_changed_or_is_gone(bench, tmp_path):
    other = Bench(tmp_path, shutil.copytree(bench.model, tmp_path / "start"), bench)
    assert other.fit().code == 0
    moved = (tmp_path / "start").rename(tmp_path / "moved")
    refused(evaluate(other, tmp_path / "eval.json"), 66, "is not there", "--reference")
    shutil.copytree(bench.folder / "run" / "final_model", tmp_path / "start")
    refused(evaluate(other, tmp_path / "eval.json"), 67, "not those that the model's training started from")
    assert evaluate(other, tmp_path / "eval.json", "--reference", moved).code == 0


@pytest.mark.parametrize("reference", ["Precomputed", "FrozenCopy"])
def test_the_reference_of_the_record(bench, tiny_llama, tmp_path, monkeypatch, reference):
    """A precomputed one is the model whose log-probabilities its file has; another model is found by its path."""
    monkeypatch.chdir(tmp_path)
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=5), tiny_models.make_chat_tokenizer())
    flag = {"Precomputed": "path=logps.safetensors", "FrozenCopy": f"path={other}"}[reference]
    ran = bench.fit(f"--model.reference={reference}", f"--model.reference.{flag}", out=tmp_path / "run")
    assert ran.code == 0, ran
    ran = evaluate(bench, tmp_path / "eval.json", model=tmp_path / "run" / "final_model")
    assert ran.code == 0, ran
    expected = bench.model if reference == "Precomputed" else other
    assert read_result(tmp_path / "eval.json").summary["made_by"]["reference"]["path"] == str(expected)


def test_an_adapter_is_compared_with_its_base(bench, tmp_path):
    """The base is not loaded twice, and the figures are those of a base that is."""
    assert bench.fit("--model.policy.lora.r=2", out="lora").code == 0
    model, copied = bench.folder / "lora" / "final_model", shutil.copytree(bench.model, tmp_path / "base")
    ran = evaluate(bench, tmp_path / "below.json", model=model)
    assert ran.code == 0, ran
    assert evaluate(bench, tmp_path / "apart.json", "--reference", copied, model=model).code == 0
    check_same(read_result(tmp_path / "below.json"), read_result(tmp_path / "apart.json"))


def test_a_base_in_four_bits(bench, tmp_path):
    """It is quantized as in training, and once it is merged it is not."""
    ran = bench.fit(
        "--model.policy.lora.r=2", "--model.policy.quantization.bits=4", "--trainer.max_steps=1", out="qlora"
    )
    assert ran.code == 0, ran
    ran = evaluate(bench, tmp_path / "adapter.json", model=bench.folder / "qlora" / "final_model")
    assert ran.code == 0, ran
    assert "base: 4 bits nf4" in ran.out
    assert read_result(tmp_path / "adapter.json").summary["made_by"]["quantization"].startswith("4 bits")
    assert exported(bench.folder / "qlora" / "final_model", tmp_path / "merged").code == 0
    ran = evaluate(bench, tmp_path / "merged.json", model=tmp_path / "merged")
    assert ran.code == 0, ran
    made_by = read_result(tmp_path / "merged.json").summary["made_by"]
    assert (made_by["quantization"], made_by["reference"]["path"]) == ("none", str(bench.model))


@pytest.mark.parametrize("more", [(), ("--model.policy.lora.r=2",)], ids=["whole", "adapter"])
def test_a_checkpoint_is_its_exported_model(bench, tmp_path, more):
    """The reference is the one of its run, and the figures are those of the model that `export` makes of it."""
    assert bench.fit(*more, "--trainer.max_epochs=2", out=tmp_path / "run").code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    ran = evaluate(bench, tmp_path / "checkpoint.json", model=checkpoint)
    assert ran.code == 0, ran
    assert exported(checkpoint, tmp_path / "whole").code == 0
    assert evaluate(bench, tmp_path / "whole.json", model=tmp_path / "whole").code == 0
    found, expected = (read_result(tmp_path / f"{name}.json") for name in ("checkpoint", "whole"))
    check_same(expected, found)
    for name in ("loss", "margin/reward", "kl/generated/token"):
        assert found.summary["measures"][name]["estimate"] == pytest.approx(
            expected.summary["measures"][name]["estimate"], abs=1e-4
        )
    assert found.summary["made_by"]["reference"]["path"] == str(bench.model)
    assert found.summary["made_by"]["model"]["path"] == str(checkpoint)


def test_without_a_reference(bench, tmp_path):
    """A model of SFT, or any other: likelihoods, perplexity and answers."""
    ran = evaluate(bench, tmp_path / "eval.json", model=bench.model)
    assert ran.code == 0, ran
    assert "reference: none" in ran.out
    result = read_result(tmp_path / "eval.json")
    measures = result.summary["measures"]
    assert not {"loss", "accuracy/reward", "kl/generated/token"} & measures.keys()
    assert {"accuracy/likelihood", "perplexity/chosen", "length/tokens"} <= measures.keys()
    assert result.items[0]["kl"] is None


@pytest.mark.parametrize(
    "rows", [["What is 46?", "오늘 날씨가 어때요?"], [{"prompt": "Hi?"}, {"prompt": "Hello!"}]], ids=str
)
def test_prompts_alone_are_answered(bench, tmp_path, rows):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(rows, ensure_ascii=False))
    ran = evaluate(bench, tmp_path / "eval.json", data=path)
    assert ran.code == 0, ran
    result = read_result(tmp_path / "eval.json", answered=True)
    assert [item["prompt"] for item in result.items] == [row if isinstance(row, str) else row["prompt"] for row in rows]
    assert result.items[0]["chosen"] is None
    assert "loss" not in result.summary["measures"]
    assert "kl/generated/token" in result.summary["measures"]


def test_a_prompt_that_leaves_no_position(bench, tmp_path):
    rows = json_lines(tmp_path / "rows.jsonl", [{"prompt": "Hi?"}, {"prompt": "a b c " * 200}])
    refused(evaluate(bench, tmp_path / "eval.json", data=rows), 65, "rows.jsonl:2", "256 positions")


def test_float16_on_a_processor(bench, tmp_path):
    refused(evaluate(bench, tmp_path / "eval.json", "--precision", "16-mixed"), 69, "--precision")


def test_the_same_prompt_gets_the_same_answer_in_another_file(bench, result, tmp_path):
    rows = json_lines(tmp_path / "rows.jsonl", [json.loads(line) for line in bench.eval.read_text().splitlines()][4:7])
    assert evaluate(bench, tmp_path / "eval.json", data=rows).code == 0
    found = [item["generated"] for item in read_result(tmp_path / "eval.json").items]
    assert found == [item["generated"] for item in result.items[4:7]]


def test_infer_gives_that_answer_too(bench, result):
    ran = run(
        "infer",
        "--model",
        bench.folder / "run" / "final_model",
        "--instruction",
        result.items[2]["prompt"],
        "--max_new_tokens",
        6,
    )
    assert ran.out == result.items[2]["generated"] + "\n"
