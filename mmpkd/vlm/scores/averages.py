"""Means over modalities, their standard errors over patients, and the same means under a bootstrap over patients.

A part of a goal is a DataFrame, one row for each item, with the columns `value` (what the item scores), `size` (of how
much: 1, or its number of boxes), `modality` and `patient`. The score of a modality is the ratio of the two sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.scoring.stats import SMALLEST_ERROR, Floats, macro

FEW = 2  # patients of a modality, with which nobody knows the error of its score
AUTHORS_MODALITIES = ("ct", "mr", "x", "pet", "endoscopy", "dermoscopy", "fundus", "ultrasound")


def by_modality(part: pd.DataFrame) -> dict[str, float]:
    """Returns the score of each modality. Modalities of size 0 are left out."""
    sums = part.groupby("modality", sort=True)[["value", "size"]].sum()
    sums = sums[sums["size"] > 0]
    return {str(name): float(value / size) for name, value, size in zip(sums.index, *sums.to_numpy().T, strict=True)}


def over_modalities(scores: Mapping[str, float], authors: bool = False) -> float:
    """Returns the unweighted mean over the modalities that have items; NaN if there is none.

    Args:
        authors: the mean over the eight modalities of Med-GRIT instead, as in the authors' scripts. There a modality
            without items counts as 0. (A modality that is not of the eight ends those scripts; here it is left out.)
    """
    values = [scores.get(name, 0.0) for name in AUTHORS_MODALITIES] if authors else list(scores.values())
    return float(np.mean(values)) if values else float("nan")


def mean_and_error(parts: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """Returns the mean over parts of the mean over modalities, and its standard error over patients.

    The error is linearised, as that of a ratio: the influence of an item is its distance from the score of its
    modality, divided by the size of the modality, the number of modalities and the number of parts. The influences of a
    patient are added up over all parts, and the squares of these sums over the patients. The influences in a modality
    with k patients are multiplied by sqrt(k / (k - 1)). The spread within a modality of one patient cannot be
    estimated; the largest one that is possible is used instead, sqrt(score (1 - score)).

    Args:
        parts: none is empty, and values are between 0 and their size.

    Returns:
        The mean, and the error: NaN with fewer than two patients, or if all items of each modality score the same.
    """
    means, influences = [], []
    for part in parts:
        modality = part.groupby("modality", sort=True)
        total = modality["size"].transform("sum").to_numpy(float)
        score = modality["value"].transform("sum").to_numpy(float) / total
        num_patients = modality["patient"].transform("nunique").to_numpy(float)
        distance = part["value"].to_numpy(float) - score * part["size"].to_numpy(float)
        correction = np.sqrt(num_patients / np.maximum(num_patients - 1, 1))
        largest = part["size"].to_numpy(float) * np.sqrt(np.clip(score * (1 - score), 0, None))
        influence = np.where(num_patients > 1, distance * correction, largest)
        scale = total * part["modality"].nunique() * len(parts)
        influences.append(pd.Series(influence / scale, index=pd.Index(part["patient"].to_numpy())))
        means.append(over_modalities(by_modality(part)))
    of_patient = pd.concat(influences).groupby(level=0).sum().to_numpy()
    error = float(np.sqrt(np.square(of_patient).sum()))
    is_known = len(of_patient) > 1 and error > SMALLEST_ERROR
    return float(np.mean(means)), error if is_known else float("nan")


def bootstrapped(parts: Sequence[pd.DataFrame], patient_P: NDArray[np.int64], weight_RP: Floats) -> Floats:
    """Returns the mean over parts of the mean over modalities under each of R replicates of a bootstrap over patients.

    The factor k / (k - 1) of `mean_and_error` for a modality with k patients is not needed: how many of its patients
    are drawn varies, which makes up for it (docs/decisions/vlm.md).

    Args:
        parts: none is empty. Their patients are among `patient_P`.
        patient_P: the patients that are drawn, ascending.
        weight_RP: how often each is drawn (`stats.patient_weights`).

    Returns:
        replicate_R: NaN where a modality of a part has no patient, see `stats.macro`.
    """
    of_parts = []
    for part in parts:
        sums = part[part["size"] > 0].groupby(["patient", "modality"])[["value", "size"]].sum()
        value_PM, size_PM = (
            sums[name].unstack().reindex(patient_P).fillna(0.0).to_numpy(float) for name in ("value", "size")
        )
        value_RM, size_RM = weight_RP @ value_PM, weight_RP @ size_PM
        score_RM = np.divide(value_RM, size_RM, out=np.full_like(value_RM, np.nan), where=size_RM > 0)
        of_parts.append(macro(score_RM))
    return macro(np.stack(of_parts, axis=1))


def patients_that_count(parts: Sequence[pd.DataFrame]) -> int:
    """Returns for how many patients those of some items count in the error of a mean over parts and modalities.

    A score of a modality with k patients has k - 1 degrees of freedom, and a variance that falls with one over k. If
    these variances are otherwise equal, their sum, weighted as the mean weighs the modalities, has the degrees of
    freedom of Satterthwaite (1946). One more of them is the number of patients of a single modality whose error is
    known as well. Of a modality in several parts the part with the fewest patients counts.

    Returns:
        the number, rounded down: at most that of the patients; 1 or 2 if a modality has no more, because replicates
        without one of its patients are left out and the others vary too little; 0 without parts.
    """
    weights: dict[str, float] = {}
    counts: dict[str, int] = {}
    for part in parts:
        num_patients = part[part["size"] > 0].groupby("modality")["patient"].nunique()
        for modality, count in num_patients.items():
            weights[str(modality)] = weights.get(str(modality), 0.0) + 1 / len(num_patients)
            counts[str(modality)] = min(counts.get(str(modality), count), count)
    if not counts:
        return 0
    if (fewest := min(counts.values())) <= FEW:
        return int(fewest)
    variances = {modality: weight**2 / counts[modality] for modality, weight in weights.items()}
    squares = sum(variance**2 / (counts[modality] - 1) for modality, variance in variances.items())
    freedom = sum(variances.values()) ** 2 / squares
    return min(int(freedom + 1e-9) + 1, int(pd.concat([part["patient"] for part in parts]).nunique()))
