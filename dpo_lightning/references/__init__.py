"""The policy that DPO measures against: its own start, in whichever way that is held, or a start that follows it."""

from dpo_lightning.references.adapter_disabled import AdapterDisabled, has_new_adapter, off_start, without_adapter
from dpo_lightning.references.base import KEY, ReferencePolicy, check_same_tokenizer
from dpo_lightning.references.default import default_reference
from dpo_lightning.references.frozen import FrozenAdapter, FrozenCopy
from dpo_lightning.references.precomputed import Precomputed
from dpo_lightning.references.reference_free import ReferenceFree
from dpo_lightning.references.synced import Synced

__all__ = [
    "KEY",
    "AdapterDisabled",
    "FrozenAdapter",
    "FrozenCopy",
    "Precomputed",
    "ReferenceFree",
    "ReferencePolicy",
    "Synced",
    "check_same_tokenizer",
    "default_reference",
    "has_new_adapter",
    "off_start",
    "without_adapter",
]
