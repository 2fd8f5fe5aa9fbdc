"""Regular expressions of adapters and tokenizers: those that do not come to an end are refused by their file."""

import json

import pytest
from support.command_line import refused, run

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models import patterns
from dpo_lightning.models.causal_lm import CausalLM, Lora

ENDLESS = (r"([\w.]+)+!", "(.*)*!", r"(\w|\w\w|\.)+!", r"(.?){40}!", r"((.+)+)+!")
USED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"(?=(\d{3})+(?!\d))",
    r"(?:\p{L}\p{M}*)+",
    r"\s+",
    r" {2,}",
)
"""Expressions of tokenizers that are in use."""


@pytest.fixture(autouse=True)
def shorter(monkeypatch):
    """Limits that are reached sooner."""
    monkeypatch.setattr(patterns, "MATCHING_SECONDS", 0.5)
    monkeypatch.setattr(patterns, "PROBE_SECONDS", 2.0)


def change_json(path, change):
    """Change the content of a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def infer(model):
    """Ask a model for a few tokens."""
    return run("infer", "--model", model, "--instruction", "hi there", "--max_new_tokens", 2)


@pytest.mark.parametrize("pattern", ENDLESS)
@pytest.mark.parametrize(
    ("key", "of"),
    [
        ("target_modules", lambda p: p),
        ("exclude_modules", lambda p: p),
        ("modules_to_save", lambda p: [p]),
        ("layers_pattern", lambda p: p),
        ("layers_pattern", lambda p: ["layers", p]),
        ("rank_pattern", lambda p: {p: 4}),
        ("alpha_pattern", lambda p: {"q_proj": 4, p: 4}),
    ],
)
def test_an_expression_of_an_adapter(adapter, key, of, pattern):
    changes = {key: of(pattern)} | ({"layers_to_transform": [0]} if key == "layers_pattern" else {})
    change_json(adapter / "adapter_config.json", lambda config: config.update(changes))
    refused(infer(adapter), 67, key, "takes too long", str(adapter / "adapter_config.json"))


def test_a_list_of_names_without_bound(adapter):
    names = [f"name{i}" for i in range(300_000)]
    change_json(adapter / "adapter_config.json", lambda config: config.update(target_modules=[*names, "q_proj"]))
    refused(infer(adapter), 67, "target_modules")


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 5000 + ")" * 5000])
def test_an_expression_that_cannot_be_compiled(pattern):
    with pytest.raises(UserError, match="target_modules takes too long"):
        patterns.check_module_patterns({"target_modules": pattern}, ["name"], ExitCode.MODEL, "file")


def test_an_expression_that_takes_all_memory(monkeypatch):
    def module_patterns(_):
        yield "rank_pattern", "a"
        raise MemoryError

    monkeypatch.setattr(patterns, "module_patterns", module_patterns)
    with pytest.raises(UserError, match="rank_pattern takes too long"):
        patterns.check_module_patterns({}, ["name"], ExitCode.MODEL, "file")


def test_a_faulty_expression_is_left_to_peft():
    patterns.check_module_patterns({"target_modules": "(", "rank_pattern": [1]}, ["name"], ExitCode.MODEL, "file")


def test_an_expression_of_a_new_adapter(tiny_llama):
    with pytest.raises(UserError, match="target_modules takes too long") as raised:
        CausalLM(str(tiny_llama), lora=Lora(r=2, target_modules=ENDLESS[0])).build()
    assert raised.value.code == ExitCode.CONFIG


def test_expressions_in_use_find_what_they_found(tiny_llama):
    lora = Lora(r=2, target_modules=r".*layers\.(0|1)\.self_attn\.(q|k|v)_proj")
    names = [
        name for name, _ in CausalLM(str(tiny_llama), lora=lora).build().named_modules() if "lora_A.default" in name
    ]
    assert len(names) == 6


def splitting(pattern):
    """A change of a tokenizer's file: it splits by this expression first."""

    def change(content):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}

    return change


def replacing(pattern):
    """A change of a tokenizer's file: it replaces this expression."""

    def change(content):
        replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"}
        content["normalizer"] = {"type": "Sequence", "normalizers": [replace]}

    return change


@pytest.mark.parametrize("pattern", [*ENDLESS[:3], "((.+)+)+!", "(a+)+$", "(q+)+Q", r"(\p{L}+)+\d{9}", "(한+)+$"])
@pytest.mark.parametrize("place", [splitting, replacing])
def test_an_expression_of_a_tokenizer(folder, capfd, place, pattern):
    change_json(folder / "tokenizer.json", place(pattern))
    refused(infer(folder), 67, "takes too long", str(folder / "tokenizer.json"))
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("pattern", USED)
def test_expressions_in_use_come_to_an_end(pattern):
    assert patterns.terminates(pattern)


def test_what_only_a_text_of_its_own_kind_meets(folder):
    """The tokenizer's own limit ends it: a panic, which is no Exception in Python."""
    change_json(folder / "tokenizer.json", splitting("([xyz][xyz]?)+[0-8]{3}"))
    text = "xyzzy" * 12
    refused(run("infer", "--model", folder, "--instruction", text, "--max_new_tokens", 2), 67, "tokenizer", str(folder))


def test_replacements_that_grow(folder):
    doubled = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    change_json(
        folder / "tokenizer.json",
        lambda content: content.update(normalizer={"type": "Sequence", "normalizers": [doubled] * 40}),
    )
    refused(infer(folder), 67, "too long by its replacements", str(folder / "tokenizer.json"))
