"""SFT and preference tuning as LightningModules; the classes load when they are first named."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dpo_lightning.version import __version__

if TYPE_CHECKING:
    from dpo_lightning.data.datamodules import PreferenceDataModule, RankedDataModule, SFTDataModule, UnpairedDataModule
    from dpo_lightning.dpo import DPOModule
    from dpo_lightning.kto import KTOModule
    from dpo_lightning.listwise import ListwiseDPOModule
    from dpo_lightning.sft import SFTModule

__all__ = [
    "DPOModule",
    "KTOModule",
    "ListwiseDPOModule",
    "PreferenceDataModule",
    "RankedDataModule",
    "SFTDataModule",
    "SFTModule",
    "UnpairedDataModule",
    "__version__",
]

_HOME = {
    "DPOModule": "dpo_lightning.dpo",
    "KTOModule": "dpo_lightning.kto",
    "SFTModule": "dpo_lightning.sft",
    "ListwiseDPOModule": "dpo_lightning.listwise",
    "PreferenceDataModule": "dpo_lightning.data.datamodules",
    "RankedDataModule": "dpo_lightning.data.datamodules",
    "SFTDataModule": "dpo_lightning.data.datamodules",
    "UnpairedDataModule": "dpo_lightning.data.datamodules",
}


def __getattr__(name: str) -> Any:
    """Import a public class on its first use: lightning and transformers take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
