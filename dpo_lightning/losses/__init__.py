"""The preference losses, a class per paper; each can be named by `--model.loss`."""

from dpo_lightning.losses.absolute import APODownLoss, APOZeroLoss, BCOPairLoss, CalDPOLoss, NCALoss, SPPOLoss
from dpo_lightning.losses.base import MarginLoss, PairwiseLoss, PreferenceLoss
from dpo_lightning.losses.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from dpo_lightning.losses.dynamic import BetaDPOLoss
from dpo_lightning.losses.hinge import HingeLoss
from dpo_lightning.losses.ipo import IPOLoss
from dpo_lightning.losses.likelihood import SFTLoss
from dpo_lightning.losses.listwise import ListwiseLoss, PlackettLuceLoss
from dpo_lightning.losses.logistic import (
    ChiPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    LNDPOLoss,
    ODPOLoss,
    RDPOLoss,
    RobustLoss,
)
from dpo_lightning.losses.mixture import WeightedSum
from dpo_lightning.losses.reference_free import AlphaPOLoss, CPOLoss, ORPOLoss, SimPOLoss
from dpo_lightning.losses.token_level import LDDPOLoss, TDPO1Loss, TDPO2Loss, WPOLoss
from dpo_lightning.losses.transport import AOTLoss, AOTUnpairedLoss
from dpo_lightning.losses.unpaired import APOZeroUnpairedLoss, BCOLoss, KTOLoss, UnpairedLoss

__all__ = [
    "AOTLoss",
    "AOTUnpairedLoss",
    "APODownLoss",
    "APOZeroLoss",
    "APOZeroUnpairedLoss",
    "AlphaDivergence",
    "AlphaPOLoss",
    "BCOLoss",
    "BCOPairLoss",
    "BetaDPOLoss",
    "CPOLoss",
    "CalDPOLoss",
    "ChiPOLoss",
    "DPOLoss",
    "DPOPLoss",
    "DiscoPOPLoss",
    "Divergence",
    "EXOLoss",
    "ForwardKL",
    "HingeLoss",
    "IPOLoss",
    "JensenShannon",
    "KTOLoss",
    "LDDPOLoss",
    "LNDPOLoss",
    "ListwiseLoss",
    "MarginLoss",
    "NCALoss",
    "ODPOLoss",
    "ORPOLoss",
    "PairwiseLoss",
    "PlackettLuceLoss",
    "PreferenceLoss",
    "RDPOLoss",
    "ReverseKL",
    "RobustLoss",
    "SFTLoss",
    "SPPOLoss",
    "SimPOLoss",
    "TDPO1Loss",
    "TDPO2Loss",
    "UnpairedLoss",
    "WPOLoss",
    "WeightedSum",
]
