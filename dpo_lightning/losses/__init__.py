"""The preference losses, a file for each; `--model.loss` takes the name of a class."""

from dpo_lightning.losses.alphapo import AlphaPOLoss
from dpo_lightning.losses.aot import AOTLoss, AOTUnpairedLoss
from dpo_lightning.losses.apo import APODownLoss, APOZeroLoss, APOZeroUnpairedLoss
from dpo_lightning.losses.base import (
    ClassWeightedLoss,
    ListwiseLoss,
    MarginLoss,
    PairwiseLoss,
    PolicyLoss,
    PreferenceLoss,
    ReferenceFreeLoss,
    UnpairedLoss,
)
from dpo_lightning.losses.bco import BCOLoss, BCOPairLoss
from dpo_lightning.losses.beta_dpo import BetaDPOLoss
from dpo_lightning.losses.cal_dpo import CalDPOLoss
from dpo_lightning.losses.chipo import ChiPOLoss
from dpo_lightning.losses.cpo import CPOLoss
from dpo_lightning.losses.discopop import DiscoPOPLoss
from dpo_lightning.losses.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from dpo_lightning.losses.dpo import DPOLoss
from dpo_lightning.losses.dpop import DPOPLoss
from dpo_lightning.losses.exo import EXOLoss
from dpo_lightning.losses.hinge import HingeLoss
from dpo_lightning.losses.ipo import IPOLoss
from dpo_lightning.losses.kto import KTOLoss
from dpo_lightning.losses.ld_dpo import LDDPOLoss
from dpo_lightning.losses.ln_dpo import LNDPOLoss
from dpo_lightning.losses.nca import NCALoss
from dpo_lightning.losses.odpo import ODPOLoss
from dpo_lightning.losses.orpo import ORPOLoss
from dpo_lightning.losses.plackett_luce import PlackettLuceLoss
from dpo_lightning.losses.rdpo import RDPOLoss
from dpo_lightning.losses.robust import RobustLoss
from dpo_lightning.losses.sft import SFTLoss
from dpo_lightning.losses.simpo import SimPOLoss
from dpo_lightning.losses.sppo import SPPOLoss
from dpo_lightning.losses.tdpo import TDPO1Loss, TDPO2Loss
from dpo_lightning.losses.weighted_sum import WeightedSum
from dpo_lightning.losses.wpo import WPOLoss

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
    "ClassWeightedLoss",
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
    "PolicyLoss",
    "PreferenceLoss",
    "RDPOLoss",
    "ReferenceFreeLoss",
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
