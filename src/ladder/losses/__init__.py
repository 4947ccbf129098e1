"""The losses, which implement `ladder.contract.training.Loss`. Each is a frozen dataclass that is its own configuration
and never reduces."""

from ladder.losses.bradley_terry import BradleyTerry
from ladder.losses.cispo import CISPO
from ladder.losses.cross_entropy import CrossEntropy
from ladder.losses.gspo import GSPO
from ladder.losses.kto import KTO
from ladder.losses.policy import PolicyClip, PolicyGradient
from ladder.losses.preference import DPO, IPO, ORPO, Hinge, SimPO
from ladder.losses.value import ValueClip

__all__ = [
    "BradleyTerry",
    "CISPO",
    "CrossEntropy",
    "DPO",
    "GSPO",
    "Hinge",
    "IPO",
    "KTO",
    "ORPO",
    "PolicyClip",
    "PolicyGradient",
    "SimPO",
    "ValueClip",
]
