"""What an exported student states about its training: data, protocol and scores, for the card that goes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mmpkd.cohort.decode import is_coloured
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig

# By score of `classify.score`: its name for calibrated probabilities. A training's score in `val/` is that of the
# probabilities before calibration.
CALIBRATED: Mapping[str, str] = {"brier": "val/brier_calibrated", "ece": "val/ece_calibrated"}
SAMPLED = 200  # training images that are examined for colour


@dataclass(frozen=True)
class Origin:
    """The training of a student in numbers. It names no patient, no file, no column and no teacher's input.

    scores: the metrics of the last epoch under `val/`, with standard errors and the scores of baselines; and
        `CALIBRATED`.
    coloured: share of the training images that are in colour; None for a student of one channel, and in files of
        earlier versions.
    """

    reader: str
    patients: Mapping[str, int]  # number of patients in the parts `train` and `val`
    images: Mapping[str, int]
    teachers: tuple[str, ...]  # kinds of the teachers of the active objectives
    objectives: tuple[str, ...]  # kinds of the active objectives
    pretrained: bool  # whether the training began from pretrained weights
    epochs: int
    seed: int
    scores: Mapping[str, float]
    coloured: float | None = None

    def dump(self) -> str:
        """Returns the values as JSON, which `load` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Origin | None:
        """Returns the values that `dump` wrote, or None if a version wrote them that states less. Further values are
        ignored: what a student states about its training must not keep anyone from using it.

        Raises:
            TypeError, ValueError, LookupError: the text is not such JSON.
        """
        content = json.loads(text)
        names = {field.name for field in fields(cls)}
        if not names - {"coloured"} <= content.keys():
            return None
        kinds = {key: tuple(content[key]) for key in ("teachers", "objectives")}
        return cls(**{name: content[name] for name in names & content.keys()} | kinds)


def origin_of(
    config: TrialConfig, store: Store, metrics: Mapping[str, float], calibrated: Mapping[str, float]
) -> Origin:
    """Returns the origin of a student that was trained by `config` on `store`.

    Args:
        metrics: the complete metrics of the last epoch.
        calibrated: the scores of `CALIBRATED` for the probabilities that the exported student gives.
    """
    rows = {"train": store.rows("train", config.cohort.fold), "val": store.rows("val", config.cohort.fold)}
    kinds = [objective.kind for objective in config.active_objectives().values()]
    return Origin(
        reader=config.cohort.reader,
        patients={part: len(np.unique(store.patient_N[row])) for part, row in rows.items()},
        images={part: len(row) for part, row in rows.items()},
        teachers=tuple(sorted({config.teachers[name].kind for name in config.active_teachers()})),
        objectives=tuple(sorted({kind for kind in kinds if kind})),
        pretrained=config.vit.pretrained,
        epochs=config.epochs,
        seed=config.seed,
        scores={name: float(value) for name, value in metrics.items() if name.startswith("val/")}
        | {name: float(calibrated[score]) for score, name in CALIBRATED.items()},
        coloured=_share_in_colour(store.image_NCHW, rows["train"]),
    )


def _share_in_colour(image_NCHW: NDArray[np.uint8], rows: NDArray[np.int64]) -> float | None:
    """Returns the share of images in colour, from at most `SAMPLED` of the rows."""
    if image_NCHW.shape[1] == 1:
        return None
    sampled = rows[:: 1 + len(rows) // SAMPLED]
    return float(np.mean([is_coloured(image_NCHW[row].transpose(1, 2, 0)) for row in sampled]))
