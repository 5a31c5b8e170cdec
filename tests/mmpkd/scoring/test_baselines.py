"""Maps that ignore the image, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpkd.scoring import baselines

GRID = (4, 4)


def test_the_centre_map_is_centred_on_the_content() -> None:
    low = baselines.centre(torch.tensor([[8, 0, 16, 16], [0, 0, 16, 16]]), (16, 16), GRID)
    assert (low[0] == low[0].max()).nonzero().tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    assert (low[1] == low[1].max()).nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    # Patch centres lie 2 and 6 px from the middle, one sd is 4 px.
    assert float(low[1, 0, 1]) == pytest.approx(np.exp(-(1.5**2 + 0.5**2) / 2))


def test_mean_roi_averages_images_with_an_roi_in_content_coordinates() -> None:
    roi = torch.zeros(3, 3, 16, 16, dtype=torch.bool)
    roi[0, 0, :4, :4] = True  # the upper left cell of a square image
    roi[1, 0, 4:6, :4] = True  # the same of an image of 8 x 16 in rows 4 to 11
    roi[1, 1, 4:12] = True  # all of it
    boxes = [[0, 0, 16, 16], [4, 0, 12, 16], [0, 0, 16, 16]]
    prior = baselines.mean_roi(zip(roi, boxes, strict=True), GRID)
    assert prior is not None
    upper_left = torch.zeros(GRID)
    upper_left[0, 0] = 1
    torch.testing.assert_close(prior, torch.stack([upper_left, torch.ones(GRID), torch.ones(GRID)]))  # label 2: unknown
    half = baselines.mean_roi([(roi[0], boxes[0]), (roi[0].flip(2), boxes[0])], GRID)
    assert half is not None and half[0, 0].tolist() == [0.5, 0, 0, 0.5]
    assert baselines.mean_roi([(roi[2], boxes[2])], GRID) is None and baselines.mean_roi([], GRID) is None


def test_letterboxed_maps_are_unchanged_in_a_square_and_squeezed_in_a_wide_image() -> None:
    content = torch.arange(16.0).view(1, 4, 4)
    torch.testing.assert_close(baselines.letterboxed(content, torch.tensor([[0, 0, 16, 16]]), (16, 16)), content)
    wide = baselines.letterboxed(content, torch.tensor([[4, 0, 12, 16]]), (16, 16))[0]
    # Patch rows 1 and 2 lie at 1/4 and 3/4 of the content, midway between its rows 0 and 1, and 2 and 3.
    expected = torch.stack([torch.zeros(4), torch.arange(4.0) + 2, torch.arange(4.0) + 10, torch.zeros(4)])
    torch.testing.assert_close(wide, expected)
