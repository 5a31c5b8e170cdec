"""One view moves image and ROI together."""

import torch

from mmpkd.augment import View, draw_views, look, look_map
from mmpkd.config import AugmentationConfig


def test_a_view_by_hand() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    # Down by one row (row -1 is background) and mirrored left to right.
    view = View(torch.tensor([[-1, 0, 1]]), torch.tensor([[2, 1, 0]]))
    assert look(image, view)[0, 0].tolist() == [[0, 0, 0], [2, 1, 0], [5, 4, 3]]


def test_image_and_roi_move_together() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(64, 1, 16, 16, generator=generator)
    roi = image > 0.9
    view = draw_views(64, 16, AugmentationConfig(shift=0.25, flip_vertical=True), generator)
    seen, seen_roi = look(image, view), look(roi, view)
    assert seen_roi.dtype == torch.bool
    assert torch.equal(seen > 0.9, seen_roi)
    assert not torch.equal(seen, image)


def test_each_image_is_drawn_apart_and_reach_is_kept() -> None:
    view = draw_views(500, 20, AugmentationConfig(shift=0.1), torch.Generator().manual_seed(0))
    shifts = view.rows_BH[:, 0]
    assert set(shifts.tolist()) == {-2, -1, 0, 1, 2}  # no vertical flip by default
    mirrored = view.columns_BW[:, 0] > view.columns_BW[:, -1]
    assert 0.4 < mirrored.float().mean() < 0.6


def test_nothing_asked_for_changes_nothing() -> None:
    image = torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8)
    config = AugmentationConfig(shift=0, flip_horizontal=False)
    assert torch.equal(look(image, draw_views(4, 8, config, torch.Generator())), image)


def test_a_map_moves_with_its_image_by_hand() -> None:
    map_Bhw = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]).repeat(4, 1, 1)
    rows, flipped, shifted = torch.arange(4), torch.arange(3, -1, -1), torch.arange(4) + 2  # a cell is two pixels wide
    half = torch.arange(4) + 1
    view = View(torch.stack([rows, rows, rows, rows]), torch.stack([rows, flipped, shifted, half]))
    moved = look_map(map_Bhw, view)
    torch.testing.assert_close(moved[0], map_Bhw[0])
    torch.testing.assert_close(moved[1], torch.tensor([[0.2, 0.1], [0.4, 0.3]]))
    torch.testing.assert_close(moved[2], torch.tensor([[0.2, 0.0], [0.4, 0.0]]) / 0.6)
    torch.testing.assert_close(moved[3], torch.tensor([[0.3, 0.2], [0.7, 0.4]]) / 1.6)  # halves of two neighbours


def test_a_map_that_the_view_leaves_behind_is_nan() -> None:
    gone = View(torch.arange(4)[None], torch.arange(4)[None] + 4)
    assert look_map(torch.full((1, 2, 2), 0.25), gone).isnan().all()
