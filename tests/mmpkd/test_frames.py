"""Letterbox geometry, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.parametrize("side", [16, 64])
def test_a_map_over_a_square_is_upsampled_as_by_torch(side: int) -> None:
    map_hw = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    torch_HW = F.interpolate(torch.from_numpy(map_hw)[None, None], (side, side), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(Letterbox(side, side, 16).original_map(map_hw), torch_HW, atol=1e-6)


def test_a_map_in_the_original_frame_has_no_padding() -> None:
    """2 x 4 pixels, stored doubled in rows 2 to 5 of 8; cells of 2 x 2."""
    map_hw = np.array([[9, 9, 9, 9], [0, 1, 2, 3], [4, 5, 6, 7], [9, 9, 9, 9]])
    # A pixel's centre is a cell's: rows 1 and 2, untouched by the padding's cells.
    assert Letterbox(2, 4, 8).original_map(map_hw).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    tall = Letterbox(4, 2, 8).original_map(map_hw.T)
    assert tall.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_stored_mask_is_read_at_original_pixel_centres() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:4, 2:4] = True
    assert Letterbox(2, 4, 8).original_mask(mask).tolist() == [[False, True, False, False], [False] * 4]
    letterbox = Letterbox(300, 200, 64)
    original = np.zeros((300, 200), bool)
    original[60:150, 40:110] = True
    back = letterbox.original_mask(letterbox.store_mask(original))
    assert (back != original).sum() < 0.1 * original.sum()  # its edge only


def test_cell_shares_are_areas() -> None:
    mask = np.array([[1, 0, 0, 0], [1, 1, 0, 0]], bool)  # stored doubled in rows 2 to 5 of 8
    shares = Letterbox(2, 4, 8).cell_shares(mask, (2, 2))  # cells of 4 x 4: 4 and 8 of the 16 pixels
    assert shares.tolist() == [[0.25, 0], [0.5, 0]]
    odd = Letterbox(3, 2, 4).cell_shares(np.ones((3, 2), bool), (4, 4))  # rows of 4/3, columns 0 to 2 of 4
    np.testing.assert_allclose(odd, [[1, 1, 1, 0]] * 4, atol=1e-6)
