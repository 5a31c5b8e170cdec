"""Images of samples, gathered from the store or kept on the device."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig
from mmpkd.images import Images


@pytest.mark.parametrize("resident", [False, True])
def test_batches_come_in_the_given_order(tiny_cohort: CohortConfig, cache: Path, resident: bool) -> None:
    store = prepare(tiny_cohort, cache)
    rows = store.rows("val")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(rows)))
    images = Images(store, rows, ("superior", "image"), torch.device("cpu"), resident)
    batches = list(images.batches(order, 8))
    assert [len(batch) for batch in batches] == [8, 8, 8, 6] and batches[0].dtype == torch.uint8
    wanted = np.concatenate([store.view("superior"), store.image_NCHW], axis=1)[rows[order.numpy()]]
    assert np.array_equal(torch.cat(batches).numpy(), wanted)
