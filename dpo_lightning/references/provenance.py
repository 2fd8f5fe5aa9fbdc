"""`Provenance`: digests of everything that determines reference log-probabilities, apart from the rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.errors import Problem
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.folder_checks import check_folder, missing_weights_error
from dpo_lightning.models.folder_files import ADAPTER_CONFIG, read_json

DIGEST_CHARS = 16
"""Hexadecimal characters of a digest in messages, model cards and file names."""

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
"""Keys of model and adapter configurations that change no log-probability; the dtype is recorded separately."""


@dataclass(frozen=True)
class Provenance:
    """What log-probabilities were computed with, apart from the rows and their order."""

    weights: str
    """Digest of every value of the base model; for a model of a hub, its commit."""

    architecture: str
    """Digest of the model's configuration."""

    adapter: str
    """Digest of the adapter's values and configuration, or `none`."""

    tokenizer: str
    """Digest of the vocabulary and the special tokens."""

    template: str
    """Digest of the chat template and of how it is applied; followed by the date if the template writes one."""

    truncation: str
    """`max_length`, and the policy for rows that are longer."""

    special_tokens: str
    """The policy for control tokens within a text (`--data.special_tokens`)."""

    dtype: str
    """Data type of the stored weights."""

    precision: str
    """Precision of the computation, as in `--trainer.precision`."""

    quantization: str
    """How the base's weights are quantized, or `none`."""

    @classmethod
    def of(cls, model: CausalLM, tokenizer: Any, data: Any, precision: str) -> Provenance:
        """Compute the digests of a run. No model is built.

        Args:
            model: the reference; its files are read.
            tokenizer: the policy's, with the chat template in use.
            data: the run's data module.
            precision: as in `--trainer.precision`.

        Raises:
            UserError: the model's folder is missing or incomplete.
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
        """Return one digest of all fields."""
        return digest_of(asdict(self))

    def model_digest(self) -> str:
        """Return one digest of the model and its adapter, whatever the precision and the data."""
        return digest_of([self.weights, self.architecture, self.adapter])

    def differences(self, stored: Provenance, where: str) -> Iterator[Problem]:
        """Iterate over the fields in which a stored file and this run differ, as problems."""
        for field in fields(self):
            old, new = (getattr(one, field.name) for one in (stored, self))
            if old != new:
                yield Problem(
                    f"{field.name}: the file has {shorten_digest(old)}, this run has {shorten_digest(new)}", where
                )


def model_digests(model: CausalLM) -> dict[str, str]:
    """Return digests of the model that `model` loads, without a new adapter, by field name."""
    path, adapter = model.base_path(), model.adapter_folder()
    folder = check_folder(path)
    if folder is None:  # a hub's commit identifies every file of the model
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
            raise missing_weights_error(adapter, values.name)
        trained = digest_of([values_digest([values]), config_digest(adapter / ADAPTER_CONFIG)])
    return found | {"adapter": trained}


def values_digest(files: Iterable[Path]) -> str:
    """Return a digest of all names and values of safetensors files, however the tensors are sharded."""
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
    """Return a digest of the keys of a configuration file that affect the computation."""
    config: Mapping[str, Any] = read_json(path)
    return digest_of({name: value for name, value in config.items() if name not in NOT_COMPUTED_WITH})


def shorten_digest(value: str) -> str:
    """Return the first characters of a digest and what follows it; a text that is no digest unchanged."""
    return f"{value[:DIGEST_CHARS]}…{value[64:]}" if re.match("[0-9a-f]{64}", value) else value
