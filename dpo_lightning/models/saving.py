"""How a model, or its trained adapter, is saved in the Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_lightning.activity import activity
from dpo_lightning.log import logger
from dpo_lightning.models.folder_checks import weights_digest
from dpo_lightning.models.folder_files import ADAPTER_CONFIG, read_json
from dpo_lightning.models.lora import INITIAL_ADAPTERS, ORIGIN_FILE, TRAINED
from dpo_lightning.models.transformers4 import add_older_names


@activity("writing the model")
def save_model(
    model: Any, tokenizer: Any, folder: Path, base_path: str, state: dict[str, Tensor] | None = None
) -> None:
    """Write a model, or its trained adapter, in the Hugging Face layout with tokenizer and chat template.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: to write into.
        base_path: the path of the whole model, if this one has an adapter.
        state: its weights, where the model itself does not hold them whole.
    """
    if hasattr(model, "peft_config"):
        save_adapter(model, folder, base_path, state)
    else:
        model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    add_older_names(folder, tokenizer)


def save_adapter(model: Any, folder: Path, base_path: str, state: dict[str, Tensor] | None = None) -> None:
    """Write an adapter so that it fits the base as it is on disk, whatever its initialization.

    Args:
        model: the model with the adapter.
        folder: to write into.
        base_path: the path of the base.
        state: the trained weights, where the model itself does not hold them whole.
    """
    base = Path(base_path)
    model.peft_config[TRAINED].base_model_name_or_path = str(base.resolve()) if base.is_dir() else base_path
    start = INITIAL_ADAPTERS.get(model)
    if start is not None:
        state = restore_start(model.state_dict() if state is None else state, start)
    model.save_pretrained(folder, safe_serialization=True, selected_adapters=[TRAINED], state_dict=state)
    if start is not None:
        config_file = folder / ADAPTER_CONFIG
        config = read_json(config_file)
        scale = 2**0.5 if config["use_rslora"] else 2  # the rank is doubled, the factor of the update stays
        config |= {"r": 2 * config["r"], "lora_alpha": scale * config["lora_alpha"], "init_lora_weights": True}
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        logger.info(
            f"adapter: saved with rank {config['r']}, which includes the part that was subtracted from the base"
        )
    if base.is_dir():
        (folder / ORIGIN_FILE).write_text(json.dumps({"base_digest": weights_digest(base)}) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card


def restore_start(state: dict[str, Any], start: dict[str, Tensor]) -> dict[str, Any]:
    """Return adapter weights for the unchanged base, given those for a base without the initial adapter.

    `W - s B0 A0 + s B A = W + s [B | -B0] [A ; A0]`; magnitudes (DoRA) and whole modules stay as they are.
    """
    converted = dict(state)
    for name, first in start.items():
        first = first.to(state[name])
        if ".lora_A." in name:
            converted[name] = torch.cat([state[name], first], dim=0)
        elif ".lora_B." in name:
            converted[name] = torch.cat([state[name], -first], dim=1)
    return converted
