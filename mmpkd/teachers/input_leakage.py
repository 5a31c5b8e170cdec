"""Warnings about privileged inputs that state the label, given before any teacher is fitted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mmpkd.cohort import leakage
from mmpkd.cohort.facts import label_columns
from mmpkd.cohort.store import Store
from mmpkd.cohort.suspects import Suspects, describe_labels, suspects_of
from mmpkd.config import TrialConfig
from mmpkd.teachers import resolve
from mmpkd.teachers.masking import LabelMask
from mmpkd.teachers.teacher import ResolvedTeacher


def leakage_warnings(
    suspects: Suspects, teachers: Iterable[tuple[str, ResolvedTeacher]], store: Store, fold: int
) -> list[str]:
    """Returns a warning for each column and report section that states the label.

    Admitted columns are always reported, near-label columns only if a teacher asks for them. A report section is tested
    as a teacher reads it: complete, or with the names of the labels masked.

    Args:
        suspects: the suspected columns, pairs and sections of the cohort.
        teachers: pairs of a path in the configuration and a teacher at this path; a path may have several teachers.
    """
    near_label, unmasked = dict[str, list[str]](), dict[str, list[str]]()
    masked = dict[tuple[str, tuple[str, ...]], list[str]]()
    for path, teacher in (pair for name, composite in teachers for pair in composite.single(name)):
        inputs = teacher.teacher.inputs(teacher.params, store.facts)
        for name in inputs.columns:
            if store.facts.columns[name].role == "near_label":
                near_label.setdefault(name, []).append(path)
        for name in inputs.sections:
            if store.facts.sections[name].near_label:
                continue  # the user asked for it by name
            if inputs.hidden_words is None:
                unmasked.setdefault(name, []).append(path)
            else:
                masked.setdefault((name, inputs.hidden_words), []).append(path)
    warnings = suspects.lines(store.facts, sections=False)
    for name, paths in near_label.items():
        if labels := describe_labels(suspects.columns.get(name, {}), leakage.ALARM):
            warnings.append(f"{_join(paths)} reads the near-label column {name!r}, which alone tells {labels}")
    for name, paths in unmasked.items():
        if labels := describe_labels(suspects.sections.get(name, {}), leakage.STATED):
            remedy = (
                "was it written with the label in hand? Leave that section out, or hide the labels' names (mask_labels)"
            )
            warnings.append(f"{_join(paths)} reads {name!r}, whose words alone tell {labels}: {remedy}")
    for (name, hidden_words), paths in masked.items():
        warnings += [f"{_join(paths)} {line}" for line in _masked_section_warnings(name, hidden_words, store, fold)]
    return warnings


def warnings_before_fitting(config: TrialConfig, store: Store) -> list[str]:
    """Returns the warnings about the teachers and the cohort of a single training, before any teacher is fitted."""
    active = [(f"teachers.{name}", resolve(config.teachers[name])) for name in config.active_teachers()]
    caveats = [f"{path} {caveat}" for path, teacher in active for caveat in teacher.caveats(store.facts)]
    return [*caveats, *leakage_warnings(suspects_of(store), active, store, config.cohort.fold)]


def _masked_section_warnings(section: str, hidden_words: tuple[str, ...], store: Store, fold: int) -> list[str]:
    """Returns a warning if the words that a mask leaves in a section still state a label; otherwise an empty list.

    The words themselves are named only for cohorts that are not credentialed.
    """
    rows = np.concatenate([store.rows("train", fold), store.rows("val", fold)])
    mask, texts = LabelMask(store.facts.tasks, hidden_words), store.text([section]).iloc[rows]
    texts = texts.map(lambda text: mask.hide(text, " "), na_action="ignore")
    label_NK = np.where(store.known_NK[rows], store.target_NK[rows], np.nan)
    labels = pd.DataFrame(label_NK, texts.index, label_columns(store.facts.tasks))
    patients = pd.Series(store.patient_N[rows].astype(str), texts.index)
    scores = leakage.probe(texts, {}, labels, patients, prose=[section])[section]
    if not (told_labels := describe_labels(scores, leakage.ALARM)):
        return []
    words = (
        "credentialed: false in cohort.params names them here, for public data only; else list the commonest words of "
        "that section yourself, for each label"
    )
    if not store.facts.credentialed:
        label = max(scores, key=lambda name: scores[name])
        words = ", ".join(leakage.telling_words(texts[section], labels, patients, label)) + ", where they name it"
    problem = (
        f"reads {section!r} with the labels' names hidden, and the single words that are left still tell {told_labels}"
    )
    return [f"{problem}; hide further words with mask_labels: {{also: [...]}} ({words})"]


def _join(paths: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(paths))
