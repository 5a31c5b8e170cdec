"""The objectives by name. A new objective is one file here, one line in `OBJECTIVES` and one hand-worked test."""

from mmpkd.config import ObjectiveConfig, validate
from mmpkd.near_names import near
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
from mmpkd.types import ConfigError, Strict

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


def resolve(config: ObjectiveConfig, path: str) -> tuple[type[Objective], Strict]:
    """Returns the class and the validated parameters of an active objective.

    Args:
        path: the path of the objective in the configuration, for messages about mistakes.

    Raises:
        ConfigError: the kind is unknown, or parameters are unknown, missing or out of range.
    """
    assert config.kind is not None, "`TrialConfig.active_objectives` fills it in"
    if config.kind not in OBJECTIVES:
        raise ConfigError.at(f"{path}.kind", f"unknown objective {config.kind!r}{near(config.kind, OBJECTIVES)}")
    kind = OBJECTIVES[config.kind]
    return kind, validate(kind.Params, config.params, f"{path}.params")


__all__ = ["OBJECTIVES", "Objective", "resolve"]
