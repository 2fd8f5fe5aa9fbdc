"""Folders from elsewhere: nothing in them is run, fetched or waited for; the error names the file."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys

import pytest
from support.command_line import refused, run
from support.tiny_models import change_json

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.folder_files import check_description, check_entries

pytestmark = pytest.mark.usefixtures("given_up")


def infer(model, *more):
    """Ask a model for a few tokens."""
    return run("infer", "--model", model, "--instruction", "hi", "--max_new_tokens", 2, *more)


def not_loaded(monkeypatch):
    """Let every loader of transformers and peft fail the test."""
    import peft
    import transformers

    def fail(*_, **__):
        raise AssertionError("it was loaded")

    kinds = [getattr(transformers, name) for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")]
    for kind in (*kinds, peft.PeftModel):
        monkeypatch.setattr(kind, "from_pretrained", fail)


# Keys that name code or files


KERNELS = ("evil/kernel", "evil/kernel:func", "evil/kernel@v1:func", "paged|evil/kernel", "/tmp/kernel", "a b")


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal",
                                  "experts_implementation", "_experts_implementation"])  # fmt: skip
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_kernel_of_a_hub_is_refused_by_its_key(folder, monkeypatch, name, file):
    not_loaded(monkeypatch)
    for kernel in KERNELS:
        for value in (kernel, {"": "sdpa", "text_config": kernel}):
            for changes in ({name: value}, {"text_config": {name: value}}, {"parts": [{"deeper": {name: value}}]}):
                copy = shutil.copytree(folder, folder.with_name("copy"), dirs_exist_ok=True)
                change_json(copy / file, **changes)
                refused(infer(copy), 67, name, "hub", str(copy / file))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_the_folders_own_kernel_is_not_used(folder, key, capsys):
    """A plain name may lead to a hub as well: transformers fetches flash attention where it is not installed."""
    for name in ("flash_attention_2", "eager"):
        change_json(folder / "config.json", **{key: name, "experts_implementation": "deepgemm"})
        model = CausalLM(str(folder)).build()
        assert model.config._attn_implementation not in ("flash_attention_2", "eager")
        assert model.config._experts_implementation != "deepgemm"
        assert capsys.readouterr().out.count(f"note: attention {name} ") == 1
    assert CausalLM(str(folder), attention="eager").build().config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "code.Model"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "evil/repo--code.Config"}}}),
        ("config.json", {"custom_pipelines": {"chat": {"impl": "code.Pipe"}}}),
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}),
        ("config.json", {"transformers_weights": "other.safetensors"}),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}),
        ("config.json", {"backbone": "evil/model"}),
        ("config.json", {"dtype": "load"}),
        ("config.json", {"torch_dtype": "hub"}),
        ("config.json", {"tokenizer_class": "AutoProcessor"}),
        ("tokenizer_config.json", {"tokenizer_class": "AutoTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": "RagTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": "pipeline"}),
        ("tokenizer_config.json", {"auto_map": ["code.Tokenizer", None]}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]}),
        ("tokenizer_config.json", {"gguf_file": "../other.gguf"}),
        ("tokenizer_config.json", {"init_inputs": ["../vocab.json"]}),
        ("special_tokens_map.json", {"tokenizer_file": "/etc/hostname"}),
        ("special_tokens_map.json", {"auto_map": ["code.Tokenizer", None]}),
        ("generation_config.json", {"custom_generate": "evil/generate"}),
        ("generation_config.json", {"auto_map": {"a": "b"}}),
    ],
)
def test_what_names_code_or_other_files_is_refused(folder, monkeypatch, file, changes):
    not_loaded(monkeypatch)
    change_json(folder / file, **changes)
    refused(infer(folder), 67, str(folder / file))
    with pytest.raises(UserError) as raised:
        CausalLM(str(folder)).build()
    assert raised.value.code == ExitCode.MODEL


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_mapping": {"parent_library": "antigravity", "base_model_class": "fly"}},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"custom_module_mapping": {"a": "b"}},
        {"layer_replication": [[0, 100000000]]},
        {"corda_config": {"cache_file": "/tmp/out.pt"}},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "evil/tokenizer"},
        {"peft_type": "XLORA", "adapters": {"a": "evil/adapter"}},
        {"arrow_config": {"task_adapter_names": ["evil/adapter"]}},
        {"auto_map": {"a": "b"}},
    ],
)
def test_what_an_adapter_names_is_refused(adapter, monkeypatch, changes):
    not_loaded(monkeypatch)
    change_json(adapter / "adapter_config.json", **changes)
    refused(infer(adapter), 67, str(adapter / "adapter_config.json"))


def test_a_note_of_transformers_own_class_is_no_matter(adapter):
    parent = {"parent_library": "transformers.models.llama.modeling_llama", "base_model_class": "LlamaForCausalLM"}
    change_json(adapter / "adapter_config.json", auto_mapping=parent, task_type=None, eva_config=None, loftq_config={})
    CausalLM(str(adapter)).build()


@pytest.mark.parametrize("base", ["https://evil.example/model", "http://127.0.0.1:1/a/b", "https://evil", "hf://a/b",
                                  "../../nothing", "/nothing/here", "a/..", "~root/x", "org/name?x",
                                  "a\0b", "/proc/self/fd"])  # fmt: skip
def test_a_base_that_is_no_folder_opens_no_socket(adapter, monkeypatch, base):
    def fail(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", fail)
    change_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    ran = infer(adapter)
    assert ran.code in (66, 67)
    refused(ran, ran.code, "adapter_config.json" if ran.code == 66 else "config.json")


def test_a_hub_model_is_looked_at_like_a_folder(folder, monkeypatch):
    """Its small files are fetched first; here a folder stands for the hub's cache."""
    monkeypatch.setattr("transformers.utils.cached_file", lambda _, filename, **__: str(folder / filename))
    not_loaded(monkeypatch)
    change_json(folder / "config.json", attn_implementation="evil/kernel")
    refused(infer("org/model"), 67, "attn_implementation")


# Pipes, sockets, devices and folders


def special(path, kind):
    """Put something at a path that is no file."""
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "model.safetensors.index.json",
         "generation_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json",
         "merges.txt", "tokenizer.model", "dpo_lightning.json")  # fmt: skip


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device", "a folder"])
def test_no_file_of_a_model_is_waited_for(folder, kind):
    for name in FILES:
        copy = shutil.copytree(folder, folder.with_name("copy"))
        special(copy / name, kind)
        refused(infer(copy), 67, kind, str(copy / name))
        refused(run("export", "--model", copy, "--out", copy.with_name("out")), 67, kind, str(copy / name))
        shutil.rmtree(copy)


def test_a_pipe_among_the_further_templates(folder):
    (folder / "additional_chat_templates").mkdir()
    special(folder / "additional_chat_templates" / "tool_use.jinja", "a pipe")
    refused(infer(folder), 67, "a pipe", "tool_use.jinja")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "dpo_lightning.json",
                                  "tokenizer_config.json", "tokenizer.json"])  # fmt: skip
def test_no_file_of_an_adapter_is_waited_for(adapter, name):
    special(adapter / name, "a pipe")
    refused(infer(adapter), 67, "a pipe", name)


def test_links_to_files_are_followed(folder, tmp_path):
    """As the cache of a hub has them."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert infer(linked).code == 0
    for name in ("chat_template.jinja", "config.json"):
        (linked / name).unlink(missing_ok=True)
        (linked / name).symlink_to(name)
        refused(infer(linked), 67, name, "Too many levels of symbolic links")


def test_files_that_are_far_too_large(folder):
    for name, size in (("config.json", 1 << 36), ("tokenizer.json", 1 << 36), ("generation_config.json", 1 << 30)):
        copy = shutil.copytree(folder, folder.with_name("copy"))
        os.truncate(copy / name, size)  # of holes: it takes no room on the disk
        refused(infer(copy), 67, "MiB", name)
        shutil.rmtree(copy)


@pytest.mark.parametrize("suffix", [".json", ".jinja", ".txt", ".model", ".tiktoken"])
def test_a_file_of_any_kind_that_is_read_has_a_limit(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    for make, said in ((path.mkdir, "a folder"), (path.touch, "a file of more than 512 MiB")):
        make()
        if path.is_file():
            os.truncate(path, (512 << 20) + 1)
        with pytest.raises(UserError, match=f"expected a file of the model, found {said}"):
            check_entries(tmp_path)
        if path.is_dir():
            path.rmdir()


def test_what_lies_in_a_folder_besides(folder):
    """Large weights, folders of other names, links to what was not fetched, and keys that mean something elsewhere."""
    os.truncate(folder / "model.safetensors", 1 << 36)
    (folder / "runs").mkdir()
    (folder / "notes.txt").symlink_to("nothing")
    change_json(folder / "config.json", adapters=["a"], tokenizer_name_or_path="org/name", runtime_config={"a": 1})
    check_description(folder, "config.json")


def test_a_header_that_is_far_too_large(folder):
    file = folder / "model.safetensors"
    file.write_bytes((1 << 34).to_bytes(8, "little"))
    os.truncate(file, 1 << 35)
    refused(infer(folder), 67, str(file))


# Sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 1e300},
        {"text_config": {"num_layers": 10**7}},
        {"num_experts": 10**9},
        {"hidden_size": 10**6},
        {"hidden_size": 10**9},
        {"intermediate_size": 10**9},
        {"vocab_size": 10**11},
        {"num_attention_heads": 10**9},
        {"head_dim": 10**9},
        {"max_position_embeddings": 10**15},
    ],
)
def test_a_model_far_larger_than_its_weights(folder, changes):
    change_json(folder / "config.json", **changes)
    ran = infer(folder)
    if "max_position_embeddings" in changes:  # rotary positions are computed
        assert ran.code == 0
    else:
        refused(ran, 67)


def test_positions_that_are_stored(tiny_gpt2, tmp_path):
    folder = shutil.copytree(tiny_gpt2, tmp_path / "model")
    change_json(folder / "config.json", n_positions=10**10)
    refused(infer(folder, "--template", "raw"), 67, "config.json")


@pytest.mark.parametrize("changes", [{"r": 10**9}, {"rank_pattern": {"q_proj": 10**9}}])
def test_a_rank_far_larger_than_the_weights(adapter, changes):
    change_json(adapter / "adapter_config.json", **changes)
    refused(infer(adapter), 67, "exceeds every stored matrix", "adapter_config.json")


@pytest.mark.parametrize("ids", ["x", [1, "x"], [[1]], {"a": 1}, 1.5, True])
def test_an_end_that_is_no_token(folder, ids):
    change_json(folder / "generation_config.json", eos_token_id=ids)
    refused(infer(folder), 67, "generation_config.json")


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_a_broken_file_is_no_missing_one(folder, name):
    for text in ("{", "[1]"):
        (folder / name).write_text(text)
        refused(infer(folder), 67, "the model file is damaged", str(folder / name))


# Anything else


def test_a_hostile_folder_starts_nothing_and_writes_nothing(folder, tmp_path):
    """As an auditor of the interpreter sees it, in a process of its own."""
    change_json(folder / "config.json", attn_implementation="evil/kernel", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    code = (
        "import sys\n"
        "from dpo_lightning.__main__ import main\n"
        "seen = []\n"
        "def audit(event, args):\n"
        "    written = event == 'open' and set(str(args[1])) & set('wax+') and args[0] != '/dev/null'\n"
        "    started = ('subprocess', 'os.exec', 'os.fork', 'os.system', 'os.posix', 'socket.connect')\n"
        "    if written or event.startswith(started):\n"
        "        seen.append((event, args))\n"
        "sys.addaudithook(audit)\n"
        f"code = main(['infer', '--model', {str(folder)!r}, '--instruction', 'hi'])\n"
        "print(code, seen)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.stdout == "67 []\n", ran
    assert not (tmp_path / "canary").exists()
