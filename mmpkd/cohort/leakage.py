"""Probes whether privileged columns or the words of a section give the label away.

`cohort.facts.check_columns` checks the roles of columns.
"""

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
STATED = 0.98  # AUROC from which a report or a teacher is suspected; those may rightly know much about a label
MOST_WORDS = 5_000
NUM_FOLDS = 5
NUM_BINS = 10
MAX_SAMPLES = 5_000  # that are probed: a standard error of 0.01; all 245,000 of a large cohort would take 30 seconds
MAX_COLUMNS = 20  # columns of which every pair is probed


def probe(
    columns: pd.DataFrame,
    separators: Mapping[str, str | None],
    labels: pd.DataFrame,
    patients: pd.Series,
    prose: Container[str] = (),
) -> dict[str, dict[str, float]]:
    """Returns the out-of-fold AUROC of each column alone for each label (1, 0, NaN: unknown); all frames share rows.

    A logistic regression reads indicators: one per value of a text column (cells split at `separators[column]`), per
    word of a column in `prose`, or per decile of numbers, and one for missing. Folds are grouped by patient. A label
    with fewer than five patients in one of its classes is left out. About `MAX_SAMPLES` of a large cohort are probed.
    """
    scores: dict[str, dict[str, float]] = {str(name): {} for name in columns}
    if columns.empty:
        return scores
    columns, labels, patients = _subsample(columns, labels, patients)
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
    """Returns the pairs of columns that together state a label, with their out-of-fold AUROC by label.

    Only an AUROC of at least `STATED` is kept. A pair can state a label although neither of its columns predicts it
    alone, for example if the label is the exclusive or of the two. All pairs of the first `MAX_COLUMNS` columns are
    probed. The score of a sample is the share of the label among the samples of the other folds that have the same two
    values (text, deciles of numbers, or missing). Where few samples have these values, the share is shrunk towards that
    of all samples.
    """
    if columns.empty:
        return []
    columns, labels, patients = _subsample(columns.iloc[:, :MAX_COLUMNS], labels, patients)
    code_CN = [_value_codes(columns[name]) for name in columns]
    cell_PN = {
        (str(columns.columns[first]), str(columns.columns[second])): np.unique(
            code_CN[first] * (code_CN[second].max() + 1) + code_CN[second], return_inverse=True
        )[1]
        for first, second in combinations(range(len(code_CN)), 2)
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
    return [(*pair, score_by_label) for pair, score_by_label in scores.items()]


def telling_words(texts: pd.Series, labels: pd.DataFrame, patients: pd.Series, label: str, most: int = 5) -> list[str]:
    """Returns the words with the largest weights for a label in the logistic regression of `probe`, largest first."""
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
    """Returns all samples, or those of randomly drawn patients, so that they are about `MAX_SAMPLES`."""
    if len(patients) <= MAX_SAMPLES:
        return columns, labels, patients
    order = np.random.default_rng(0).permutation(np.unique(patients.to_numpy(dtype=str)))
    drawn = set(order[: max(1, len(order) * MAX_SAMPLES // len(patients))])
    chosen = patients.astype(str).isin(drawn).to_numpy()
    return columns[chosen], labels[chosen], patients[chosen]


def _label_problems(
    labels: pd.DataFrame, patients: pd.Series
) -> Iterator[tuple[str, NDArray[np.bool_], NDArray[np.int64], list[tuple[NDArray[np.int64], NDArray[np.int64]]]]]:
    """Yields each label that can be probed, with a mask of the samples where it is known, its values there, and folds.

    The folds are grouped by patient.
    """
    for label in labels:
        known = labels[label].notna().to_numpy()
        target, group = labels[label].to_numpy()[known].astype(int), patients.to_numpy(dtype=object)[known]
        if any(len(set(group[target == side])) < NUM_FOLDS for side in (0, 1)):
            continue
        folds = list(StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0).split(target, target, group))
        if all(len(set(target[train])) == 2 for train, _ in folds):
            yield str(label), known, target, folds


def _words(column: pd.Series) -> tuple[csr_matrix, list[str]]:
    """Returns which of the `MOST_WORDS` commonest words a text holds, and whether it is missing (N x F, 0 or 1); and
    the words."""
    texts, vectorizer = column.fillna(""), CountVectorizer(binary=True, max_features=MOST_WORDS)
    names: list[str] = []
    try:
        words = vectorizer.fit_transform(texts)
        names = list(map(str, vectorizer.get_feature_names_out()))
    except ValueError:  # it holds no word
        words = csr_matrix((len(texts), 0))
    return csr_matrix(hstack([words, column.isna().to_numpy(dtype=float)[:, None]])), names


def _value_codes(column: pd.Series) -> NDArray[np.int64]:
    """Returns an integer code for each value of a column: each text, each decile of numbers, and missing."""
    if pd.api.types.is_numeric_dtype(column):
        column = pd.qcut(column, NUM_BINS, labels=False, duplicates="drop")
    codes: NDArray[np.int64] = pd.factorize(column)[0].astype(np.int64) + 1
    return codes


def _indicators(column: pd.Series, separator: str | None) -> np.ndarray:
    """Returns indicators of a column's values, N x F, 0 or 1. It may use all rows, because it uses no label."""
    missing = column.isna().to_numpy(dtype=float)[:, None]
    if pd.api.types.is_numeric_dtype(column):
        values = pd.get_dummies(pd.qcut(column, NUM_BINS, labels=False, duplicates="drop"))
    elif separator is not None:
        values = column.fillna("").str.get_dummies(separator)
    else:
        values = pd.get_dummies(column)
    return np.hstack([values.to_numpy(dtype=float), missing])
