"""The formulas of localisation worked by hand, and against scikit-learn and numpy on the same 8-bit map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from mmpkd.scoring import formulas

FULL = torch.ones(1, 2, 2, dtype=torch.bool)
MAP = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])  # levels 255, 170, 85, 0
LEFT = torch.tensor([[[True, False], [True, False]]])  # the 4 and the 2


def counted(map_HW, roi_HW, inside_HW=None):
    """The histogram of one map, given as lists."""
    map_1HW, roi_1HW = torch.tensor(map_HW).float()[None], torch.tensor(roi_HW)[None].bool()
    inside_1HW = torch.ones_like(roi_1HW) if inside_HW is None else torch.tensor(inside_HW)[None].bool()
    return formulas.histogram(map_1HW, roi_1HW & inside_1HW, inside_1HW)


def test_four_pixels_by_hand():
    count = formulas.histogram(MAP, LEFT, FULL)
    assert count[0].nonzero().tolist() == [[0, 0], [85, 1], [170, 0], [255, 1]]
    assert float(formulas.pixel_ap(count)) == pytest.approx((1 + 2 / 3) / 2)
    assert float(formulas.rank(count)) == 0.5  # of the two highest one is inside
    assert float(formulas.cnr(count)) == pytest.approx((170 - 85) / np.sqrt(85**2 + 85**2))
    assert int(formulas.otsu(count)) == 85
    iou_L = formulas.iou(count)[0]
    assert float(iou_L[85]) == pytest.approx(1 / 3)  # {4, 3} against {4, 2}
    assert iou_L[[0, 84, 169, 170, 254, 255]].tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 2, 1 / 2, 0])


def test_pixels_outside_the_content_are_ignored():
    below = torch.tensor([[[False, False], [True, True]]])
    count = formulas.histogram(MAP, LEFT & below, below)  # the 2 and the 1, stretched to 255 and 0
    assert count[0].nonzero().tolist() == [[0, 0], [255, 1]]
    for score in (formulas.pixel_ap, formulas.rank):
        assert float(score(count)) == 1


def test_rank_shares_the_last_place_among_ties():
    tied = [[9, 5, 5, 5], [0, 0, 0, 0]]
    assert float(formulas.rank(counted(tied, [[1, 1, 0, 0], [0, 0, 0, 0]]))) == pytest.approx((1 + 1 / 3) / 2)
    assert float(formulas.rank(counted(tied, [[0, 1, 0, 0], [1, 0, 0, 0]]))) == pytest.approx(1 / 3 / 2)
    assert float(formulas.rank(counted(tied, [[0, 0, 0, 0], [1, 1, 1, 1]]))) == 0


def test_cnr_is_signed_and_defined_in_edge_cases():
    rng = np.random.default_rng(0)
    map_HW, roi_HW = rng.random((6, 7)), rng.random((6, 7)) < 0.3
    plain = float(formulas.cnr(counted(map_HW, roi_HW)))
    assert float(formulas.cnr(counted(3 * map_HW + 2, roi_HW))) == pytest.approx(plain)
    assert float(formulas.cnr(counted(-map_HW, roi_HW))) == pytest.approx(-plain, abs=0.01)  # levels round half to even
    assert float(formulas.cnr(counted(np.ones((6, 7)), roi_HW))) == 0
    assert torch.isnan(formulas.cnr(counted(map_HW, np.ones((6, 7)))))  # nothing outside to stand out from


def test_against_numpy_and_sklearn_on_random_maps():
    rng = np.random.default_rng(1)
    for _ in range(20):
        map_HW = rng.random((8, 9)) ** rng.uniform(0.3, 3)
        roi_HW = rng.random((8, 9)) < rng.uniform(0.1, 0.6)
        count = counted(map_HW, roi_HW)
        level = np.round(255 * (map_HW - map_HW.min()).astype(np.float32) / np.float32(np.ptp(map_HW)))
        inside, outside = level[roi_HW], level[~roi_HW]
        expected = (inside.mean() - outside.mean()) / np.sqrt(inside.var() + outside.var())
        assert float(formulas.cnr(count)) == pytest.approx(expected, rel=1e-5)
        # Otsu as the least variance within the two classes.
        within = [
            sum(part.size * part.var() for part in (level[level <= cut], level[level > cut]) if part.size)
            for cut in range(256)
        ]
        assert int(formulas.otsu(count)) == int(np.argmin(np.round(within, 6)))
        for cut in (25, 51, 127, 204):
            expected = jaccard_score(roi_HW.ravel(), (level > cut).ravel())
            assert float(formulas.iou(count)[0, cut]) == pytest.approx(expected)
        top = np.argsort(-level.ravel(), kind="stable")
        if len(np.unique(level)) == level.size:
            assert float(formulas.rank(count)) == pytest.approx(roi_HW.ravel()[top[: roi_HW.sum()]].mean())


def test_mass_of_a_zero_map_is_zero():
    cells = torch.full((1, 2, 2), 0.5)
    assert float(formulas.mass(torch.zeros(1, 2, 2), cells, torch.ones(1, 2, 2))) == 0
    assert float(formulas.pointing(torch.zeros(1, 2, 2), cells, torch.ones(1, 2, 2))) == 0.5
