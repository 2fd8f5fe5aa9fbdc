"""SFT and preference tuning as LightningModules; the classes load when they are first named."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_lightning.data.datamodule import PreferenceDataModule, SFTDataModule
    from dpo_lightning.data.ranked_datamodule import RankedDataModule
    from dpo_lightning.data.unpaired import UnpairedDataModule
    from dpo_lightning.dpo import DPOModule
    from dpo_lightning.kto import KTOModule
    from dpo_lightning.listwise import ListwiseDPOModule
    from dpo_lightning.sft import SFTModule

__version__ = "0.1.0"
__all__ = [
    "DPOModule",
    "KTOModule",
    "ListwiseDPOModule",
    "PreferenceDataModule",
    "RankedDataModule",
    "SFTDataModule",
    "SFTModule",
    "UnpairedDataModule",
]

_HOME = {
    "DPOModule": "dpo_lightning.dpo",
    "KTOModule": "dpo_lightning.kto",
    "SFTModule": "dpo_lightning.sft",
    "ListwiseDPOModule": "dpo_lightning.listwise",
    "PreferenceDataModule": "dpo_lightning.data.datamodule",
    "RankedDataModule": "dpo_lightning.data.ranked_datamodule",
    "SFTDataModule": "dpo_lightning.data.datamodule",
    "UnpairedDataModule": "dpo_lightning.data.unpaired",
}


def __getattr__(name: str) -> Any:
    """Import a public class on its first use: lightning and transformers take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
