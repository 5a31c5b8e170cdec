"""Terms of the loss, by name. A new one is a file here, a line below and a hand-worked test."""

from mmpkd.objectives.attention import Attention
from mmpkd.objectives.contrastive import Contrastive
from mmpkd.objectives.dist import DIST
from mmpkd.objectives.dkd import DKD
from mmpkd.objectives.features import Features
from mmpkd.objectives.guidance import Guidance
from mmpkd.objectives.logits import Logits
from mmpkd.objectives.mutual_information import MutualInformation
from mmpkd.objectives.objective import Objective
from mmpkd.objectives.relational import Relational
from mmpkd.objectives.variational import Variational

OBJECTIVES: dict[str, type[Objective]] = {
    "logits": Logits,
    "dkd": DKD,
    "dist": DIST,
    "features": Features,
    "relational": Relational,
    "attention": Attention,
    "contrastive": Contrastive,
    "mutual_information": MutualInformation,
    "variational": Variational,
    "guidance": Guidance,
}

__all__ = ["OBJECTIVES", "Objective"]
