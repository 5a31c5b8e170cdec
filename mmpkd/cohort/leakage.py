"""Do privileged columns or the words of a section give the label away? (`cohort.facts.check_columns` checks roles.)"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
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
MAX_COLUMNS = 20  # of which every pair is probed


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
    columns, labels, patients = _subsample(columns, labels, patients)
    scores: dict[str, dict[str, float]] = {str(name): {} for name in columns}
    indicators = {
        name: _words(columns[name])[0] if name in prose else _indicators(columns[name], separators.get(name))
        for name in scores
    }
    for label, known, target, folds in _label_problems(labels, patients):
        for name in scores:
            model = LogisticRegression(solver="liblinear")  # small and single-threaded
            inputs = indicators[name][known]
            probability = cross_val_predict(model, inputs, target, cv=folds, method="predict_proba")[:, 1]
            scores[name][label] = round(float(roc_auc_score(target, probability)), 4)
    return scores


def probe_pairs(
    columns: pd.DataFrame, labels: pd.DataFrame, patients: pd.Series
) -> list[tuple[str, str, dict[str, float]]]:
    """Two columns and the out-of-fold AUROC of both together, for each label that they state (`STATED`) and neither
    may by itself, as the halves of an exclusive or; of the first `MAX_COLUMNS` columns every pair is tried.

    A pair's score of a sample is the share of the label among the other folds' samples with the same two values (text;
    deciles of numbers; missing is a value), where few have them drawn towards the share among all.
    """
    columns, labels, patients = _subsample(columns.iloc[:, :MAX_COLUMNS], labels, patients)
    code_CN = [_value_codes(columns[name]) for name in columns]
    cell_PN = {
        (str(columns.columns[one]), str(columns.columns[other])): np.unique(
            code_CN[one] * (code_CN[other].max() + 1) + code_CN[other], return_inverse=True
        )[1]
        for one, other in combinations(range(len(code_CN)), 2)
    }
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for label, known, target, folds in _label_problems(labels, patients) if cell_PN else ():
        for pair, cell_N in cell_PN.items():
            cell, share = cell_N[known], np.empty(len(target))
            for train, held_out in folds:
                count = np.bincount(cell[train], minlength=cell_N.max() + 1)
                positive = np.bincount(cell[train], target[train], minlength=cell_N.max() + 1)
                share[held_out] = ((positive + target[train].mean()) / (count + 1))[cell[held_out]]
            if (auroc := round(float(roc_auc_score(target, share)), 4)) >= STATED:
                scores.setdefault(pair, {})[label] = auroc
    return [(*pair, found) for pair, found in scores.items()]


def telling_words(texts: pd.Series, labels: pd.DataFrame, patients: pd.Series, label: str, most: int = 5) -> list[str]:
    """The words that speak most for a label, the strongest first, by the logistic regression of `probe`."""
    frame, labels, _ = _subsample(texts.to_frame(), labels, patients)
    known = labels[label].notna().to_numpy()
    indicators, words = _words(frame.iloc[:, 0])
    model = LogisticRegression(solver="liblinear").fit(indicators[known], labels[label].to_numpy()[known].astype(int))
    weight_V = model.coef_[0][: len(words)]
    strongest = np.argsort(-np.abs(weight_V), kind="stable")[:most]
    return [words[index] for index in strongest]


def _subsample(
    columns: pd.DataFrame, labels: pd.DataFrame, patients: pd.Series
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """All samples, or those of so many patients, drawn evenly, that they are about `MAX_SAMPLES`."""
    if len(patients) <= MAX_SAMPLES:
        return columns, labels, patients
    order = np.random.default_rng(0).permutation(np.unique(patients.to_numpy(dtype=str)))
    some = set(order[: max(1, len(order) * MAX_SAMPLES // len(patients))])
    chosen = patients.astype(str).isin(some).to_numpy()
    return columns[chosen], labels[chosen], patients[chosen]


def _label_problems(
    labels: pd.DataFrame, patients: pd.Series
) -> Iterator[tuple[str, NDArray[np.bool_], NDArray[np.int64], list[tuple[NDArray[np.int64], NDArray[np.int64]]]]]:
    """Each label that can be asked about: its name, where it is known, its values there, and patient-grouped folds."""
    for label in labels:
        known = labels[label].notna().to_numpy()
        target, group = labels[label].to_numpy()[known].astype(int), patients.to_numpy(dtype=object)[known]
        if any(len(set(group[target == side])) < NUM_FOLDS for side in (0, 1)):
            continue
        folds = list(StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0).split(target, target, group))
        if all(len(set(target[train])) == 2 for train, _ in folds):
            yield str(label), known, target, folds


def _words(column: pd.Series) -> tuple[csr_matrix, list[str]]:
    """N x F, 0 or 1: which of the `MOST_WORDS` commonest words a text holds, and whether there is none; the words."""
    texts, vectorizer = column.fillna(""), CountVectorizer(binary=True, max_features=MOST_WORDS)
    names: list[str] = []
    try:
        words = vectorizer.fit_transform(texts)
        names = list(map(str, vectorizer.get_feature_names_out()))
    except ValueError:  # it holds no word
        words = csr_matrix((len(texts), 0))
    return csr_matrix(hstack([words, column.isna().to_numpy(dtype=float)[:, None]])), names


def _value_codes(column: pd.Series) -> NDArray[np.int64]:
    """A number for each value of a column: text as it is, numbers by decile, and one for missing."""
    if pd.api.types.is_numeric_dtype(column):
        column = pd.qcut(column, NUM_BINS, labels=False, duplicates="drop")
    codes: NDArray[np.int64] = pd.factorize(column)[0].astype(np.int64) + 1
    return codes


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
