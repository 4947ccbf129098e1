"""The losses. Each is a frozen dataclass that is its own configuration and never reduces (`ladder.types.Loss`)."""

from ladder.losses.cispo import CISPO
from ladder.losses.cross_entropy import CrossEntropy
from ladder.losses.gspo import GSPO
from ladder.losses.policy import PolicyClip, PolicyGradient

__all__ = ["CISPO", "CrossEntropy", "GSPO", "PolicyClip", "PolicyGradient"]
