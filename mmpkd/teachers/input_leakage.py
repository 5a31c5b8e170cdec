"""What teachers read that states the label: said before any teacher is fitted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from mmpkd.cohort import leakage
from mmpkd.cohort.facts import label_columns
from mmpkd.cohort.store import Store
from mmpkd.cohort.suspects import Suspects, labels_told, suspects_of
from mmpkd.config import TeacherConfig, TrialConfig, validate
from mmpkd.teachers import TEACHERS, caveats
from mmpkd.teachers.columns import ColumnsParams
from mmpkd.teachers.ensemble import EnsembleParams
from mmpkd.teachers.masking import LabelMask
from mmpkd.teachers.sections import chosen_sections
from mmpkd.teachers.teacher import TeacherParams
from mmpkd.teachers.text import TextParams


def leakage_warnings(
    suspects: Suspects, teachers: Iterable[tuple[str, TeacherConfig]], store: Store, fold: int
) -> list[str]:
    """Warnings of what states the label in a cohort and in what these teachers read of it.

    Columns that may be taught from are named whoever reads them; near-label columns where a teacher asks for them;
    sections of reports as a text teacher reads them, whole or with the labels' names hidden.

    Args:
        suspects: of the cohort.
        teachers: each with the path that it stands under; a path may have several.
    """
    near_label, whole, masked = (
        dict[str, list[str]](),
        dict[str, list[str]](),
        dict[tuple[str, tuple[str, ...]], list[str]](),
    )
    for path, params in _single(teachers):
        if isinstance(params, ColumnsParams):
            for name in params.near_label:
                near_label.setdefault(name, []).append(path)
        if isinstance(params, TextParams):
            for name in chosen_sections(params, store.facts):
                if store.facts.sections[name].near_label:
                    continue  # asked for as such
                if params.mask_labels is None:
                    whole.setdefault(name, []).append(path)
                else:
                    masked.setdefault((name, params.mask_labels.also), []).append(path)
    warnings = suspects.lines(store.facts, sections=False)
    for name, paths in near_label.items():
        if told := labels_told(suspects.columns.get(name, {}), leakage.ALARM):
            warnings.append(f"{_all(paths)} reads the near-label column {name!r}, which alone tells {told}")
    for name, paths in whole.items():
        if told := labels_told(suspects.sections.get(name, {}), leakage.STATED):
            mend = (
                "was it written with the label in hand? Leave that section out, or hide the labels' names (mask_labels)"
            )
            warnings.append(f"{_all(paths)} reads {name!r}, whose words alone tell {told}: {mend}")
    for (name, also), paths in masked.items():
        warnings += [f"{_all(paths)} {line}" for line in _left(name, also, store, fold)]
    return warnings


def warnings_before_fitting(config: TrialConfig, store: Store) -> list[str]:
    """What whoever trains one student should know of its teachers and of its cohort, before any teacher is fitted."""
    active = [(f"teachers.{name}", config.teachers[name]) for name in config.active_teachers()]
    told = [f"{path} {caveat}" for path, teacher in active for caveat in caveats(teacher, store.facts)]
    return [*told, *leakage_warnings(suspects_of(store), active, store, config.cohort.fold)]


def _left(section: str, also: tuple[str, ...], store: Store, fold: int) -> list[str]:
    """Whether the words of a section that a mask leaves still tell a label; they are named of public cohorts only."""
    rows = np.concatenate([store.rows("train", fold), store.rows("val", fold)])
    mask, texts = LabelMask(store.facts.tasks, also), store.text([section]).iloc[rows]
    texts = texts.map(lambda text: mask.hide(text, " "), na_action="ignore")
    label_NK = np.where(store.known_NK[rows], store.target_NK[rows], np.nan)
    labels = pd.DataFrame(label_NK, texts.index, label_columns(store.facts.tasks))
    patients = pd.Series(store.patient_N[rows].astype(str), texts.index)
    scores = leakage.probe(texts, {}, labels, patients, prose=[section])[section]
    if not (told := labels_told(scores, leakage.ALARM)):
        return []
    words = (
        "credentialed: false in cohort.params names them here, for public data only; else list the commonest words of "
        "that section yourself, apart for each label"
    )
    if not store.facts.credentialed:
        label = max(scores, key=lambda name: scores[name])
        words = ", ".join(leakage.telling_words(texts[section], labels, patients, label)) + ", where they name it"
    problem = f"reads {section!r} with the labels' names hidden, and the single words that are left still tell {told}"
    return [f"{problem}; hide further words with mask_labels: {{also: [...]}} ({words})"]


def _single(teachers: Iterable[tuple[str, TeacherConfig]]) -> Iterator[tuple[str, TeacherParams]]:
    """Every teacher once, with its parameters; of an ensemble its members, under their own paths."""
    seen = set[tuple[str, str]]()
    for path, config in teachers:
        if (path, config.model_dump_json()) in seen:
            continue
        seen.add((path, config.model_dump_json()))
        params = validate(TEACHERS[config.kind].Params, config.params)
        if isinstance(params, EnsembleParams):
            yield from _single((f"{path}.params.members.{name}", one) for name, one in params.members.items())
        else:
            yield path, params


def _all(paths: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(paths))
