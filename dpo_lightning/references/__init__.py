"""The policy that DPO measures against: its own start, in whichever way that is held, or a start that follows it."""

from dpo_lightning.references.base import KEY, ReferencePolicy, check_same_tokenizer
from dpo_lightning.references.choice import default_reference
from dpo_lightning.references.disabled import AdapterDisabled, has_new_adapter, off_start, without_adapter
from dpo_lightning.references.free import ReferenceFree
from dpo_lightning.references.frozen import FrozenAdapter, FrozenCopy
from dpo_lightning.references.synced import Synced

__all__ = [
    "KEY",
    "AdapterDisabled",
    "FrozenAdapter",
    "FrozenCopy",
    "ReferenceFree",
    "ReferencePolicy",
    "Synced",
    "check_same_tokenizer",
    "default_reference",
    "has_new_adapter",
    "off_start",
    "without_adapter",
]
