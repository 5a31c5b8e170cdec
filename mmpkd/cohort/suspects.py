"""What in a cohort gives its labels away: looked for once, kept in the store's manifest, and said by every command
that is about to spend something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mmpkd.cohort import leakage
from mmpkd.cohort.facts import ADMITTED, Facts, label_columns
from mmpkd.cohort.store import Store

Scores = Mapping[str, float]  # AUROC, out of fold, by label


@dataclass(frozen=True)
class Suspects:
    """AUROCs, out of fold, of what each column alone, two columns together or a section's words say of each label."""

    columns: Mapping[str, Scores] = field(default_factory=dict)
    pairs: Sequence[tuple[str, str, Scores]] = ()  # those that state a label, though neither column alone is suspected
    sections: Mapping[str, Scores] = field(default_factory=dict)

    def lines(self, facts: Facts, sections: bool = True) -> list[str]:
        """A warning for each column, pair and section that is suspected of stating a label; names and scores only.

        Args:
            sections: False leaves them out, for whoever knows which of them are read, and how.
        """
        warnings = []
        for name, scores in self.columns.items():
            if facts.columns[name].role in ADMITTED and (told := describe_labels(scores, leakage.ALARM)):
                mend = "if it states the label, give it the role near_label or forbidden"
                warnings.append(f"column {name!r} alone tells {told}; {mend}")
        for first, second, scores in self.pairs:
            mend = "if they state the label, give one the role near_label or forbidden"
            told = describe_labels(scores, leakage.STATED)
            warnings.append(f"columns {first!r} and {second!r} together tell {told}, though neither does alone; {mend}")
        for name, scores in self.sections.items() if sections else ():
            if not facts.sections[name].near_label and (told := describe_labels(scores, leakage.STATED)):
                mend = "hide the labels' names from a text teacher (mask_labels), or teach from other sections"
                warnings.append(f"the words of section {name!r} alone tell {told}; {mend}")
        return warnings


def describe_labels(scores: Scores, alarm: float) -> str:
    """'task/label with AUROC 0.99, out of fold (and 2 other labels)' of those from `alarm`; empty where none is."""
    told = sorted((label for label, auroc in scores.items() if auroc >= alarm), key=lambda label: -scores[label])
    if not told:
        return ""
    others = len(told) - 1
    more = f" (and {others} other label{'s' * (others > 1)})" if others else ""
    return f"{told[0]} with AUROC {scores[told[0]]:.2f}, out of fold{more}"


def find_suspects(
    facts: Facts, privileged: pd.DataFrame, text: pd.DataFrame | None, labels: pd.DataFrame, patients: pd.Series
) -> Suspects:
    """Looks at some samples, which are not the sealed test's; all frames share rows.

    Args:
        labels: 1, 0 or NaN, a column a label.
    """
    # Numbers in the order of names: the folds are the same whether patients come as one or the other.
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
    """What `find_suspects` finds in a store, or in what stands in for one that is not prepared yet."""
    rows = np.setdiff1d(np.arange(len(store.sample_ids)), store.rows("test"))
    facts = store.facts
    stored = [column.name for column in facts.columns.values() if column.role in (*ADMITTED, "near_label")]
    label_NK = np.where(store.known_NK[rows], store.target_NK[rows], np.nan)
    privileged = store.privileged(stored).iloc[rows]
    text = store.text(list(facts.sections)).iloc[rows] if facts.sections else None
    labels = pd.DataFrame(label_NK, privileged.index, label_columns(facts.tasks))
    return find_suspects(facts, privileged, text, labels, pd.Series(store.patient_N[rows], privileged.index))


def suspects_of(store: Store) -> Suspects:
    """What was found when the store was prepared."""
    kept = store.manifest
    return Suspects(kept["probe"], [(a, b, scores) for a, b, scores in kept["probe_pairs"]], kept["probe_sections"])
