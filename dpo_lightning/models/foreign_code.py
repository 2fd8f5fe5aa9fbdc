"""What the files of a model folder may not name: code, kernels of a hub, and files that lie elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpo_lightning.errors import ExitCode, Problem, UserError


class Rule(NamedTuple):
    """A key that decides what is run or read.

    Attributes:
        names: how the key may be written.
        allowed: whether a value is harmless.
        what: the complaint about any other value.
        fix: what to do instead.
    """

    names: tuple[str, ...]
    allowed: Callable[[Any], bool]
    what: str
    fix: str


DTYPE = re.compile(r"(torch\.)?(auto|half|double|b?float\d\w*|u?int\d+)")
TOKENIZER = re.compile(r"(?!Auto|Rag)\w*Tokenizer(Fast)?|\w*Backend")
"""Names of tokenizer classes. transformers takes that of any class of its own and calls its `from_pretrained`."""

STARTS = re.compile(r"default|gaussian|orthogonal|mica|olora|eva|pissa(_niter_\d+)?")
"""How an adapter may have begun: what is loaded begins so again, before its own weights take that place."""

IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
SPELLINGS = tuple(
    f"{start}{name}{end}" for name in IMPLEMENTATIONS for start, end in (("", ""), ("_", ""), ("_", "_internal"))
)
COPY = "use the folder as `save_pretrained` of transformers writes it"


def unset(value: Any) -> bool:
    """Whether nothing is named."""
    return not value


def names_no_kernel(value: Any) -> bool:
    """Whether an implementation, or a dictionary of one for each part, is one of transformers itself."""
    if isinstance(value, dict):
        return all(map(names_no_kernel, value.values()))
    return value is None or (isinstance(value, str) and re.fullmatch(r"[\w|]*", value) is not None)


def names_dtype(value: Any) -> bool:
    """Whether a value names a type of numbers; any attribute of torch would be taken."""
    if isinstance(value, dict):
        return all(map(names_dtype, value.values()))
    return value is None or (isinstance(value, str) and DTYPE.fullmatch(value) is not None)


def names_tokenizer(value: Any) -> bool:
    """Whether a value can only be the name of a tokenizer class."""
    return value is None or (isinstance(value, str) and TOKENIZER.fullmatch(value) is not None)


def names_transformers(value: Any) -> bool:
    """Whether peft's note of the base's class names a class of transformers."""
    parent = value.get("parent_library") if isinstance(value, dict) else None
    return parent is None or str(parent).partition(".")[0] == "transformers"


def is_known_start(value: Any) -> bool:
    """Whether an adapter began without data, code or files of its own; what is no text is left to peft."""
    return not isinstance(value, str) or STARTS.fullmatch(value) is not None


ANYWHERE = (
    Rule(
        ("auto_map", "custom_pipelines", "custom_generate"),
        unset,
        "the model brings code of its own (`{}`), which is never run",
        "use a model whose architecture transformers knows",
    ),
    Rule(
        SPELLINGS,
        names_no_kernel,
        "`{}` names a kernel of a hub, which is never loaded",
        "remove the key; --model.policy.attention chooses the kernel",
    ),
    Rule(
        ("quantization_config",),
        lambda value: value is None,
        "the weights are stored quantized: what is trained on them fits no other",
        "give the whole weights; --model.policy.quantization.bits 4 quantizes them while they are loaded",
    ),
    Rule(
        ("configuration_files", "fast_tokenizer_files", "transformers_weights", "gguf_file", "backbone", "init_inputs"),
        unset,
        "`{}` has something else read in place of the folder's own files",
        f"remove the key, or {COPY}",
    ),
    Rule(("dtype", "torch_dtype"), names_dtype, "`{}` is no type of numbers", "write float32, bfloat16 or float16"),
    Rule(("tokenizer_class",), names_tokenizer, "`{}` is no class of a tokenizer", COPY),
)
"""Keys of any JSON file of a model, however deep."""

OF_ADAPTERS = (
    Rule(("auto_mapping",), names_transformers, "`{}` names code outside of transformers", "remove the key"),
    Rule(
        ("init_lora_weights",),
        is_known_start,
        "`{}` needs data or files that are not in the folder",
        "set it to true: the adapter's own weights are loaded anyway, if the base is as it was",
    ),
    Rule(
        (
            *("megatron_config", "layer_replication", "corda_config", "lora_ga_config", "arrow_config", "use_bdlora"),
            *("alora_invocation_tokens", "velora_config", "monteclora_config", "kasa_config", "runtime_config"),
            *("custom_module_mapping", "_custom_modules", "adapters", "tokenizer_name_or_path", "tokenizer_kwargs"),
            "prompt_tuning_init_state_dict_path",
        ),
        unset,
        "`{}` makes another model of the base, or reads and runs what is not in the folder",
        "give an adapter without it",
    ),
)
"""Keys of an adapter's configuration."""

READ_BESIDE = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json")
"""JSON files that transformers reads beside a model's or an adapter's configuration, where they are there."""


COUNTS = re.compile(r"(\w*_)?(layers?|experts?)")
MOST = 4096
"""Layers and experts that a model may have: each is built by itself, before its size is known."""


def refuse(content: Any, rules: tuple[Rule, ...], where: Path) -> None:
    """Check every key of a file, however deep.

    Raises:
        UserError: one names code or other files, or more layers or experts than are built.
    """
    for key, value in entries(content):
        if COUNTS.fullmatch(key) and isinstance(value, (int, float)) and value > MOST:
            fix = "use a folder whose config.json belongs to its weights (copy it again)"
            raise UserError(ExitCode.MODEL, Problem(f"{key} is more than {MOST}", str(where), str(value)), fix=fix)
        for rule in rules:
            if key in rule.names and not rule.allowed(value):
                raise UserError(ExitCode.MODEL, Problem(rule.what.format(key), str(where), str(value)), fix=rule.fix)


def refuse_other_keys(content: dict[str, Any], where: Path) -> None:
    """A map of special tokens is merged into the tokenizer's arguments, whatever they are: only tokens may be in it.

    Raises:
        UserError: something else is.
    """
    strange = sorted(key for key in content if not key.endswith(("_token", "_tokens")))
    if strange:
        raise UserError(
            ExitCode.MODEL,
            Problem("this is no special token", str(where), strange[0]),
            fix=f"remove the key, or {COPY}",
        )


def entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested JSON with its value."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
