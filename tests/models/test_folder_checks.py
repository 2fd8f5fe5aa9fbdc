"""What a model folder may hold: everything that is wrong is told before a weight is loaded, and no code is run."""

import json
import shutil
import struct

import pytest
from support import short_runs, tiny_models
from support.tiny_models import change_json

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.folder_checks import (
    EMBEDDED,
    check_folder,
    count_values,
    looks_like_hub_id,
    read_header,
    weights_digest,
)

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A model folder of the test's own."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    """A model in several weight files."""
    model = tiny_models.make_llama()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    tiny_models.make_chat_tokenizer().save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    return tmp_path / "sharded"


def refused(path, code=ExitCode.MODEL):
    """The message with which a folder is refused."""
    with pytest.raises(UserError) as raised:
        check_folder(str(path))
    assert raised.value.code == code
    assert raised.value.fix
    return str(raised.value)


# Names


def test_a_whole_folder_passes(tiny_llama, tiny_gpt2, sharded):
    for folder in (tiny_llama, tiny_gpt2, sharded):
        assert check_folder(str(folder)) == folder


def test_the_nearest_names_are_told(folder):
    message = refused(folder.with_name("modle"), ExitCode.INPUT_MISSING)
    assert "did you mean" in message
    assert str(folder) in message
    assert "did you mean" not in refused(folder.with_name("nothing-like-it"), ExitCode.INPUT_MISSING)


@pytest.mark.parametrize("parent", [True, False])
def test_the_embedded_model_is_fetched_by_a_command(tmp_path, monkeypatch, parent):
    monkeypatch.chdir(tmp_path)
    if parent:  # in a fresh clone there may be no models/ at all: it still is no hub id
        (tmp_path / "models").mkdir()
    assert "fix: python -m dpo_lightning fetch-model" in refused(EMBEDDED, ExitCode.INPUT_MISSING)
    assert "fetch-model" in refused(EMBEDDED + "/", ExitCode.INPUT_MISSING)


def test_a_hub_id_is_told_from_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for name in ("gpt2", "org/name", "org/name-1.5B"):
        assert looks_like_hub_id(name)
        assert check_folder(name) is None
    for path in ("./gpt2", "/gpt2", "~/gpt2", "../org/name", "outputs/run/final_model", "outputs/run"):
        assert not looks_like_hub_id(path)
        refused(path, ExitCode.INPUT_MISSING)


def test_an_unreachable_hub_id_is_missing_input():
    with pytest.raises(UserError, match="hub id and the connection") as raised:
        CausalLM("nobody/nothing").config()
    assert raised.value.code == ExitCode.INPUT_MISSING


def test_a_folder_without_config_names_it(folder):
    (folder / "config.json").unlink()
    message = refused(folder)
    assert "config.json" in message
    assert "final_model/" in message


# Weights


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights(folder, kept):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    message = refused(folder)
    assert str(file) in message
    assert "damaged" in message


def test_weights_with_bytes_behind_them(folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes() + b"x")
    assert "its header gives" in refused(folder)


def lying(file, change):
    """Write the file's header again after `change`."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = change(json.loads(raw[8 : 8 + length]))
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + raw[8 + length :])


@pytest.mark.parametrize(
    "header",
    [b"{", b"\xff\xfe", b"[]", b"[[1]]", b'{"w": 1}', b'{"w": {}}', b'{"w": {"data_offsets": ["0", "1"]}}',
     b'{"w": {"data_offsets": [0]}}', b"[" * 100_000, b'{"w": {"data_offsets": [0, 1]}}'],
)  # fmt: skip
def test_a_header_that_is_none(folder, header):
    lying(folder / WEIGHTS, lambda _: header)
    assert "damaged" in refused(folder)


def test_a_header_longer_than_the_file(folder):
    file = folder / WEIGHTS
    file.write_bytes(struct.pack("<Q", 1 << 62) + file.read_bytes()[8:])
    assert "is truncated" in refused(folder)


def test_a_shape_that_its_bytes_do_not_fill_is_refused_when_loaded(folder):
    def widen(header):
        header["model.norm.weight"]["shape"] = [32]
        return header

    lying(folder / WEIGHTS, widen)
    with pytest.raises(UserError) as raised:
        CausalLM(str(folder)).build()
    assert raised.value.code == ExitCode.MODEL


def test_a_missing_weight_file(folder):
    (folder / WEIGHTS).unlink()
    assert f"{folder}/{WEIGHTS}" in refused(folder)


def test_a_missing_or_cut_shard_is_named(sharded):
    last = sorted(sharded.glob("model-*.safetensors"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    assert str(last) in refused(sharded)
    last.unlink()
    assert f"missing at {last}" in refused(sharded)


@pytest.mark.parametrize("name", ["../model/model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""])
def test_an_index_that_leaves_the_folder(folder, sharded, name):
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    change_json(index, weight_map=weight_map | {"model.norm.weight": name})
    message = refused(sharded)
    assert "outside the folder" in message
    assert str(index) in message


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', "\0"])
def test_an_index_that_is_none(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    assert "index.json" in refused(sharded)


def test_pickled_weights_are_not_read(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    message = refused(folder)
    assert "may run code" in message
    assert "save_pretrained" in message
    with pytest.raises(UserError, match="may run code"):
        CausalLM(str(folder)).build()


# Code and configurations


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff", "[" * 100_000])
def test_a_broken_config(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    message = refused(folder)
    assert f"{folder}/config.json" in message


def plant_code(folder, mark):
    """Python files that would leave a mark where they are imported."""
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(
            f"open({str(mark)!r}, 'w').close()\n"
            "from transformers import LlamaConfig as OwnConfig, LlamaForCausalLM as OwnModel\n"
            "from transformers import PreTrainedTokenizerFast as OwnTokenizer\n"
        )


@pytest.mark.parametrize("kind", ["llama", "own"])
def test_code_in_a_folder_is_never_run(folder, tmp_path, kind):
    mark = tmp_path / "ran"
    plant_code(folder, mark)
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    change_json(folder / "config.json", auto_map=auto_map, model_type=kind)
    assert "auto_map" in refused(folder)
    policy = CausalLM(str(folder))
    for use in (policy.build, policy.config, policy.tokenizer, lambda: short_runs.ready(folder)):
        with pytest.raises(UserError, match="never run") as raised:
            use()
        assert raised.value.code == ExitCode.MODEL
    assert not mark.exists()


def test_a_tokenizer_with_code_is_refused(folder, tmp_path):
    mark = tmp_path / "ran"
    plant_code(folder, mark)
    own = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    change_json(folder / "tokenizer_config.json", **own)
    try:
        CausalLM(str(folder)).tokenizer()
    except UserError as error:
        assert error.code == ExitCode.MODEL  # noqa: PT017 - reading it without its code is as good
    assert not mark.exists()


def test_an_adapters_base_with_code_is_refused(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    change_json(folder / "config.json", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    with pytest.raises(UserError, match="never run"):
        CausalLM(str(adapter)).base_path()


# Numbers that are read off the files


def test_the_number_of_weights(tiny_llama, sharded):
    expected = sum(value.numel() for value in tiny_models.make_llama().parameters())  # tied weights are there once
    assert count_values(tiny_llama) == count_values(sharded) == expected
    assert CausalLM(str(tiny_llama)).count_trained_values() == expected


def test_the_digest_tells_bases_apart(tiny_llama, folder, tmp_path):
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    assert weights_digest(tiny_llama) == weights_digest(folder)
    assert weights_digest(tiny_llama) != weights_digest(other)


def test_a_header_is_read_whole(tiny_llama):
    assert "model.norm.weight" in json.loads(read_header(tiny_llama / WEIGHTS))


def test_sequences_longer_than_the_positions(tiny_llama, tiny_gpt2):
    for folder in (tiny_llama, tiny_gpt2):
        made = short_runs.module(folder)
        made.check_length(256)
        with pytest.raises(UserError, match="max_length=257 exceeds the model's 256 positions") as raised:
            made.check_length(257)
        assert raised.value.code == ExitCode.CONFIG
