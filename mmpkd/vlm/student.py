"""A student that answers, with everything that is needed to use it: in the file that a training leaves, and read back.

Beside the weights the file states how raw pixels become the student's image, what it was trained on in numbers, and a
digest of each image of its cohort. It holds no path, no name of a patient and, beside the words of its vocabulary, no
text of the cohort.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmpkd.cohort.decode import Depth, depth_of, read_depth
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.export.lookup import find
from mmpkd.export.origin import Origin
from mmpkd.export.student_file import source_of
from mmpkd.types import ConfigError, Task
from mmpkd.vlm import exported
from mmpkd.vlm.config import FAMILIES, VlmConfig
from mmpkd.vlm.model import Vlm


@dataclass(frozen=True)
class VlmCard:
    """The description of an exported student that answers. `tasks` and `slices` are those of a classifying student's
    card: it has no labels, and reads no volumes."""

    channels: int
    image_size: int  # side of the input square, pixels
    depth: Depth  # how raw pixels become 8 bits
    source: str  # hash of the training data set, see `source_of`
    cohort: str  # fingerprint of the store
    fold: int  # the validation fold
    trial: str  # fingerprint of the training configuration
    credentialed: bool
    tasks: tuple[Task, ...] = ()
    slices: tuple[float, ...] = ()


@dataclass(frozen=True)
class VlmStudent:
    """An exported student that answers. `seen` are digests of all images of its cohort, see `Store.digests`."""

    vlm: Vlm
    config: VlmConfig
    card: VlmCard
    seen: NDArray[np.int64]
    origin: Origin


def card_of(config: TrialConfig, store: Store, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Returns what the file of a trained student says of it, as JSON.

    Args:
        metrics: the complete metrics of the last epoch.
    """
    facts, parts = store.facts, config.distillation
    assert isinstance(config.student, VlmConfig)
    card = VlmCard(
        channels=facts.channels,
        image_size=facts.image_size,
        depth=depth_of(store.manifest),
        source=source_of(store.manifest),
        cohort=store.fingerprint,
        fold=config.cohort.fold,
        trial=config.fingerprint(),
        credentialed=facts.credentialed,
    )
    rows = {part: store.rows(part, config.cohort.fold) for part in ("train", "val")}
    ideas = {
        "kl": parts.kl.weight > 0,
        "pseudo_labels": parts.pseudo_labels.use,
        "corrections": parts.corrections.rounds,
    }
    origin = Origin(
        reader=config.cohort.reader,
        patients={part: len(np.unique(store.patient_N[row])) for part, row in rows.items()},
        images={part: len(row) for part, row in rows.items()},
        teachers=("vlm",) if parts.needs_teacher else (),
        objectives=tuple(name for name, is_on in ideas.items() if is_on),
        pretrained=config.student.model not in FAMILIES,
        epochs=config.epochs,
        seed=config.seed,
        scores={name: float(value) for name, value in metrics.items() if name.startswith("val/")},
    )
    own = {key: value for key, value in asdict(card).items() if key not in ("tasks", "slices")}
    return own | {"origin": asdict(origin), "seen": store.digests().tolist()}


def read(path: Path) -> VlmStudent:
    """Reads an exported student that answers, on the CPU, in evaluation mode.

    Args:
        path: its file, or a folder that holds exactly one exported student, at any depth.

    Raises:
        ConfigError: the path leads to no such student, or to one that reads another image than the file of a sample.
    """
    file = find(path)
    vlm, content = exported.read(file)
    try:
        card = dict(content["card"])
        origin = Origin.load(json.dumps(card.pop("origin")))
        seen = np.array(card.pop("seen"), np.int64)
        student_card = VlmCard(**card | {"depth": read_depth(*card["depth"])})
        config = VlmConfig.model_validate(content["config"])
        assert origin is not None
    except (LookupError, TypeError, ValueError, AssertionError) as error:
        problem = f"{file} does not state its images and its training; it is a teacher, or of an earlier version"
        raise ConfigError.at(
            "model", f"{problem}; name the file that mmpkd.train writes after its last epoch"
        ) from error
    return VlmStudent(vlm, config, student_card, seen, origin)
