"""Folders from elsewhere: nothing in them is run, fetched or waited for; the error names the file."""

import shutil
import socket
import subprocess
import sys

import pytest
from support.command_line import infer, refused
from support.tiny_models import change_json

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import CausalLM

pytestmark = pytest.mark.usefixtures("given_up")


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
    named = base if base.startswith("/proc") else "config.json"
    refused(ran, ran.code, "adapter_config.json" if ran.code == 66 else named)


def test_a_hub_model_is_looked_at_like_a_folder(folder, monkeypatch):
    """Its small files are fetched first; here a folder stands for the hub's cache."""
    monkeypatch.setattr("transformers.utils.cached_file", lambda _, filename, **__: str(folder / filename))
    not_loaded(monkeypatch)
    change_json(folder / "config.json", attn_implementation="evil/kernel")
    refused(infer("org/model"), 67, "attn_implementation")


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
