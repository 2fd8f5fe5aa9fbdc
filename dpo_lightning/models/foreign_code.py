"""What the files of a model folder may not name: code, kernels of a hub, and files outside of the folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpo_lightning.errors import ExitCode, Problem, UserError


class Rule(NamedTuple):
    """A key that decides which code is run or which file is read.

    Attributes:
        names: spellings of the key.
        allowed: returns whether a value is harmless.
        what: the complaint about any other value; `{}` is replaced by the key.
        fix: what to do instead.
    """

    names: tuple[str, ...]
    allowed: Callable[[Any], bool]
    what: str
    fix: str


DTYPE = re.compile(r"(torch\.)?(auto|half|double|b?float\d\w*|u?int\d+)")
TOKENIZER = re.compile(r"(?!Auto|Rag)\w*Tokenizer(Fast)?|\w*Backend")
"""Names of tokenizer classes. transformers would call `from_pretrained` of any class of its own that is named."""

ADAPTER_INITIALIZATIONS = re.compile(r"default|gaussian|orthogonal|mica|olora|eva|pissa(_niter_\d+)?")
"""Initializations of adapters that need nothing but the base. peft repeats the initialization before it loads the
adapter's weights.
"""

IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
SPELLINGS = tuple(
    f"{start}{name}{end}" for name in IMPLEMENTATIONS for start, end in (("", ""), ("_", ""), ("_", "_internal"))
)
COPY = "use the folder as `save_pretrained` of transformers writes it"


def unset(value: Any) -> bool:
    """Whether a value is null, false or empty."""
    return not value


def names_no_kernel(value: Any) -> bool:
    """Whether a value names an implementation within transformers, itself or for each part of the model."""
    if isinstance(value, dict):
        return all(map(names_no_kernel, value.values()))
    return value is None or (isinstance(value, str) and re.fullmatch(r"[\w|]*", value) is not None)


def names_dtype(value: Any) -> bool:
    """Whether a value names a data type; transformers would accept any attribute of torch."""
    if isinstance(value, dict):
        return all(map(names_dtype, value.values()))
    return value is None or (isinstance(value, str) and DTYPE.fullmatch(value) is not None)


def names_tokenizer(value: Any) -> bool:
    """Whether a value can only be the name of a tokenizer class."""
    return value is None or (isinstance(value, str) and TOKENIZER.fullmatch(value) is not None)


def names_transformers(value: Any) -> bool:
    """Whether peft's record of the base's class names a class of transformers."""
    parent = value.get("parent_library") if isinstance(value, dict) else None
    return parent is None or str(parent).partition(".")[0] == "transformers"


def is_known_start(value: Any) -> bool:
    """Whether an adapter's initialization needs no data, code or files; peft checks values that are no string."""
    return not isinstance(value, str) or ADAPTER_INITIALIZATIONS.fullmatch(value) is not None


ANYWHERE = (
    Rule(
        ("auto_map", "custom_pipelines", "custom_generate"),
        unset,
        "the model needs code of its own (`{}`), which is never run",
        "use a model whose architecture transformers knows",
    ),
    Rule(
        SPELLINGS,
        names_no_kernel,
        "`{}` names a kernel from a hub, which is never loaded",
        "remove the key; --model.policy.attention sets the implementation",
    ),
    Rule(
        ("quantization_config",),
        lambda value: value is None,
        "the weights are stored quantized",
        "use the unquantized model; --model.policy.quantization.bits 4 quantizes it on loading",
    ),
    Rule(
        ("configuration_files", "fast_tokenizer_files", "transformers_weights", "gguf_file", "backbone", "init_inputs"),
        unset,
        "`{}` replaces the folder's own files by others",
        f"remove the key, or {COPY}",
    ),
    Rule(("dtype", "torch_dtype"), names_dtype, "`{}` is not a data type", "write float32, bfloat16 or float16"),
    Rule(("tokenizer_class",), names_tokenizer, "`{}` is not a tokenizer class", COPY),
)
"""Rules for the keys of any JSON file of a model, at any depth."""

OF_ADAPTERS = (
    Rule(("auto_mapping",), names_transformers, "`{}` names code outside of transformers", "remove the key"),
    Rule(
        ("init_lora_weights",),
        is_known_start,
        "`{}` needs data or files that are not in the folder",
        "set it to true if the base is unchanged: the adapter's own weights are loaded anyway",
    ),
    Rule(
        (
            *("megatron_config", "layer_replication", "corda_config", "lora_ga_config", "arrow_config", "use_bdlora"),
            *("alora_invocation_tokens", "velora_config", "monteclora_config", "kasa_config", "runtime_config"),
            *("custom_module_mapping", "_custom_modules", "adapters", "tokenizer_name_or_path", "tokenizer_kwargs"),
            "prompt_tuning_init_state_dict_path",
        ),
        unset,
        "`{}` changes the base model, or uses files or code that are not in the folder",
        "use an adapter without it",
    ),
)
"""Rules for the keys of an adapter's configuration."""

READ_BESIDE = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json")
"""JSON files that transformers reads next to the configuration of a model or an adapter, if they exist."""


COUNT_KEYS = re.compile(r"(\w*_)?(layers?|experts?)")
MAX_COUNT = 4096
"""Layers and experts that a model may have: each is built by itself before the model's size is known."""

ABOVE_0 = {"hidden_size", "n_embd", "vocab_size", "max_position_embeddings", "n_positions"}
"""Sizes that every model has."""


def check_rules(content: Any, rules: tuple[Rule, ...], where: Path) -> None:
    """Check every key of a JSON file, at any depth.

    Args:
        content: of the file.
        rules: what keys may hold.
        where: the file, for the message.

    Raises:
        UserError: a key names code or other files, too many layers or experts, or a size that is not above 0.
    """
    for key, value in entries(content):
        if COUNT_KEYS.fullmatch(key) and isinstance(value, (int, float)) and value > MAX_COUNT:
            fix = "use a folder whose config.json matches its weights (copy it again)"
            raise UserError(ExitCode.MODEL, Problem(f"{key} is more than {MAX_COUNT}", str(where), str(value)), fix=fix)
        if key in ABOVE_0 and isinstance(value, (int, float)) and not value > 0:
            fix = "use a folder whose config.json matches its weights (copy it again)"
            raise UserError(ExitCode.MODEL, Problem(f"{key} is not above 0", str(where), str(value)), fix=fix)
        for rule in rules:
            if key in rule.names and not rule.allowed(value):
                raise UserError(ExitCode.MODEL, Problem(rule.what.format(key), str(where), str(value)), fix=rule.fix)


def check_special_tokens(content: dict[str, Any], where: Path) -> None:
    """Refuse keys of a special tokens map that are no tokens: transformers passes all of them to the tokenizer's class.

    Raises:
        UserError: there is such a key.
    """
    others = sorted(key for key in content if not key.endswith(("_token", "_tokens")))
    if others:
        raise UserError(
            ExitCode.MODEL,
            Problem("this key is not a special token", str(where), others[0]),
            fix=f"remove the key, or {COPY}",
        )


def entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over every key of nested JSON and its value."""
    # A stack instead of recursion, as hostile files may be nested deeply.
    stack = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield from value.items()
            stack += value.values()
        elif isinstance(value, list):
            stack += value
