"""A view moves image and ROI together."""

import pytest
import torch

from mmpkd.augment import View, apply_light, apply_view, apply_view_to_map, draw_views
from mmpkd.config import AugmentationConfig, TrialConfig, validate
from mmpkd.machine.checksums import fingerprint
from mmpkd.types import ConfigError

STILL = {"shift": 0, "flip_horizontal": False}


def seen_as(turn: list[list[float]], light: tuple[float, float] | None = None, side: int = 3) -> View:
    """Returns a view of a single image that is turned by this matrix and not shifted."""
    here = torch.arange(side)[None]
    return View(here, here, torch.tensor([turn]), None if light is None else torch.tensor([light]))


def test_a_view_by_hand() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    # Down by one row (row -1 is background) and mirrored left to right.
    view = View(torch.tensor([[-1, 0, 1]]), torch.tensor([[2, 1, 0]]))
    assert apply_view(image, view)[0, 0].tolist() == [[0, 0, 0], [2, 1, 0], [5, 4, 3]]


def test_image_and_roi_move_together() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(64, 1, 16, 16, generator=generator)
    roi = image > 0.9
    view = draw_views(64, 16, AugmentationConfig(shift=0.25, flip_vertical=True), generator)
    seen, seen_roi = apply_view(image, view), apply_view(roi, view)
    assert seen_roi.dtype == torch.bool
    assert torch.equal(seen > 0.9, seen_roi)
    assert not torch.equal(seen, image)


def test_each_image_has_its_own_shift_within_the_limit() -> None:
    view = draw_views(500, 20, AugmentationConfig(shift=0.1), torch.Generator().manual_seed(0))
    shifts = view.rows_BH[:, 0]
    assert set(shifts.tolist()) == {-2, -1, 0, 1, 2}  # no vertical flip by default
    mirrored = view.columns_BW[:, 0] > view.columns_BW[:, -1]
    assert 0.4 < mirrored.float().mean() < 0.6


def test_no_augmentation_changes_nothing() -> None:
    image = torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8)
    config = AugmentationConfig(shift=0, flip_horizontal=False)
    assert torch.equal(apply_view(image, draw_views(4, 8, config, torch.Generator())), image)


def test_a_map_moves_with_its_image_by_hand() -> None:
    map_Bhw = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]).repeat(4, 1, 1)
    rows, flipped, shifted = torch.arange(4), torch.arange(3, -1, -1), torch.arange(4) + 2  # a cell is two pixels wide
    half = torch.arange(4) + 1
    view = View(torch.stack([rows, rows, rows, rows]), torch.stack([rows, flipped, shifted, half]))
    moved = apply_view_to_map(map_Bhw, view)
    torch.testing.assert_close(moved[0], map_Bhw[0])
    torch.testing.assert_close(moved[1], torch.tensor([[0.2, 0.1], [0.4, 0.3]]))
    torch.testing.assert_close(moved[2], torch.tensor([[0.2, 0.0], [0.4, 0.0]]) / 0.6)
    torch.testing.assert_close(moved[3], torch.tensor([[0.3, 0.2], [0.7, 0.4]]) / 1.6)  # halves of two neighbours


def test_a_map_outside_the_view_is_nan() -> None:
    gone = View(torch.arange(4)[None], torch.arange(4)[None] + 4)
    assert apply_view_to_map(torch.full((1, 2, 2), 0.25), gone).isnan().all()


def test_a_quarter_turn_and_a_doubling_by_hand() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    quarter = seen_as([[0.0, -1.0], [1.0, 0.0]])  # clockwise: the view's first row is the first column
    assert apply_view(image, quarter)[0, 0].tolist() == [[6, 3, 0], [7, 4, 1], [8, 5, 2]]
    assert apply_view(image > 4, quarter)[0, 0].tolist() == [
        [True, False, False],
        [True, False, False],
        [True, True, False],
    ]
    assert apply_view(image.byte(), quarter)[0, 0].tolist() == [[6, 3, 0], [7, 4, 1], [8, 5, 2]]
    twice = seen_as([[0.5, 0.0], [0.0, 0.5]])  # twice as large: the corners are midway between the middle and the old
    torch.testing.assert_close(apply_view(image, twice)[0, 0], torch.tensor([[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]]))
    half = seen_as([[2.0, 0.0], [0.0, 2.0]])  # half as large: all but the middle lies outside
    assert apply_view(image + 1, half)[0, 0].tolist() == [[0, 0, 0], [0, 5, 0], [0, 0, 0]]


def test_shift_and_flip_come_after_the_turn() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    quarter = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    turned = apply_view(image, View(torch.arange(3)[None], torch.arange(3)[None], quarter))
    rows, columns = torch.tensor([[-1, 0, 1]]), torch.tensor([[2, 1, 0]])
    assert torch.equal(apply_view(image, View(rows, columns, quarter)), apply_view(turned, View(rows, columns)))


def test_image_and_roi_turn_together() -> None:
    """A bright disc and its mask are turned by random angles: bright pixels are those in the mask."""
    row, column = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    disc = ((row - 9) ** 2 + (column - 13) ** 2 < 36)[None, None].expand(40, 1, 32, 32)
    config = AugmentationConfig(rotation=180, scale=(0.8, 1.25), flip_vertical=True)
    view = draw_views(40, 32, config, torch.Generator().manual_seed(0))
    image, roi = apply_view(disc.float(), view), apply_view(disc, view)
    assert roi.dtype == torch.bool and ((image > 0.5) == roi).float().mean() > 0.995
    assert (roi != disc).flatten(1).any(dim=1).all()  # and every one of them has moved


def test_a_map_turns_with_its_image() -> None:
    map_Bhw = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    moved = apply_view_to_map(map_Bhw, seen_as([[0.0, -1.0], [1.0, 0.0]], side=4))
    torch.testing.assert_close(moved, torch.tensor([[[0.3, 0.1], [0.4, 0.2]]]))


def test_angles_and_scales_stay_within_their_limits() -> None:
    config = AugmentationConfig(rotation=30, scale=(0.5, 2), **STILL)
    view = draw_views(2000, 8, config, torch.Generator().manual_seed(0))
    assert view.turn_B22 is not None and view.light_B2 is None
    zoom = 1 / view.turn_B22.det().sqrt()
    angle = torch.rad2deg(torch.atan2(view.turn_B22[:, 1, 0], view.turn_B22[:, 0, 0]))
    assert 0.5 <= zoom.min() < 0.51 and 1.96 < zoom.max() <= 2.001 and 0.47 < (zoom < 1).float().mean() < 0.53
    assert -30.001 <= angle.min() < -29 and 29 < angle.max() <= 30.001


def test_light_by_hand() -> None:
    image = torch.tensor([[0.0, 0.2, 0.6]]).repeat(3, 1)[None, None]
    image[..., 2, :] = 0
    box = torch.tensor([[0, 0, 2, 3]])  # the last row is letterbox, the black column is not
    brighter = apply_light(image, seen_as([[1.0, 0.0], [0.0, 1.0]], (1.5, 1.0)), box)
    torch.testing.assert_close(brighter[0, 0], torch.tensor([[0.0, 0.3, 0.9], [0.0, 0.3, 0.9], [0, 0, 0]]))
    flatter = apply_light(
        image, seen_as([[1.0, 0.0], [0.0, 1.0]], (1.0, 0.5)), box
    )  # about the content's mean, 0.8 / 3
    middle = 0.8 / 6
    row = [middle, middle + 0.1, middle + 0.3]
    torch.testing.assert_close(flatter[0, 0], torch.tensor([row, row, [0, 0, 0]]))
    both = apply_light(image, seen_as([[1.0, 0.0], [0.0, 1.0]], (1.5, 1.5)), box)
    torch.testing.assert_close(
        both[0, 0, 0], torch.tensor([0.0, 0.25, 1.0])
    )  # 0.4 -+ 1.5 x, kept within black and white


def test_no_light_leaves_pixels_unchanged() -> None:
    image = torch.rand(2, 1, 4, 4)
    view = draw_views(2, 4, AugmentationConfig(), torch.Generator())
    assert apply_light(image, view, None) is image


def test_disabled_options_draw_no_random_numbers() -> None:
    """Shifts and flips of a batch do not depend on later options, and disabled options draw nothing."""
    plain, moved = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    old = draw_views(16, 20, AugmentationConfig(), plain)
    new = draw_views(16, 20, AugmentationConfig(rotation=10, scale=(0.9, 1.1), brightness=0.2, contrast=0.2), moved)
    assert torch.equal(old.rows_BH, new.rows_BH) and torch.equal(old.columns_BW, new.columns_BW)
    reference = torch.Generator().manual_seed(4)
    for _ in range(2):
        torch.randint(-2, 3, (16, 1), generator=reference)
        torch.rand(16, 1, generator=reference)
    assert torch.equal(plain.get_state(), reference.get_state())


def test_later_fields_at_their_default_are_not_in_dumps_or_fingerprints() -> None:
    config = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}})
    assert config.model_dump()["augmentation"] == {"shift": 0.1, "flip_horizontal": True, "flip_vertical": False}
    turned = config.model_copy(update={"augmentation": AugmentationConfig(rotation=5)})
    assert turned.model_dump()["augmentation"]["rotation"] == 5
    assert fingerprint(turned.model_dump(mode="json")) != fingerprint(config.model_dump(mode="json"))
    assert turned.fingerprint() != config.fingerprint()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"rotation": -5}, "augmentation.rotation"),
        ({"rotation": 270}, "augmentation.rotation"),
        ({"scale": [1.2, 0.8]}, r"augmentation.scale: the smaller factor must come first; write \[0.8, 1.2\]"),
        ({"scale": 1.2}, "augmentation.scale"),
        ({"scale": [0, 1]}, r"augmentation.scale.0"),
        ({"scale": [0.9, 1.0, 1.1]}, "augmentation.scale"),
        ({"brightness": 1}, "augmentation.brightness"),
    ],
)
def test_impossible_augmentations_are_refused(content: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(AugmentationConfig, content, "augmentation")
