"""Fits a teacher out of fold and on all training patients, and gathers its outputs, behind a progress bar.

Logits of training samples are out of fold (five patient-grouped folds), because in-sample logits are overconfident,
and offsets bring the logits of the five models to one level (`fold_levels.py`). Embeddings, hidden layers and maps come
from one model fitted on all training patients, because the latent spaces of fold models are unrelated. A teacher never
sees test samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmpkd.cohort.splits import deal_folds
from mmpkd.cohort.store import Store
from mmpkd.fit import derived_seed
from mmpkd.teachers.fold_levels import level_offsets
from mmpkd.teachers.teacher import CompositeParams, Teacher
from mmpkd.teachers.training import require_classes
from mmpkd.types import TeacherOutput

NUM_FOLDS = 5
HIDDEN = "hidden-"  # prefix of the names of arrays of hidden layers; the number of the layer follows
HEAD = ("head-weight", "head-bias")
OnFit = Callable[[int, NDArray[np.int64]], None]


class OutOfFold(NamedTuple):
    """Logits of samples, each from a model that saw no sample of the same patient.

    The models were brought to one level by offsets, see `out_of_fold`.
    """

    logits_NK: NDArray[np.float32]
    offset_FK: NDArray[np.float32]  # what was added to the logits of the model of each fold


def folds(store: Store, rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Returns the fold of each sample at `rows`. Folds hold whole patients. All classes occur outside each fold.

    Raises:
        CohortError: there are fewer than five patients.
        TeacherError: a label has a single class outside one of the folds.
    """
    fold_N = deal_folds(_stratum(store, rows), store.patient_N[rows], NUM_FOLDS, derived_seed(seed, "folds") % 2**32)
    for fold in range(NUM_FOLDS):
        fitted = rows[fold_N != fold]
        require_classes(store.facts.tasks, store.target_NK[fitted], store.known_NK[fitted])
    return fold_N


def _stratum(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns for each sample the number of its combination of labels; an unknown label counts as a value of its
    own."""
    labels = np.where(store.known_NK[rows], store.target_NK[rows], -1)
    return np.unique(labels, axis=0, return_inverse=True)[1].astype(np.int64)


def out_of_fold(
    teacher: Teacher, store: Store, rows: NDArray[np.int64], seed: int, on_fit: OnFit = lambda *_: None
) -> OutOfFold:
    """Returns a teacher's out-of-fold logits of the samples at `rows`.

    An offset for each fold brings the logits of the five models to one level. The offsets of a composite teacher are 0,
    because its members were already brought to one level when they were fitted.

    Args:
        seed: seed by which patients are dealt into the folds.
        on_fit: called for each of the five folds, after the teacher was fitted without that fold, with the number of
            the fold and the samples in it.

    Raises:
        CohortError, TeacherError: the patients cannot be dealt into folds (see `folds`), or the teacher cannot be
            fitted.
    """
    fold_N = folds(store, rows, seed)
    logits_NK = np.empty((len(rows), store.target_NK.shape[1]), np.float32)
    for fold in range(NUM_FOLDS):
        teacher.fit(store, rows[fold_N != fold])
        logits_NK[fold_N == fold] = _arrays(teacher.outputs(store, rows[fold_N == fold]))["logits"]
        on_fit(fold, rows[fold_N == fold])
    offset_FK = np.zeros((NUM_FOLDS, logits_NK.shape[1]), np.float32)
    if not isinstance(teacher.params, CompositeParams):
        offset_FK = level_offsets(logits_NK, fold_N, store.patient_N[rows], store.facts.tasks, NUM_FOLDS)
    return OutOfFold(logits_NK + offset_FK[fold_N], offset_FK)


def fit_and_predict(
    teacher: Teacher, store: Store, fold: int, name: str, on_fit: OnFit = lambda *_: None
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Fits a teacher five times out of fold and once on all training patients.

    Args:
        fold: the validation fold of the cohort.
        name: the user's name of the teacher, for the progress bar.
        on_fit: called as in `out_of_fold`, and finally with NUM_FOLDS for the model of all training patients.

    Returns:
        The teacher's outputs as arrays over all samples of the store, NaN outside the training and validation parts;
        and the offsets (F, K) that were added to the logits of the model of each fold.
    """
    train, val = store.rows("train", fold), store.rows("val", fold)
    predicted = np.concatenate([train, val])
    console = Console(stderr=True)
    columns = (
        TextColumn(f"fitting teacher {name}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=NUM_FOLDS + 1)

        def advance(index: int, rows: NDArray[np.int64]) -> None:
            on_fit(index, rows)
            progress.advance(bar)

        logits_NK, offset_FK = out_of_fold(teacher, store, train, teacher.params.seed, advance)
        teacher.fit(store, train)
        advance(NUM_FOLDS, predicted)
    arrays = {}
    for key, values in _arrays(teacher.outputs(store, predicted)).items():
        arrays[key] = np.full((len(store.sample_ids), *values.shape[1:]), np.nan, np.float32)
        arrays[key][predicted] = values
    arrays["logits"][train] = logits_NK
    if (head := teacher.head()) is not None:
        arrays |= zip(HEAD, (part.detach().cpu().numpy() for part in (head.weight, head.bias)), strict=True)
    return arrays, offset_FK


def _arrays(output: TeacherOutput) -> dict[str, NDArray[np.float32]]:
    """Returns a teacher's outputs as arrays, by the name that each array has in the cache."""
    fields = {"logits": output.logits_BK, "embedding": output.embedding_BD, "map": output.map_Bhw}
    fields |= {f"{HIDDEN}{layer}": values for layer, values in output.hidden_BD.items()}
    return {name: values.numpy() for name, values in fields.items() if values is not None}
