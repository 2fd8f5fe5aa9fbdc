"""`export`: one whole model out of an adapter and its base, compared with it before it has its name."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support import short_runs, tiny_models
from support.command_line import ROOT, Bench, exported, json_lines, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_lightning.models.causal_lm import ORIGIN_FILE, CausalLM
from dpo_lightning.models.folder_checks import EMBEDDED
from dpo_lightning.models.merging import probe_logits
from dpo_lightning.runs.lineage import Stage, folder_digest, read_stages, write_stages


@pytest.fixture(scope="module")
def adapter(tiny_llama, file, tmp_path_factory):
    """A trained adapter's folder."""
    folder = short_runs.adapter_folder(tiny_llama, file, tmp_path_factory.mktemp("trained") / "final_model", steps=3)
    write_stages(
        folder,
        [Stage("DPOModule", {"path": str(tiny_llama)}, "s", folder_digest(folder), 3, {"loss": "DPOLoss(beta=0.1)"})],
    )
    return folder


def probed(folder):
    """Logits of what lies in a folder, as this package loads it."""
    return probe_logits(CausalLM(str(folder), attention="eager").build())


def plainly(folder):
    """Logits of a whole model, as transformers loads it."""
    return probe_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def tensors(folder):
    """Names and dtypes in all weight files of a folder."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    return found


def test_an_adapter_becomes_a_whole_model(adapter, tiny_llama, tmp_path):
    """The same function, nothing of the adapter beside it, the tie kept, and all that a tool needs."""
    out = tmp_path / "내 모델/merged"
    ran = exported(adapter, out)
    assert (ran.code, ran.err) == (0, ""), ran
    assert (plainly(out) - probed(adapter)).abs().max() < 1e-4
    assert (plainly(out) - plainly(tiny_llama)).abs().max() > 0.1
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if "adapter" in name]
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in tensors(out)
    assert set(tensors(out).values()) == {torch.float32}
    assert AutoTokenizer.from_pretrained(out).chat_template == tiny_models.CHATML
    ends = [json.loads((folder / "generation_config.json").read_text())["eos_token_id"] for folder in (out, tiny_llama)]
    assert ends[0] == ends[1]
    answered = run("infer", "--model", out, "--instruction", "Hello?", "--max_new_tokens", "4")
    assert answered.code == 0, answered


def test_it_says_what_it_did_and_what_is_next(adapter, tiny_llama, tmp_path):
    out = tmp_path / "my model"
    said = exported(adapter, out).out
    assert f"the adapter {adapter}, merged in float32 into {tiny_llama}, written as float32" in said
    (check,) = (line for line in said.splitlines() if line.startswith("check: "))
    figure = float(check.split(" differ by ")[1].split(",")[0])
    assert 0 <= figure < 1e-4
    assert "64 positions" in check
    where = shlex.quote(str(out))
    assert f"infer --model {where} " in said
    convert = f"convert_hf_to_gguf.py {where} --outfile {shlex.quote(f'{out}.gguf')} --outtype f32"
    assert convert in said
    assert "not run here" in said
    infer = next(line for line in said.splitlines() if line.startswith("next: ")).removeprefix("next: ")
    words = shlex.split(infer)
    assert run(*words[3:], "--max_new_tokens", "2").code == 0


def test_the_card_has_the_whole_chain(adapter, tiny_llama, tmp_path):
    exported(adapter, tmp_path / "one")
    text = (tmp_path / "one/README.md").read_text()
    assert f"base_model: {tiny_llama}" in text
    assert "library_name: transformers" in text
    stages = read_stages(tmp_path / "one")
    assert stages[0].what == "DPOModule"
    assert stages[-1].what == "export"
    assert "DPOLoss(beta=0.1)" in text
    assert "largest difference of a logit" in text
    exported(tmp_path / "one", tmp_path / "two", "--dtype", "bfloat16")
    assert [stage.what for stage in read_stages(tmp_path / "two")] == [*(stage.what for stage in stages), "export"]


@pytest.mark.parametrize(("dtype", "outtype"), [("bfloat16", "bf16"), ("float16", "f16")])
def test_half_precision_is_asked_for(dtype, outtype, adapter, tmp_path):
    ran = exported(adapter, tmp_path / "half", "--dtype", dtype)
    assert ran.code == 0, ran
    assert set(tensors(tmp_path / "half").values()) == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == dtype
    assert f"--outtype {outtype}" in ran.out
    near = (plainly(tmp_path / "half") - probed(adapter)).abs().max()
    assert 1e-4 < near < 0.5
    again = exported(tmp_path / "half", tmp_path / "again")
    assert f"--dtype {dtype} makes the folder half as large" in again.out
    assert "there is nothing to merge" in again.out


def test_a_whole_model_is_written_anew(tiny_gpt2, tmp_path):
    ran = exported(tiny_gpt2, tmp_path / "out", "--max_shard_size", "20KB")
    assert ran.code == 0, ran
    assert ran.out.count("note: ") == 0
    assert "is a whole model: there is nothing to merge, it is written anew as float32" in ran.out
    assert torch.equal(plainly(tmp_path / "out"), plainly(tiny_gpt2))
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert f"weights in {len(shards)} files" in ran.out


def test_an_adapter_of_quantized_weights_is_merged_into_the_whole_ones(adapter, tiny_llama, tmp_path):
    folder = tmp_path / "qlora"
    folder.mkdir()
    for path in adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    policy = {"path": str(tiny_llama), "quantization": {"bits": 4}}
    write_stages(folder, [Stage("DPOModule", policy, "s", folder_digest(folder), 3)])
    ran = exported(folder, tmp_path / "out")
    assert ran.code == 0, ran
    assert "trained on quantized weights" in ran.out
    assert (plainly(tmp_path / "out") - probed(adapter)).abs().max() < 1e-4
    assert "trained on quantized" not in exported(adapter, tmp_path / "other").out


def test_its_help_imports_nothing_heavy():
    probe = (
        "import sys; from dpo_lightning.__main__ import main; main(['export', '--help']);"
        "sys.exit(bool({'torch', 'transformers', 'peft', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done
    assert "--max_shard_size" in done.stdout


# The whole way, with the real model


@pytest.mark.slow
def test_sft_dpo_dpo_export_of_the_embedded_model(tmp_path):
    """An adapter through three stages, each from the last one's folder, and out of it one model."""
    model = ROOT / EMBEDDED
    bench = Bench(tmp_path, model)
    demonstrations = json_lines(
        tmp_path / "sft.jsonl",
        [{"prompt": f"What is {k} + 46?", "completion": f"It is {k + 46}, of course."} for k in range(4)],
    )
    short = {"trainer.max_steps": 2, "data.max_length": 96, "data.batch_size": 2, "model.learning_rate": 1e-3}
    flags = [f"--{name}={value}" for name, value in short.items()]
    began = time.monotonic()
    ran = run(
        "fit",
        *(f"--config={path}" for path in (ROOT / "configs/sft.yaml",)),
        *(f"--output_dir={tmp_path / 'sft'}", f"--model.policy.path={model}", f"--data.train={demonstrations}"),
        *("--model.policy.lora.r=8", "--trainer.accelerator=cpu", "--trainer.precision=32-true"),
        *("--trainer.enable_progress_bar=false", *flags),
    )
    assert ran.code == 0, ran
    for start, out in (("sft", "one"), ("one", "two")):
        ran = bench.fit(
            *flags,
            f"--model.policy.path={tmp_path / start / 'final_model'}",
            "--data.eval=null",
            "--trainer.callbacks=[]",
            out=out,
        )
        assert ran.code == 0, ran
        assert "self-check: passed (starting loss 0.693147" in ran.out, ran.out
    last = tmp_path / "two/final_model"
    out = tmp_path / "merged"
    ran = exported(last, out)
    assert ran.code == 0, ran
    print(ran.out, f"{time.monotonic() - began:.0f} s")
    assert (plainly(out) - probed(last)).abs().max() < 1e-4
    assert (plainly(out) - plainly(model)).abs().max() > 0.1
    assert [stage.what for stage in read_stages(out)] == ["SFTModule", "DPOModule", "DPOModule", "export"]
    assert not (Path(out) / ORIGIN_FILE).read_text().count("base_digest")
    answered = run("infer", "--model", out, "--instruction", "What is 1 + 46?", "--max_new_tokens", "4")
    assert answered.code == 0, answered
