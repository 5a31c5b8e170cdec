"""Measures whether privileged columns, or the words of a report section, give the label away.

This file looks at values only. The roles of columns are checked by `cohort.chosen_columns.check_columns`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack

from mmpkd.scoring.stats import weighted_auroc

ALARM = 0.9  # AUROC from which a single column is suspected of stating the label
STATED = 0.98  # AUROC from which a report or a teacher is suspected; both may legitimately know much about a label
MOST_WORDS = 5_000
NUM_FOLDS = 5
NUM_BINS = 10
# Number of samples that are probed. The AUROC then has a standard error of 0.01. Probing all 245,000 samples of a large
# cohort would take 30 seconds.
MAX_SAMPLES = 5_000
MAX_COLUMNS = 20  # number of columns, from the first, that are probed in pairs


def probe(
    columns: pd.DataFrame,
    separators: Mapping[str, str | None],
    labels: pd.DataFrame,
    patients: pd.Series,
    prose: Container[str] = (),
) -> dict[str, dict[str, float]]:
    """Returns the out-of-fold AUROC with which each column alone predicts each label, by column and label.

    For each column a logistic regression is fitted to binary indicators: one for each value of a text column, each word
    of a column in `prose`, or each decile of a numeric column, and one for a missing value. Folds are grouped by
    patient. A label with fewer than five patients in one of its classes gets no AUROC. Of a large cohort, about
    `MAX_SAMPLES` samples are probed.

    Args:
        columns: a row per sample. `labels` and `patients` have the same rows.
        separators: for each multivalued column, the text that separates the values of a cell.
        labels: a column per label; 1, 0, or NaN for unknown.
        patients: the patient of each sample.
        prose: names of the columns that hold running text.
    """
    from sklearn import config_context  # takes half a second, and few processes probe columns
    from sklearn.linear_model import LogisticRegression

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
            inputs, probability = indicators[name][known], np.empty(len(target))
            with config_context(assume_finite=True, skip_parameter_validation=True):  # which takes most of the time
                for train, held_out in folds:
                    fitted = model.fit(inputs[train], target[train])
                    probability[held_out] = fitted.predict_proba(inputs[held_out])[:, 1]
            scores[name][label] = _auroc(target, probability)
    return scores


def _auroc(target: NDArray[np.int64], score: NDArray[np.float64]) -> float:
    """Returns the area under the ROC curve, rounded to four digits."""
    once = np.ones((1, len(target)))
    return round(float(weighted_auroc(score[:, None], target[:, None], once.T, once)[0, 0]), 4)


def probe_pairs(
    columns: pd.DataFrame, labels: pd.DataFrame, patients: pd.Series
) -> list[tuple[str, str, dict[str, float]]]:
    """Returns the pairs of columns that together state a label, with their out-of-fold AUROC by label.

    Only an AUROC of at least `STATED` is kept. A pair can state a label although neither of its columns predicts it
    alone, for example if the label is the exclusive or of the two. All pairs of the first `MAX_COLUMNS` columns are
    probed. The score of a sample is computed from the samples of the other folds that have the same two values, where a
    value is a text, a decile of a numeric column, or missing: it is the share of these samples that have the label. If
    few samples have the two values, their share is shrunk towards the share among all samples of the other folds.
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
            if (auroc := _auroc(target, share)) >= STATED:
                scores.setdefault(pair, {})[label] = auroc
    return [(*pair, score_by_label) for pair, score_by_label in scores.items()]


def telling_words(texts: pd.Series, labels: pd.DataFrame, patients: pd.Series, label: str, most: int = 5) -> list[str]:
    """Returns the `most` words with the largest absolute weights for a label, largest first.

    The weights are those of the logistic regression of `probe`, fitted to all samples where the label is known.
    """
    from sklearn.linear_model import LogisticRegression

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
    """Returns the rows of all samples, or about `MAX_SAMPLES` rows of randomly drawn patients if there are more."""
    if len(patients) <= MAX_SAMPLES:
        return columns, labels, patients
    order = np.random.default_rng(0).permutation(np.unique(patients.to_numpy(dtype=str)))
    drawn = set(order[: max(1, len(order) * MAX_SAMPLES // len(patients))])
    chosen = patients.astype(str).isin(drawn).to_numpy()
    return columns[chosen], labels[chosen], patients[chosen]


def _label_problems(
    labels: pd.DataFrame, patients: pd.Series
) -> Iterator[tuple[str, NDArray[np.bool_], NDArray[np.int64], list[tuple[NDArray[np.int64], NDArray[np.int64]]]]]:
    """Yields the prediction problem of each label that can be probed.

    A problem is the label's name, a mask (N) of the samples where the label is known, the label's values at those
    samples, and the folds as pairs of training and held-out positions among those samples. The folds are grouped by
    patient.
    """
    for label in labels:
        known = labels[label].notna().to_numpy()
        target, group = labels[label].to_numpy()[known].astype(int), patients.to_numpy(dtype=object)[known]
        if any(len(set(group[target == side])) < NUM_FOLDS for side in (0, 1)):
            continue
        folds = _folds(tuple(target.tolist()), tuple(group))
        if all(len(set(target[train])) == 2 for train, _ in folds):
            yield str(label), known, target, folds


@lru_cache(maxsize=64)  # columns, pairs of columns and sections of a cohort are probed one after the other
def _folds(target: tuple[int, ...], group: tuple[object, ...]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    from sklearn.model_selection import StratifiedGroupKFold

    return list(StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0).split(target, target, group))


def _words(column: pd.Series) -> tuple[csr_matrix, list[str]]:
    """Returns indicators (N x F, 0 or 1) of the words of each text, and the words in the order of the indicators.

    There is an indicator for each of the `MOST_WORDS` commonest words. A last one states that the text is missing.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    texts, vectorizer = column.fillna(""), CountVectorizer(binary=True, max_features=MOST_WORDS)
    names: list[str] = []
    try:
        words = vectorizer.fit_transform(texts)
        names = list(map(str, vectorizer.get_feature_names_out()))
    except ValueError:  # the texts hold no word
        words = csr_matrix((len(texts), 0))
    return csr_matrix(hstack([words, column.isna().to_numpy(dtype=float)[:, None]])), names


def _value_codes(column: pd.Series) -> NDArray[np.int64]:
    """Returns a column's values as integer codes: one code per text or per decile of numbers, and one for missing."""
    if pd.api.types.is_numeric_dtype(column):
        column = pd.qcut(column, NUM_BINS, labels=False, duplicates="drop")
    codes: NDArray[np.int64] = pd.factorize(column)[0].astype(np.int64) + 1
    return codes


def _indicators(column: pd.Series, separator: str | None) -> np.ndarray:
    """Returns indicators of a column's values, N x F, 0 or 1.

    Values and deciles are derived from the rows of all folds. This leaks nothing, because no label is used.
    """
    missing = column.isna().to_numpy(dtype=float)[:, None]
    if pd.api.types.is_numeric_dtype(column):
        values = pd.get_dummies(pd.qcut(column, NUM_BINS, labels=False, duplicates="drop"))
    elif separator is not None:
        values = column.fillna("").str.get_dummies(separator)
    else:
        values = pd.get_dummies(column)
    return np.hstack([values.to_numpy(dtype=float), missing])
