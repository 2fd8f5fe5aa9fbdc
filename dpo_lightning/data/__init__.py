"""The data modules (`--data`): read rows of files as examples, encode them as token ids, and collate batches."""

from importlib import import_module
from typing import Any

_HOME = {
    "Collator": "dpo_lightning.data.collate",
    "Packed": "dpo_lightning.data.collate",
    "PackedSharedPrefix": "dpo_lightning.data.collate",
    "Padded": "dpo_lightning.data.collate",
    "PreferenceDataModule": "dpo_lightning.data.datamodules",
    "RankedDataModule": "dpo_lightning.data.datamodules",
    "SFTDataModule": "dpo_lightning.data.datamodules",
    "SharedPrefix": "dpo_lightning.data.collate",
    "UnpairedDataModule": "dpo_lightning.data.datamodules",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a class on its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
