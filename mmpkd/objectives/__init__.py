"""Terms of the loss, by name. A new one is a file here, a line below and a hand-worked test."""

from mmpkd.objectives.dist import DIST
from mmpkd.objectives.dkd import DKD
from mmpkd.objectives.features import Features
from mmpkd.objectives.logits import Logits
from mmpkd.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {
    "logits": Logits,
    "dkd": DKD,
    "dist": DIST,
    "features": Features,
}

__all__ = ["OBJECTIVES", "Objective"]
