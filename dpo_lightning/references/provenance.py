"""What reference log-probabilities were computed with: a digest of every part that moves them, but the rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dpo_lightning.errors import Problem
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.folder import check_folder, no_weights
from dpo_lightning.models.folder_files import read_json

SHOWN = 16
"""Characters of a digest that are shown, and of which a file's name is made."""

NOT_COMPUTED_WITH = (
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
)
"""Entries of model and adapter configurations that move no log-probability; the dtype stands by itself."""


@dataclass(frozen=True)
class Provenance:
    """What log-probabilities were computed with: all that moves them, but the rows and their order."""

    weights: str
    """Digest of every value of the whole model; the commit of a model that comes from a hub."""

    architecture: str
    """Digest of the model's configuration."""

    adapter: str
    """Digest of the adapter's values and configuration, or `none`."""

    tokenizer: str
    """Digest of vocabulary and special tokens."""

    template: str
    """Digest of the chat template, and of how it is used; the date, where it writes one."""

    truncation: str
    """`max_length`, and what happens beyond it."""

    special_tokens: str
    """What happens to control tokens inside a text."""

    dtype: str
    """Precision of the stored weights."""

    precision: str
    """Precision that they compute in, as `--trainer.precision` has it."""

    quantization: str
    """How the base's weights are quantized, or `none`."""

    @classmethod
    def of(cls, model: CausalLM, tokenizer: Any, data: Any, precision: str) -> Provenance:
        """Look at a run.

        Args:
            model: the reference; its folder is read, no model is built.
            tokenizer: the policy's, with the chat template that is used.
            data: the `PreferenceDataModule`.
            precision: as `--trainer.precision` has it.

        Raises:
            UserError: the model's folder is missing or not whole.
        """
        day = data.template_date.written
        special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
        return cls(
            **model_digests(model),
            tokenizer=digest_of([sorted(tokenizer.get_vocab().items()), special]),
            template=digest_of([data.template, tokenizer.chat_template]) + (f" of {day}" if day else ""),
            truncation=f"max_length {data.max_length}, overlong {data.overlong}",
            special_tokens=data.special_tokens,
            dtype=model.dtype,
            precision=precision,
            quantization=str(model.under(precision).quantization or "none"),
        )

    def digest(self) -> str:
        """One digest of all."""
        return digest_of(asdict(self))

    def model_digest(self) -> str:
        """One digest of the model, however it is run."""
        return digest_of([self.weights, self.architecture, self.adapter])

    def differences(self, stored: Provenance, where: str) -> Iterator[Problem]:
        """What a file was computed with and this run does not have."""
        for field in fields(self):
            old, new = (getattr(one, field.name) for one in (stored, self))
            if old != new:
                yield Problem(f"{field.name}: the file has {shown(old)}, this run has {shown(new)}", where)


def model_digests(model: CausalLM) -> dict[str, str]:
    """Digests of the model that a builder names, below a new adapter where it makes one."""
    path, adapter = model.base_path(), model.adapter_folder()
    folder = check_folder(path)
    if folder is None:  # a hub's commit stands for every file of the model
        commit = f"{path}@{getattr(model.config(), '_commit_hash', None)}"
        found = {"weights": commit, "architecture": commit}
    else:
        found = {
            "weights": values_digest(sorted(folder.glob("model*.safetensors"))),
            "architecture": config_digest(folder / "config.json"),
        }
    trained = "none"
    if adapter is not None:
        values = adapter / "adapter_model.safetensors"
        if not values.is_file():
            raise no_weights(adapter, values.name)
        trained = digest_of([values_digest([values]), config_digest(adapter / "adapter_config.json")])
    return found | {"adapter": trained}


def values_digest(files: Iterable[Path]) -> str:
    """A digest of names and of every value of safetensors files, however the tensors are spread over them."""
    digests = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no dictionary
                value = file.get_tensor(name)
                digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
                digests[name] = digest.hexdigest()
    return digest_of(digests)


def config_digest(path: Path) -> str:
    """A digest of what a configuration file says about the computation."""
    config: Mapping[str, Any] = read_json(path)
    return digest_of({name: value for name, value in config.items() if name not in NOT_COMPUTED_WITH})


def digest_of(content: object) -> str:
    """A digest of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def shown(value: str) -> str:
    """A digest in short, with what follows it; a text whole."""
    return f"{value[:SHOWN]}…{value[64:]}" if re.match("[0-9a-f]{64}", value) else value
