"""Negative controls: the same teacher, what it knows of the single sample taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmpkd.cohort.store import Store
from mmpkd.fit import derived_seed
from mmpkd.teachers.cache import CachedOutputs
from mmpkd.types import Task


def shuffled_within_label(outputs: CachedOutputs, store: Store, fold: int, seed: int) -> CachedOutputs:
    """The teacher's answers about training samples, dealt anew by `dealt_within`. What is left of a gain
    under this control is not knowledge about the sample."""
    train = store.rows("train", fold)
    order = torch.from_numpy(dealt_within(np.zeros(len(train)), store, train, seed))
    return outputs.map(lambda values: values[order])


def dealt_within(group_n: NDArray[Any], store: Store, rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """For every sample of a store another one: for those at `rows` another patient's of the same group, else itself.

    Samples of one group and the same labels (an unknown one counts as a value of its own) are permuted between
    patients. Where that cannot be, as for most combinations of many labels, a sample is given one with the nearest
    labels, drawn among other patients': the fewest labels differ, the class of a multi-class task being one. A group
    of one patient keeps its own.

    Args:
        group_n: (n,) within what to deal, of each of `rows`.
    """
    generator = np.random.default_rng(derived_seed(seed, "shuffled-control"))
    labels_nK = np.where(store.known_NK[rows], store.target_NK[rows], -1)
    patient_n = store.patient_N[rows]
    stratum_SX, stratum_n = np.unique(np.c_[group_n, labels_nK], axis=0, return_inverse=True)
    label_SL = _labels(stratum_SX[:, 1:], store.facts.tasks)
    members_S = np.split(np.argsort(stratum_n.reshape(-1)), np.cumsum(np.bincount(stratum_n.reshape(-1)))[:-1])
    source = np.arange(len(store.sample_ids))
    for stratum, members in enumerate(members_S):
        # Patients in random order, each one's samples together: turned by the largest patient's
        # number of samples, no sample meets one of its own patient's, if that is half of them at most.
        patient = np.unique(patient_n[members], return_inverse=True)[1]
        turn = np.bincount(patient).max()
        if 2 * turn <= len(members):
            order = np.lexsort((generator.random(len(members)), generator.permutation(patient.max() + 1)[patient]))
            source[rows[members[order]]] = rows[members[np.roll(order, turn)]]
            continue
        differing_S = (label_SL != label_SL[stratum]).sum(axis=1)
        differing_S[stratum_SX[:, 0] != stratum_SX[stratum, 0]] = -1
        for sample in members:
            for nearest in range(label_SL.shape[1] + 1):
                near = [members_S[other] for other in np.flatnonzero(differing_S == nearest)]
                others = [one[patient_n[one] != patient_n[sample]] for one in near]
                if any(map(len, others)):
                    source[rows[sample]] = rows[generator.choice(np.concatenate(others))]
                    break
    return source


def _labels(value_SK: NDArray[Any], tasks: Sequence[Task]) -> NDArray[Any]:
    """A column a label; of a multi-class task one in all, its class, -1 where that is unknown."""
    columns = []
    for task in tasks:
        part = value_SK[:, task.columns]
        exclusive = task.kind == "multiclass"
        columns.append(np.where(part.max(axis=1) > 0, part.argmax(axis=1), -1)[:, None] if exclusive else part)
    return np.hstack(columns)
