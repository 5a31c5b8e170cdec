"""Finds suspects: privileged columns and report sections that seem to give the labels away.

`prepare` searches for suspects once and keeps their scores in the store's manifest. Commands that train or sweep print
the suspects as warnings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mmpkd.cohort import leakage
from mmpkd.cohort.facts import ADMITTED, Facts, label_columns
from mmpkd.cohort.store import Store

Scores = Mapping[str, float]  # out-of-fold AUROC by label


@dataclass(frozen=True)
class Suspects:
    """Out-of-fold AUROCs for predicting each label from one column, from two columns together, or from the words of a
    section."""

    columns: Mapping[str, Scores] = field(default_factory=dict)
    pairs: Sequence[tuple[str, str, Scores]] = ()  # pairs that state a label although neither column is suspected alone
    sections: Mapping[str, Scores] = field(default_factory=dict)

    def lines(self, facts: Facts, sections: bool = True) -> list[str]:
        """Returns a warning, with names and scores, for each column, pair and section suspected of stating a label.

        Args:
            sections: False leaves out the warnings about sections, for callers that themselves check the sections which
                a teacher reads.
        """
        warnings = []
        for name, scores in self.columns.items():
            if facts.columns[name].role in ADMITTED and (labels := describe_labels(scores, leakage.ALARM)):
                remedy = "if it states the label, give it the role near_label or forbidden"
                warnings.append(f"column {name!r} alone tells {labels}; {remedy}")
        for first, second, scores in self.pairs:
            remedy = "if they state the label, give one the role near_label or forbidden"
            labels = describe_labels(scores, leakage.STATED)
            both = f"columns {first!r} and {second!r} together"
            warnings.append(f"{both} tell {labels}, though neither does alone; {remedy}")
        for name, scores in self.sections.items() if sections else ():
            if not facts.sections[name].near_label and (labels := describe_labels(scores, leakage.STATED)):
                remedy = "hide the labels' names from a text teacher (mask_labels), or teach from other sections"
                warnings.append(f"the words of section {name!r} alone tell {labels}; {remedy}")
        return warnings


def describe_labels(scores: Scores, alarm: float) -> str:
    """Describes the labels with an AUROC of at least `alarm`. The text is empty if no label has one.

    An example is 'task/label with AUROC 0.99, out of fold (and 2 other labels)'.
    """
    labels = sorted((label for label, auroc in scores.items() if auroc >= alarm), key=lambda label: -scores[label])
    if not labels:
        return ""
    others = len(labels) - 1
    more = f" (and {others} other label{'s' * (others > 1)})" if others else ""
    return f"{labels[0]} with AUROC {scores[labels[0]]:.2f}, out of fold{more}"


def find_suspects(
    facts: Facts, privileged: pd.DataFrame, text: pd.DataFrame | None, labels: pd.DataFrame, patients: pd.Series
) -> Suspects:
    """Measures how well columns, pairs of columns and sections predict the labels. All frames have the same rows.

    The caller leaves out the samples of the sealed test part. Without any row, no label gets an AUROC.

    Args:
        privileged: the privileged columns.
        text: a column per section of the reports. None if the cohort has no text.
        labels: a column per label; 1, 0, or NaN for unknown.
        patients: the patient of each sample.
    """
    # Patients become numbers in the order of their names, so that names and integer codes give the same folds.
    patients = pd.Series(np.unique(patients.to_numpy(), return_inverse=True)[1], patients.index)
    separators = {name: facts.columns[name].separator for name in map(str, privileged)}
    columns = leakage.probe(privileged, separators, labels, patients)
    admitted = [name for name in map(str, privileged) if facts.columns[name].role in ADMITTED]
    unsuspected = [name for name in admitted if max(columns[name].values(), default=0.0) < leakage.ALARM]
    unsuspected.sort(key=lambda name: -max(columns[name].values(), default=0.0))
    pairs = leakage.probe_pairs(privileged[unsuspected], labels, patients)
    sections = {} if text is None else leakage.probe(text, {}, labels, patients, prose=list(map(str, text)))
    return Suspects(columns, pairs, sections)


def find_suspects_in(store: Store) -> Suspects:
    """Runs `find_suspects` on the samples of a store that are not in the sealed test part."""
    rows = np.setdiff1d(np.arange(len(store.sample_ids)), store.rows("test"))
    facts = store.facts
    stored = [column.name for column in facts.columns.values() if column.role in (*ADMITTED, "near_label")]
    label_NK = np.where(store.known_NK[rows], store.target_NK[rows], np.nan)
    privileged = store.privileged(stored).iloc[rows]
    text = store.text(list(facts.sections)).iloc[rows] if facts.sections else None
    labels = pd.DataFrame(label_NK, privileged.index, label_columns(facts.tasks))
    return find_suspects(facts, privileged, text, labels, pd.Series(store.patient_N[rows], privileged.index))


def suspects_of(store: Store) -> Suspects:
    """Returns the suspects that `prepare` found and wrote to the store's manifest."""
    manifest = store.manifest
    pairs = [(first, second, scores) for first, second, scores in manifest["probe_pairs"]]
    return Suspects(manifest["probe"], pairs, manifest["probe_sections"])
