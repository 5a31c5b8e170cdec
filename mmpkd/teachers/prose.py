"""Do the words that text teachers read state the label? Asked when a sweep is planned, before any teacher is fitted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mmpkd import leakage
from mmpkd.cohort.facts import label_columns
from mmpkd.cohort.store import Store
from mmpkd.config import TeacherConfig, validate
from mmpkd.teachers import TEACHERS
from mmpkd.teachers.ensemble import EnsembleParams
from mmpkd.teachers.text import TextParams, chosen_sections


def stating(teachers: Mapping[str, TeacherConfig], store: Store, fold: int) -> list[str]:
    """What text teachers read that states a label by its words alone, as warnings; `teachers` by the path that they
    stand under. Near-label sections were asked for as such."""
    reading: dict[str, list[str]] = {}
    for path, config in teachers.items():
        params = validate(TEACHERS[config.kind].Params, config.params)
        members = params.members if isinstance(params, EnsembleParams) else {"": config}
        for member, one in members.items():
            if one.kind == "text":
                where = f"{path}.params.members.{member}" if member else path
                chosen = chosen_sections(validate(TextParams, one.params), store.facts)
                reading |= {
                    name: [*reading.get(name, ()), where]
                    for name in chosen
                    if not store.facts.sections[name].near_label
                }
    if not reading:
        return []
    rows = np.concatenate([store.rows("train", fold), store.rows("val", fold)])
    texts = store.text(list(reading)).iloc[rows]
    label_NK = np.where(store.known_NK[rows], store.target_NK[rows], np.nan)
    labels, patients = (
        pd.DataFrame(label_NK, texts.index, label_columns(store.facts.tasks)),
        pd.Series(store.patient_N[rows], texts.index),
    )
    scores = leakage.probe(texts, {}, labels, patients, prose=list(reading))
    return [
        f"{' and '.join(dict.fromkeys(reading[name]))} reads {name!r}, whose words alone tell "
        f"{label} with AUROC {auroc:.2f}, out of fold: was it written with the label in hand? "
        "Leave that section out, or hide the labels' names (mask_labels)"
        for name, one in scores.items()
        for label, auroc in one.items()
        if auroc >= leakage.STATED
    ]
