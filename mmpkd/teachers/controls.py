"""The negative control: the same teacher without its knowledge of the single sample.

It keeps what a teacher knows of labels and takes away what it knows of a sample, by exchanging outputs or privileged
inputs between patients of the same labels. If a student still gains, the gain does not come from privileged knowledge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmpkd.cohort.store import Store
from mmpkd.fit import derived_seed
from mmpkd.types import Task


def permute_between_patients(
    group_n: NDArray[Any], store: Store, rows: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Returns for every sample of a store (N) the position of the sample that replaces it in the negative control.

    A sample at `rows` gets a sample of another patient of the same group; every other sample gets itself. Samples of
    the same group and labels (an unknown label counts as a value of its own) are permuted between patients. Where no
    such permutation exists, as for most combinations of many labels, a sample gets a randomly drawn sample of another
    patient with the nearest labels, that is, one that differs from it in the fewest labels. The class of a multi-class
    task counts as one label. A group with a single patient keeps its own samples.

    Args:
        group_n: (n,) the group of each sample at `rows`.
    """
    generator = np.random.default_rng(derived_seed(seed, "shuffled-control"))
    labels_nK = np.where(store.known_NK[rows], store.target_NK[rows], -1)
    patient_n = store.patient_N[rows]
    stratum_SX, stratum_n = np.unique(np.c_[group_n, labels_nK], axis=0, return_inverse=True)
    label_SL = _label_columns(stratum_SX[:, 1:], store.facts.tasks)
    members_S = np.split(np.argsort(stratum_n.reshape(-1)), np.cumsum(np.bincount(stratum_n.reshape(-1)))[:-1])
    source = np.arange(len(store.sample_ids))
    for stratum, members in enumerate(members_S):
        # Patients are in random order, and the samples of a patient are adjacent. The order is rotated by the largest
        # number of samples of a patient. If this is at most half of all, no sample gets one of its own patient.
        patient = np.unique(patient_n[members], return_inverse=True)[1]
        turn = np.bincount(patient).max()
        if 2 * turn <= len(members):
            order = np.lexsort((generator.random(len(members)), generator.permutation(patient.max() + 1)[patient]))
            source[rows[members[order]]] = rows[members[np.roll(order, turn)]]
            continue
        differing_S = (label_SL != label_SL[stratum]).sum(axis=1)
        differing_S[stratum_SX[:, 0] != stratum_SX[stratum, 0]] = -1
        for sample in members:
            for distance in range(label_SL.shape[1] + 1):
                nearest = [members_S[other] for other in np.flatnonzero(differing_S == distance)]
                others = [samples[patient_n[samples] != patient_n[sample]] for samples in nearest]
                if any(map(len, others)):
                    source[rows[sample]] = rows[generator.choice(np.concatenate(others))]
                    break
    return source


def _label_columns(value_SK: NDArray[Any], tasks: Sequence[Task]) -> NDArray[Any]:
    """Returns one column for each label; a multi-class task has a single column, its class, or -1 if unknown."""
    columns = []
    for task in tasks:
        part = value_SK[:, task.columns]
        exclusive = task.kind == "multiclass"
        columns.append(np.where(part.max(axis=1) > 0, part.argmax(axis=1), -1)[:, None] if exclusive else part)
    return np.hstack(columns)
