"""Callbacks of a run: measures, the self-check, samples, the final model and the summary."""

from importlib import import_module
from typing import Any

_HOME = {
    "FinalModel": "dpo_lightning.callbacks.final_model",
    "MonitorCheck": "dpo_lightning.callbacks.monitor_check",
    "NonFinite": "dpo_lightning.callbacks.non_finite",
    "OptimizerLog": "dpo_lightning.callbacks.optimizer_log",
    "PredictionWriter": "dpo_lightning.callbacks.prediction_writer",
    "PreferenceAccuracy": "dpo_lightning.callbacks.preference_accuracy",
    "ProgressLog": "dpo_lightning.callbacks.progress_log",
    "RankedRewards": "dpo_lightning.callbacks.ranked_rewards",
    "RewardMargins": "dpo_lightning.callbacks.reward_margins",
    "RoundedUpdates": "dpo_lightning.callbacks.rounded_updates",
    "RouterBalance": "dpo_lightning.callbacks.router_balance",
    "Samples": "dpo_lightning.callbacks.samples",
    "RunCheckpoints": "dpo_lightning.callbacks.run_checkpoints",
    "SelfCheck": "dpo_lightning.callbacks.self_check",
    "StepBar": "dpo_lightning.callbacks.step_bar",
    "TokenLoss": "dpo_lightning.callbacks.token_loss",
    "UnpairedRewards": "dpo_lightning.callbacks.unpaired_rewards",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a callback on its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
