"""Letterbox geometry, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmpkd.frames import Box, Letterbox, from_run_lengths, run_lengths


@pytest.mark.parametrize(
    ("height", "width", "size", "content"),
    [
        (20, 20, 10, Box(0, 0, 10, 10)),
        (100, 50, 20, Box(0, 5, 20, 15)),  # portrait, 1/5: 20 x 10, five columns of padding on either side
        (2, 4, 8, Box(2, 0, 6, 8)),  # landscape, doubled: 4 x 8, two rows of padding above and below
        (4, 3, 8, Box(0, 1, 8, 7)),  # 8 x 6
        (3, 2, 4, Box(0, 0, 4, 3)),  # 4 x 2.67, rounded to 3: the odd column of padding is at the right
        (1000, 1, 32, Box(0, 15, 32, 16)),  # 0.03 columns still make one
    ],
)
def test_content_box(height: int, width: int, size: int, content: Box) -> None:
    assert Letterbox(height, width, size).content == content


def test_image_fills_its_box_and_padding_is_black() -> None:
    grey = Letterbox(100, 50, 20).store_image(np.full((100, 50), 200, np.uint8))
    assert (grey[:, 5:15] == 200).all()
    assert (grey[:, :5] == 0).all() and (grey[:, 15:] == 0).all()
    colour = Letterbox(2, 4, 8).store_image(np.full((2, 4, 3), (1, 2, 3), np.uint8))
    assert colour.shape == (8, 8, 3)
    assert (colour[2:6] == (1, 2, 3)).all() and (colour[:2] == 0).all()


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))  # every other column: nearest would give 0 or 200
    shrunk = Letterbox(64, 64, 8).store_image(stripes)
    assert np.abs(shrunk.astype(int) - 100).max() <= 5  # triangles are cut at the edges


def test_mask_keeps_pixels_at_least_half_covered() -> None:
    mask = np.array(
        [
            [1, 1, 1, 0],
            [1, 1, 0, 1],
            [1, 0, 0, 0],
            [0, 0, 0, 0],
        ],
        bool,
    )
    # quadrants covered 4/4, 2/4, 1/4, 0/4
    assert Letterbox(4, 4, 2).store_mask(mask).tolist() == [[True, True], [False, False]]


def test_mask_is_repeated_when_enlarged() -> None:
    mask = np.array([[1, 0], [0, 0]], bool)
    stored = Letterbox(2, 2, 4).store_mask(mask)
    assert stored.sum() == 4 and stored[:2, :2].all()


@pytest.mark.parametrize("place", [(0, 0), (199, 299), (0, 299), (57, 113), (100, 150), (131, 18)])
def test_a_region_of_one_pixel_is_never_lost(place: tuple[int, int]) -> None:
    mask = np.zeros((200, 300), bool)
    mask[place] = True
    letterbox = Letterbox(200, 300, 16)  # content 11 x 16 in rows 2 to 12
    rows, columns = np.nonzero(letterbox.store_mask(mask))
    assert len(rows) == 1
    assert abs(rows[0] - (2 + place[0] * 11 / 200)) <= 1 and abs(columns[0] - place[1] * 16 / 300) <= 1


def test_an_empty_mask_stays_empty() -> None:
    assert not Letterbox(5, 9, 4).store_mask(np.zeros((5, 9), bool)).any()


def test_stored_area_is_faithful() -> None:
    rows, columns = np.mgrid[:300, :200]
    disc = (rows - 140) ** 2 + (columns - 90) ** 2 < 60**2
    letterbox = Letterbox(300, 200, 64)  # content 64 x 43
    share = letterbox.store_mask(disc).sum() / (64 * 43)
    assert share == pytest.approx(disc.mean(), rel=0.03)


def test_run_lengths_by_hand() -> None:
    mask = np.array([[0, 0, 1], [1, 0, 1]], bool)
    assert run_lengths(mask).tolist() == [2, 2, 1, 1]
    assert run_lengths(~mask).tolist() == [0, 2, 2, 1, 1]  # the first run is one of False


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_run_lengths_and_back(share: float) -> None:
    mask = np.random.default_rng(0).random((7, 11)) < share
    runs = run_lengths(mask)
    assert runs.sum() == 77
    assert (from_run_lengths(runs, (7, 11)) == mask).all()
