"""The highest attainable scores, by hand and against random maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpkd.scoring import localize
from mmpkd.scoring.regions import Regions

GRID = (4, 4)  # of 4 px patches in a 16 px frame
WHOLE = (0, 0, 16, 16)
Rectangle = tuple[int, int, int, int]


def regions_of(*images: list[list[Rectangle]], box: Rectangle = WHOLE, lit: np.ndarray | None = None) -> Regions:
    """Each image is a list of masks, one per label; a mask is a list of (top, left, bottom, right)."""
    roi = torch.zeros(len(images), len(images[0]), 16, 16, dtype=torch.bool)
    for image, masks in enumerate(images):
        for label, rectangles in enumerate(masks):
            for top, left, bottom, right in rectangles:
                roi[image, label, top:bottom, left:right] = True
    return Regions.of(roi, torch.tensor([box] * len(images)), GRID, foreground_NHW=lit)


def highest(regions: Regions, one_map: bool) -> list[list[float]]:
    result = localize.bounds(regions, one_map)
    np.testing.assert_array_equal(result["pointing_max"], result["mass_max"])
    return [[round(float(value), 6) for value in row] for row in result["pointing_max"]]


def test_two_labels_in_two_places_share_one_map() -> None:
    regions = regions_of([[(0, 0, 4, 4)], [(12, 12, 16, 16)]])
    assert highest(regions, one_map=False) == [[1, 1]]
    assert sorted(highest(regions, one_map=True)[0]) == [0, 1]  # the mean is 0.5 for either label


def test_one_cell_can_serve_overlapping_labels() -> None:
    # Label 0 covers cell (0, 0) in full and half of (0, 1); label 1 the very half of (0, 1), and a quarter of (3, 3).
    regions = regions_of([[(0, 0, 4, 6)], [(0, 4, 4, 6), (12, 12, 14, 14)]])
    assert highest(regions, one_map=False) == [[1, 0.5]]
    # Cell (0, 0): 1 and 0. Cell (0, 1): a half and a half. The sums are equal, and the first is chosen.
    assert highest(regions, one_map=True) == [[1, 0]]
    regions = regions_of([[(0, 0, 4, 7)], [(0, 4, 4, 7)]])  # three quarters each: 1.5 is more than 1
    assert highest(regions, one_map=True) == [[0.75, 0.75]]


def test_a_region_smaller_than_a_patch_bounds_the_score() -> None:
    regions = regions_of([[(1, 1, 3, 3)]])
    assert highest(regions, one_map=False) == highest(regions, one_map=True) == [[0.25]]
    across = regions_of([[(2, 2, 6, 6)]])  # as large as a patch, in the corner of four
    assert highest(across, one_map=False) == [[0.25]]


def test_padding_in_a_patch_is_outside() -> None:
    regions = regions_of([[(0, 0, 4, 4)]], box=(2, 0, 14, 16))  # the upper half of the first patches is letterbox
    assert highest(regions, one_map=False) == [[0.5]]


def test_only_the_foreground_counts_if_restricted_to_it() -> None:
    lit = np.zeros((1, 16, 16), bool)
    lit[:, :, :6] = True
    regions = regions_of([[(0, 4, 4, 8)]], lit=lit)  # of cell (0, 1) what is lit is all ROI
    assert highest(regions, one_map=False) == [[1]]


def test_an_image_with_one_label_is_scored_for_that_label() -> None:
    regions = regions_of([[(0, 0, 4, 4)], [(12, 12, 16, 16)]], [[(0, 0, 4, 4)], []], [[(0, 0, 4, 4)], []])
    # Label 1 has one image, label 0 three: where both are, the rarer one weighs three times as much.
    result = localize.bounds(regions, one_map=True)["pointing_max"]
    np.testing.assert_array_equal(result, [[0, 1], [1, np.nan], [1, np.nan]])
    assert localize.summarize({"pointing_max": result})["pointing_max"] == pytest.approx((2 / 3 + 1) / 2)


def test_without_a_region_there_is_no_bound() -> None:
    for one_map in (False, True):
        assert np.isnan(localize.bounds(regions_of([[], []]), one_map)["mass_max"]).all()


def test_random_maps_stay_below_the_bound_and_the_best_cell_reaches_it() -> None:
    generator = torch.Generator().manual_seed(1)
    roi = torch.zeros(6, 3, 16, 16, dtype=torch.bool)
    corners = torch.randint(0, 11, (6, 3, 2), generator=generator)
    for image in range(6):
        for label in range(3):
            top, left = corners[image, label].tolist()
            roi[image, label, top : top + 5, left : left + 4] = bool((image + label) % 3)
    regions = Regions.of(roi, torch.tensor([WHOLE] * 6), GRID)
    wanted = localize.summarize(localize.bounds(regions, one_map=True))["pointing_max"]
    scores = []
    for _ in range(300):
        maps = torch.rand(6, 1, *GRID, generator=generator) ** 20
        result = localize.score(maps, regions)
        scores.append([localize.summarize({entry: result[entry]})[entry] for entry in ("pointing", "mass")])
    assert np.max(scores) <= wanted + 1e-6
    # All cells are tried for every image: the best cell reaches the bound.
    cells = torch.eye(16).view(16, 1, 1, *GRID).expand(16, 6, 1, *GRID)
    by_cell = np.array([localize.score(entry, regions)["pointing"] for entry in cells])  # cell, image, label
    weight_R = 1 / np.isfinite(by_cell[0]).sum(axis=0) / 3
    assert (np.nan_to_num(by_cell) * weight_R).sum(axis=2).max(axis=0).sum() == pytest.approx(wanted)
