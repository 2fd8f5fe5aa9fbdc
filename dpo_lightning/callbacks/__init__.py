"""What watches a run: measures, the self-check, samples, the final model and the summary."""

from importlib import import_module
from typing import Any

_HOME = {
    "FinalModel": "final_model",
    "PredictionWriter": "predictions",
    "PreferenceAccuracy": "pairwise",
    "RankedRewards": "ranked",
    "RewardMargins": "pairwise",
    "RouterBalance": "router",
    "Samples": "samples",
    "SelfCheck": "self_check",
    "TokenLoss": "token_loss",
    "UnpairedRewards": "unpaired",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a callback on its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
