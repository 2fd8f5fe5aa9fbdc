"""`precompute`: one file for the runs that follow, whole or in parts; what it cannot do is said before it begins."""

from pathlib import Path

import pytest
from support import tiny_models
from support.command_line import quiet_bench, refused, run, watch_loading

from dpo_lightning.commands.precompute import share
from dpo_lightning.errors import UserError
from dpo_lightning.references.table_file import read

PRECOMPUTED = ("--model.reference", "Precomputed")


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    """The recipe without its samples, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return quiet_bench(tmp_path, tiny_llama)


def answers(path):
    """The number of answers in a file."""
    return len(read(Path(path))[1].keys)


def test_a_file_for_the_runs_that_follow(bench, tmp_path):
    """13 pairs, computed once; no run's folder is made or asked for."""
    ran = bench.run("precompute")
    assert ran.code == 0, ran
    (path,) = (tmp_path / "outputs/reference").iterdir()
    assert answers(path) == 26
    assert not (tmp_path / "run").exists()
    assert "computing 13 of 13 rows, once, into outputs/reference/" in ran.out
    assert "--model.reference Precomputed\n" in ran.out
    content = path.read_bytes()
    for out, beta in (("one", 0.1), ("two", 0.5)):
        ran = bench.fit(*PRECOMPUTED, "--model.loss.beta", beta, out=out)
        assert ran.code == 0, ran
        assert "computing" not in ran.out
        assert "self-check: passed (starting loss 0.69314" in ran.out
    assert path.read_bytes() == content
    again = ("--config", tmp_path / "one/config.yaml", "--output_dir", "one")
    assert "computing" not in run("precompute", *again).out
    for command in ("validate", "test", "predict"):
        ran = run(command, *again, "--ckpt_path", "one/checkpoints/last.ckpt")
        assert (ran.code, "computing" in ran.out) == (0, False), ran


def test_a_run_computes_what_is_not_there(bench, tmp_path):
    """Without the command, and by name."""
    ran = bench.fit(*PRECOMPUTED, "--model.reference.path", "mine.safetensors")
    assert ran.code == 0, ran
    assert "computing 13 of 13 rows, once, into mine.safetensors" in ran.out
    assert answers("mine.safetensors") == 26
    assert not (tmp_path / "outputs").exists()
    refused(
        bench.fit(*PRECOMPUTED, "--model.reference.path", "mine.safetensors", "--data.max_length", 99, out="other"),
        64,
        "truncation: the file has max_length 128, overlong error, this run has max_length 99, overlong error",
    )
    Path("mine.safetensors").write_bytes(b"")
    refused(bench.run("validate", *PRECOMPUTED, "--model.reference.path", "mine.safetensors"), 65, "no whole file")


def test_parts_are_joined_by_the_first_run(bench, monkeypatch):
    command = ("precompute", "--out", "ref.safetensors", "--shard")
    said = [bench.run(*command, f"{number}/3").out for number in (1, 2)]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "12")
    for name, value in (("MIN", 10), ("STEP", 1), ("COUNT", 3)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    said.append(bench.run(*command, "auto").out)
    for number, out in enumerate(said, 1):
        assert f"part {number} of 3 is there" in out
    assert sum(int(out.partition("computing ")[2].split()[0]) for out in said) == 13
    assert not Path("ref.safetensors").exists()
    ran = bench.fit(*PRECOMPUTED, "--model.reference.path", "ref.safetensors")
    assert (ran.code, "computing" in ran.out) == (0, False), ran
    assert answers("ref.safetensors") == 26
    assert bench.run("precompute", "--out", "whole.safetensors").code == 0
    assert Path("ref.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_the_file_of_another_reference(bench, tmp_path, monkeypatch):
    """Named as a live one or as a precomputed one; loaded by the command alone."""
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    live = ("--model.reference", "FrozenCopy", "--model.reference.path", other)
    assert bench.run("precompute", *live, "--out", "ref.safetensors").code == 0
    named = (*PRECOMPUTED, "--model.reference.model", other, "--model.reference.path", "ref.safetensors")
    loads = watch_loading(monkeypatch)
    ran = bench.run("precompute", *named)
    assert (ran.code, "computing" in ran.out, loads.count("AutoModelForCausalLM")) == (0, False, 1), ran
    loads.clear()
    ran = bench.fit(*named)
    assert (ran.code, loads.count("AutoModelForCausalLM")) == (0, 1), ran
    assert "the starting loss is left out (another model is the reference)" in ran.out
    refused(bench.fit(*PRECOMPUTED, "--model.reference.path", "ref.safetensors", out="x"), 64, "weights: the file has")


def test_a_new_adapter_shares_the_file_of_its_base(bench):
    assert bench.run("precompute").code == 0
    off = ("--model.reference", "AdapterDisabled", "--model.policy.lora.r", 2)
    assert "computing" not in bench.run("precompute", *off).out
    ran = bench.fit(*PRECOMPUTED, "--model.policy.lora.r", 2)
    assert (ran.code, "computing" in ran.out) == (0, False), ran


def test_a_run_that_used_a_file_goes_on(bench):
    assert bench.fit(*PRECOMPUTED).code == 0
    more = ("--trainer.max_epochs", 2, "--ckpt_path", "run/checkpoints/last.ckpt")
    ran = bench.fit(*PRECOMPUTED, *more)
    assert (ran.code, "computing" in ran.out) == (0, False), ran
    refused(bench.fit(*more, "--trainer.max_epochs", 3), 64, "model.reference")


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--ckpt_path", "run/checkpoints/last.ckpt"], 64, "a reference is where a run begins, not a checkpoint of it"),
        (["--shard", "0/2"], 64, "the share is not of the form I/N, I from 1 to N at shard"),
        (["--shard", "3/2"], 64, "1/4, 2/4"),
        (["--shard", "half"], 64, "half"),
        (["--shard", "auto"], 64, "SLURM_ARRAY_TASK_ID"),
        (["--outt", "x"], 64, "did you mean out?"),
        (["--out", "train.jsonl/ref.safetensors"], 73, "cannot be written: File exists (train.jsonl)"),
        (["--out", "train.jsonl"], 65, "no whole file of reference log-probabilities"),
        (["--out", "train.jsonl"], 65, "fix: --model.reference.path (or --out) with another name; if it was one of"),
        (["--out", "/"], 64, "found that of a folder at --out"),
        (["--data.train", "none.jsonl"], 66, "none.jsonl"),
        (["--model.policy.path", "nowhere/at/all"], 66, "the model folder does not exist"),
        (["--model", "SFTModule", "--data", "SFTDataModule"], 64, "SFTModule has no reference"),
        (["--model.loss", "SimPOLoss"], 64, "SimPOLoss does not use a reference; Precomputed would only take memory"),
    ],
)
def test_what_cannot_be_done_is_said(bench, more, code, said, monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    before = bench.train.read_bytes()
    refused(bench.run("precompute", *more), code, said)
    assert bench.train.read_bytes() == before
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("text", "expected"), [("1/1", (0, 1)), ("1/4", (0, 4)), ("4/4", (3, 4)), ("12/100", (11, 100))]
)
def test_a_share_counts_from_one(text, expected):
    assert share(text) == expected


@pytest.mark.parametrize(
    ("task", "first", "step", "count", "expected"), [(0, 0, 1, 3, 0), (7, 1, 3, 3, 2), (5, 5, 1, 1, 0)]
)
def test_a_share_of_a_slurm_array(task, first, step, count, expected, monkeypatch):
    for name, value in (("ID", task), ("MIN", first), ("STEP", step), ("COUNT", count)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert share("auto") == (expected, count)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "x")
    with pytest.raises(UserError, match="a Slurm array sets"):
        share("auto")
