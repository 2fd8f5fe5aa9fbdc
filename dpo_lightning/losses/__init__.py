"""The preference losses, a class per paper; each can be named by `--model.loss`."""

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.losses.hinge import HingeLoss
from dpo_lightning.losses.ipo import IPOLoss
from dpo_lightning.losses.logistic import DPOLoss, RobustLoss

__all__ = ["DPOLoss", "HingeLoss", "IPOLoss", "PreferenceLoss", "RobustLoss"]
