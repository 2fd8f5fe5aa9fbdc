"""Model folders from somebody else: code, links, headers and configurations."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import tiny_models
from support.cases import change, model, write, write_json


class Canary:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("outside/canary", "w")


PICKLE = pickle.dumps(Canary())


def torch_file(content: bytes = PICKLE) -> bytes:
    """A file as `torch.save` writes them, with a pickle that runs code."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return data.getvalue()


def pickled_weights(folder: Path) -> None:
    """Weights in a pickle alone."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(torch_file())


def pickled_beside(folder: Path) -> None:
    """A pickle beside the weights."""
    (folder / "pytorch_model.bin").write_bytes(torch_file())
    (folder / "training_args.bin").write_bytes(PICKLE)


def pickle_as_safetensors(folder: Path) -> None:
    """A pickle under the name of weights."""
    (folder / "model.safetensors").write_bytes(torch_file())


def index(shards: Any) -> Callable[[Path], None]:
    """An index of shards in place of the one file of weights."""

    def build(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside" / "w.safetensors")
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": shards})

    return build


def weights_link(target: str) -> Callable[[Path], None]:
    """A link in place of the weights."""

    def build(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside" / "w.safetensors")
        (folder / "model.safetensors").symlink_to(target)

    return build


def link(name: str, target: str) -> Callable[[Path], None]:
    """A link in place of another file of the folder."""

    def build(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return build


def pipe(name: str) -> Callable[[Path], None]:
    """A pipe in place of a file."""

    def build(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return build


def header(text: str | bytes) -> Callable[[Path], None]:
    """Weights whose header is this text."""

    def build(folder: Path) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)

    return build


def edit_header(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Weights whose header is changed, and its length with it."""

    def build(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + size])
        edit(content)
        made = json.dumps(content).encode()
        made += b" " * (-len(made) % 8)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(made)) + made + data[8 + size :])

    return build


def tensors(content: dict[str, Any]) -> list[str]:
    """The names of the tensors in a header."""
    return [name for name in content if name != "__metadata__"]


def with_code(folder: Path) -> None:
    """Code in the folder, which its files name."""
    (folder / "code.py").write_text("open('outside/canary', 'w')\n")
    tiny_models.change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"})


CODE = [
    model("code of its own", 67, with_code),
    model("code of its own, and yes", 67, with_code, stdin="y\n" * 100),
    model("code for the tokenizer", 67, change("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}),
          stdin="y\n" * 100),
    model("code in a part", 67, change("config.json", text_config={"auto_map": {"AutoConfig": "evil/repo--code.C"}})),
    model("code to generate", 67, change("generation_config.json", custom_generate="evil/generate")),
    model("a kernel of a hub", 67, change("config.json", attn_implementation="evil/kernel")),
    model("weights in a pickle", 67, pickled_weights, said=("pickle",)),
    model("a pickle beside the weights", 0, pickled_beside),
    model("a pickle under another name", 67, pickle_as_safetensors),
    model("an index to a pickle", 67, index({"x": "pytorch_model.bin"})),
    model("an index out of the folder", 67, index({"x": "../outside/w.safetensors"})),
    model("an index to an absolute path", 67, index({"x": "/etc/passwd"})),
    model("an index to a folder", 67, index({"x": ".."})),
    model("an index of numbers", 67, index({"x": 5})),
    model("an index that is a list", 67, index([1, 2])),
    model("an empty index", 67, index({})),
    model("an index with a NUL", 67, index({"x": "a\0b"})),
    model("an index with an ESC", 67, index({"x": "a\x1b[2J"})),
    model("an index with a name of 5,000 letters", 67, index({"x": "a" * 5000})),
    model("weights that are a link out", 67, weights_link("../outside/w.safetensors")),
    model("weights that are a link to a device", 67, weights_link("/dev/zero")),
    model("weights that are a link to themselves", 67, weights_link("model.safetensors")),
    model("a tokenizer that is a link out", 67, link("tokenizer.json", "../outside/important.txt")),
    model("a template that is a link out", 67, link("chat_template.jinja", "../outside/important.txt")),
    model("a configuration that is a link out", 67, link("config.json", "/etc/passwd")),
    model("a configuration that is a pipe", 67, pipe("config.json")),
    model("a tokenizer that is a pipe", 67, pipe("tokenizer.json")),
    model("weights that are a pipe", 67, pipe("model.safetensors")),
]  # fmt: skip

FILES = [
    model("no header", 67, write("model.safetensors", b"")),
    model("a header of 8 bytes", 67, write("model.safetensors", bytes(8))),
    model("a header of 2**63", 67, write("model.safetensors", b"\xff" * 64)),
    model("a header that is no JSON", 67, header("x" * 64)),
    model("a header that is a list", 67, header("[]")),
    model("a header nested deeply", 67, header("[" * 100_000)),
    model("a header of numbers", 67, header('{"a": 1}')),
    model("offsets that are negative", 67,
          edit_header(lambda c: c[tensors(c)[0]].update(data_offsets=[-8, c[tensors(c)[0]]["data_offsets"][1]]))),
    model("offsets that overlap", 67,
          edit_header(lambda c: c[tensors(c)[0]].update(data_offsets=c[tensors(c)[1]]["data_offsets"]))),
    model("a shape that is too large", 67, edit_header(lambda c: c[tensors(c)[0]].update(shape=[1 << 40, 1 << 40]))),
    model("a shape that is negative", 67, edit_header(lambda c: c[tensors(c)[0]].update(shape=[-1, -1]))),
    model("a shape of texts", 67, edit_header(lambda c: c[tensors(c)[0]].update(shape=["a"]))),
    model("another type of values", 67, edit_header(lambda c: c[tensors(c)[0]].update(dtype="F64"))),
    model("an unknown type of values", 67, edit_header(lambda c: c[tensors(c)[0]].update(dtype="X9"))),
    model("a tensor too few", 67, edit_header(lambda c: c.pop(tensors(c)[0])), stage="S2"),
    model("a tensor of another name", 67, edit_header(lambda c: c.update(x=c.pop(tensors(c)[0]))), stage="S2"),
    model("a tensor's name with an ESC", 67, edit_header(lambda c: c.update({"x\x1b[2J": c.pop(tensors(c)[0])})),
          stage="S2"),
    model("a file that ends early", 67, lambda f: os.truncate(f / "model.safetensors", 2000)),
    model("a byte too many", 67, lambda f: (f / "model.safetensors").open("ab").write(b"x")),
    model("a configuration that ends early", 67, write("config.json", '{"model_type": "llama", ')),
    model("a configuration in UTF-16", 67, write("config.json", "{}".encode("utf-16"))),
    model("an empty configuration", 67, write("config.json", "")),
    model("a configuration that is a list", 67, write("config.json", "[]")),
    model("a configuration without a type", 67, write("config.json", "{}")),
    model("a configuration nested deeply", 67, write("config.json", '{"a":' * 50_000)),
    model("a configuration of NaN", 67, write("config.json", '{"model_type": "llama", "rms_norm_eps": NaN}')),
    model("an unknown type", 67, change("config.json", model_type="no_such_model")),
    model("a type with an ESC", 67, change("config.json", model_type="a\x1b[2Jb")),
    model("a type that is a list", 67, change("config.json", model_type=["llama"])),
    model("an encoder", 67, change("config.json", model_type="bert"), stage="S2"),
    model("an encoder-decoder", 67, change("config.json", model_type="t5")),
    model("a picture model", 67, change("config.json", model_type="vit")),
    model("a million layers", 67, change("config.json", num_hidden_layers=10**6)),
    model("layers without end", 67, change("config.json", num_hidden_layers=10**18)),
    model("a negative number of layers", 67, change("config.json", num_hidden_layers=-1), stage="S2"),
    model("layers in text", 67, change("config.json", num_hidden_layers="2"), stage="S2"),
    model("a hidden size of a million", 67, change("config.json", hidden_size=10**6)),
    model("a hidden size of 0", 67, change("config.json", hidden_size=0), stage="S2"),
    model("a hidden size in text", 67, change("config.json", hidden_size="16"), stage="S2"),
    model("no heads", 67, change("config.json", num_attention_heads=0), stage="S2"),
    model("a vocabulary of 10**11", 67, change("config.json", vocab_size=10**11)),
    model("a vocabulary of -1", 67, change("config.json", vocab_size=-1)),
    model("a vocabulary in text", 67, change("config.json", vocab_size="480")),
    model("a vocabulary that is null", 67, change("config.json", vocab_size=None)),
    model("positions of -1", 67, change("config.json", max_position_embeddings=-1)),
    model("positions in text", 67, change("config.json", max_position_embeddings="many"), stage="S2"),
    model("an unknown activation", 67, change("config.json", hidden_act="no_such"), stage="S2"),
    model("an activation of numbers", 67, change("config.json", hidden_act=5), stage="S2"),
    model("a type of values of torch", 67, change("config.json", dtype="load")),
    model("quantized weights", 67, change("config.json", quantization_config={"quant_method": "gptq", "bits": 4})),
    model("rotary scaling of nonsense", 67,
          change("config.json", rope_scaling={"rope_type": "no_such", "factor": -1}), stage="S2"),
    model("rotary parameters of nonsense", 67, change("config.json", rope_parameters={"rope_theta": "x"}), stage="S2"),
    model("a rotary base that is NaN", 67, change("config.json", rope_parameters={"rope_type": "default",
          "rope_theta": float("nan")}), stage="S2"),
    model("a norm that is NaN", 67, change("config.json", rms_norm_eps=float("nan")), stage="S2"),
    model("a key of a megabyte", 0, change("config.json", **{"a" * (1 << 20): 1})),
    model("a configuration of 6 GB", 67, lambda f: os.truncate(f / "config.json", 6 << 30)),
    model("a tokenizer of 6 GB", 67, lambda f: os.truncate(f / "tokenizer.json", 6 << 30)),
]  # fmt: skip

CASES = [*CODE, *FILES[::2]]
"""Those that are tried each time; the campaign tries all."""

ALL = [*CODE, *FILES]
