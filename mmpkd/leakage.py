"""Does one privileged column or section, alone, give the label away? (`cohort.facts.check_columns` checks roles.)"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

ALARM = 0.9  # AUROC from which a single column is suspected of stating the label
STATED = 0.98  # from which a report is, or a teacher, which may well know much; what it adds to the label is little
MOST_WORDS = 5_000
NUM_FOLDS = 5
NUM_BINS = 10
MAX_SAMPLES = 5_000  # probed; a standard error of 0.01, while a logistic regression on 245,000 takes half a minute


def probe(
    columns: pd.DataFrame,
    separators: Mapping[str, str | None],
    labels: pd.DataFrame,
    patients: pd.Series,
    prose: Container[str] = (),
) -> dict[str, dict[str, float]]:
    """Out-of-fold AUROC of each column alone against each label (1, 0, NaN: unknown); all frames share rows.

    Patient-grouped folds and a logistic regression on indicators: one per value (text; cells split
    at `separators[column]`; the words of those in `prose`), per decile (numbers), and one for missing. A label with
    fewer than five patients on either side is left out. Of a large cohort about `MAX_SAMPLES` are probed.
    """
    if columns.empty:
        return {}
    if len(patients) > MAX_SAMPLES:
        order = np.random.default_rng(0).permutation(np.unique(patients.to_numpy(dtype=str)))
        some = set(order[: max(1, len(order) * MAX_SAMPLES // len(patients))])
        chosen = patients.astype(str).isin(some).to_numpy()
        columns, labels, patients = columns[chosen], labels[chosen], patients[chosen]
    scores: dict[str, dict[str, float]] = {str(name): {} for name in columns}
    indicators = {
        name: _words(columns[name]) if name in prose else _indicators(columns[name], separators.get(name))
        for name in scores
    }
    for label in labels:
        known = labels[label].notna().to_numpy()
        target, group = labels[label].to_numpy()[known].astype(int), patients.to_numpy(dtype=object)[known]
        if any(len(set(group[target == side])) < NUM_FOLDS for side in (0, 1)):
            continue
        folds = list(StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0).split(target, target, group))
        if any(len(set(target[train])) < 2 for train, _ in folds):
            continue
        for name in scores:
            inputs = indicators[name][known]
            model = LogisticRegression(solver="liblinear")  # small and single-threaded
            probability = cross_val_predict(model, inputs, target, cv=folds, method="predict_proba")[:, 1]
            scores[name][str(label)] = round(float(roc_auc_score(target, probability)), 4)
    return scores


def _words(column: pd.Series) -> csr_matrix:
    """N x F, 0 or 1: which of the `MOST_WORDS` commonest words a text holds, and whether there is none."""
    texts = column.fillna("")
    try:
        words = CountVectorizer(binary=True, max_features=MOST_WORDS).fit_transform(texts)
    except ValueError:  # it holds no word
        words = csr_matrix((len(texts), 0))
    return csr_matrix(hstack([words, column.isna().to_numpy(dtype=float)[:, None]]))


def _indicators(column: pd.Series, separator: str | None) -> np.ndarray:
    """N x F, 0 or 1. Uses no label, so it may look at all rows."""
    missing = column.isna().to_numpy(dtype=float)[:, None]
    if pd.api.types.is_numeric_dtype(column):
        values = pd.get_dummies(pd.qcut(column, NUM_BINS, labels=False, duplicates="drop"))
    elif separator is not None:
        values = column.fillna("").str.get_dummies(separator)
    else:
        values = pd.get_dummies(column)
    return np.hstack([values.to_numpy(dtype=float), missing])
