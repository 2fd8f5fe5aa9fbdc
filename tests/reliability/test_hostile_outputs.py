"""What is printed of a model's words, what loaders are never told, and a file in place of a model folder."""

import ast
from pathlib import Path

import pytest
from support.cases import CANARY
from support.command_line import ROOT, exported, infer, refused, run

LOADERS = {"AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "AutoModelForSequenceClassification"}


def calls_of_loaders():
    """Every call of a loader of transformers, or one that is handed to a function, with its file and line."""
    for path in sorted((ROOT / "dpo_lightning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = [part for part in (node.func, *node.args) if isinstance(part, ast.Attribute)]
            if any(isinstance(part.value, ast.Name) and part.value.id in LOADERS for part in named):
                yield f"{path.name}:{node.lineno}", {keyword.arg: keyword.value for keyword in node.keywords}


def test_no_loader_may_run_code():
    found = list(calls_of_loaders())
    assert len(found) >= 7
    for place, options in found:
        value = options.get("trust_remote_code")
        assert isinstance(value, ast.Constant), place
        assert value.value is False, place


def test_an_answer_cannot_control_the_terminal(tiny_llama, monkeypatch):
    said = "\x1b[2J\x1b]0;title\x07a\rb\u202ec\x9bd\te\nf"
    monkeypatch.setattr("dpo_lightning.models.streaming.decode_answers", lambda *_: [said])
    ran = infer(tiny_llama)
    assert ran.out == "\\x1b[2J\\x1b]0;title\\x07a\\rb\\u202ec\\x9bd\te\nf\n"


def test_the_log_of_a_bug_holds_no_secret(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(*_):
        raise RuntimeError("no such thing\x1b[2J")

    monkeypatch.setattr("dpo_lightning.models.generation.generate_ids", fail)
    ran = infer(tiny_llama)
    assert ran.code == 70
    (log,) = tmp_path.glob("dpo_lightning-*.log")
    assert "RuntimeError" in log.read_text(encoding="utf-8")
    assert CANARY not in log.read_text(encoding="utf-8") + ran.out + ran.err
    assert "\x1b" not in ran.err


@pytest.fixture
def checkpoint(place):
    """A checkpoint in the folder of a run."""
    path = Path("run/checkpoints/last.ckpt")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    return path


def test_a_damaged_checkpoint_is_named_as_such(checkpoint):
    for ran in (infer(checkpoint), exported(checkpoint, "out")):
        refused(ran, 66, "the checkpoint is damaged at --model", str(checkpoint))
    Path("rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2)
    command = ("evaluate", "--model", checkpoint, "--data", "rows.jsonl", "--output", "eval.json")
    refused(run(*command), 66, "the checkpoint is damaged at --model", str(checkpoint))


def test_a_file_is_no_model(place, tiny_llama):
    Path("notes.txt").touch()
    refused(infer("notes.txt"), 66, "expected a model folder, found a file", "notes.txt")
    refused(infer(tiny_llama / "model.safetensors"), 66, "found a file", f"fix: give its folder: {tiny_llama}")
    Path("link").symlink_to("nothing")
    refused(infer("link"), 66, "found a link to nothing")
