"""Reference policies (`--model.reference`): frozen, adapter disabled, precomputed, synced, or none."""

from dpo_lightning.references.adapter_disabled import (
    AdapterDisabled,
    distance_from_start,
    has_new_adapter,
    without_adapter,
)
from dpo_lightning.references.base import REFERENCE_KEY, ReferencePolicy, check_same_tokenizer
from dpo_lightning.references.default import default_reference
from dpo_lightning.references.frozen import FrozenAdapter, FrozenCopy
from dpo_lightning.references.precomputed import Precomputed
from dpo_lightning.references.reference_free import ReferenceFree
from dpo_lightning.references.synced import Synced

__all__ = [
    "REFERENCE_KEY",
    "AdapterDisabled",
    "FrozenAdapter",
    "FrozenCopy",
    "Precomputed",
    "ReferenceFree",
    "ReferencePolicy",
    "Synced",
    "check_same_tokenizer",
    "default_reference",
    "distance_from_start",
    "has_new_adapter",
    "without_adapter",
]
