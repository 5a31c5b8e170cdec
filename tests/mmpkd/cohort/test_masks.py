"""A region is told from an edge by its shape: none is lost without a word, and lossy edges are no regions."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmpkd.cohort import reader_for
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.formats.masks import mask_of_values, read_mask, two_valued_mask
from mmpkd.cohort.formats.nifti import SlicePosition, read_slice_mask
from mmpkd.types import ConfigError
from tests.mmpkd.cohort_fixtures import config, write_cohort

LESION, SECOND = np.s_[10:40, 10:40], np.s_[60:70, 60:70]  # 9 % and 1 % of the image
MARGIN = np.s_[2:, 2:]


def drawn(second: int, first: int = 255, ground: int = 0, where: Any = SECOND) -> np.ndarray:
    """100 x 100 with two square regions."""
    pixels = np.full((100, 100), ground, np.uint8)
    pixels[LESION] = first
    pixels[where] = second
    return pixels


def lossy(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def disc(size: int, radius: int, smoothing: int = 1) -> np.ndarray:
    """A white disc in the middle, drawn `smoothing` times as large and shrunk."""
    large = Image.new("L", (size * smoothing,) * 2)
    ends = [(size // 2 - radius) * smoothing, (size // 2 + radius) * smoothing]
    ImageDraw.Draw(large).ellipse([ends[0], ends[0], ends[1], ends[1]], fill=255)
    return np.asarray(large.resize((size, size), Image.Resampling.BOX))


@pytest.mark.parametrize("second", [1, 20, 40, 127, 200, 254])
def test_a_region_of_another_value_is_never_lost(second: int) -> None:
    """Under 2 % of the image, as 127 beside 255 was lost."""
    for pixels in (drawn(second), 255 - drawn(second), np.dstack([drawn(second)] * 3)):
        with pytest.raises(BadSample, match=r"3 (values|colours).*ground included; two are wanted: say which"):
            two_valued_mask(pixels, "")


@pytest.mark.parametrize(
    "pixels",
    [
        drawn(127, where=np.s_[60:62, 60:62]),
        drawn(127, where=np.s_[43:45, 20:22]),  # near the bright one
        drawn(20, where=np.s_[60:62, 60:90]),  # a line
        drawn(127, where=np.s_[10:40, 40:50]),  # one that touches
        drawn(1, first=1, where=np.s_[50, 50:51]) + drawn(254, first=0, where=np.s_[10, 10:11]),  # one bright pixel
        lossy(drawn(127), 90),
        lossy(drawn(200), 90),
        lossy(drawn(20), 90),
    ],
    ids=["four pixels", "four near", "line", "touching", "hidden", "lossy 127", "lossy 200", "lossy 20"],
)
def test_nor_a_small_or_lossy_one(pixels: np.ndarray) -> None:
    with pytest.raises(BadSample, match="say which is the region with mask_value"):
        two_valued_mask(pixels, "")


@pytest.mark.parametrize("quality", [10, 20, 50, 75, 95, 100])
@pytest.mark.parametrize("sharp", [disc(100, 30), disc(100, 5), drawn(255)], ids=["disc", "small", "squares"])
def test_lossy_edges_are_no_regions(sharp: np.ndarray, quality: int) -> None:
    mask = two_valued_mask(lossy(sharp, quality), "")
    assert (mask != (sharp > 127)).mean() < 0.001


def test_smoothed_edges_are_no_regions() -> None:
    """On a small image they are more than 2 % of it."""
    for size, radius in ((24, 6), (16, 4), (200, 40)):
        smooth = disc(size, radius, smoothing=8)
        assert (two_valued_mask(smooth, "") == (smooth > 127)).all()
    for scale in (2, 8):
        wide = np.asarray(Image.fromarray(disc(50, 10)).resize((50 * scale,) * 2, Image.Resampling.BICUBIC))
        assert (two_valued_mask(wide, "") == (wide > wide.max() / 2)).all()


def test_masks_of_16_bits() -> None:
    for pixels in (drawn(255), lossy(disc(100, 30), 75)):
        assert (two_valued_mask(pixels.astype(np.uint16) * 257, "") == two_valued_mask(pixels, "")).all()
    for pixels in (drawn(127), lossy(drawn(127), 90)):
        with pytest.raises(BadSample, match="say which is the region"):
            two_valued_mask(pixels.astype(np.uint16) * 257, "")
    smooth = np.maximum(disc(100, 30, smoothing=8), drawn(20, first=0, where=np.s_[2:12, 2:12]))
    with pytest.raises(BadSample, match="3 values"):
        two_valued_mask(smooth.astype(np.uint16) * 257, "")


def test_a_picture_is_no_mask() -> None:
    rng = np.random.default_rng(0)
    for picture in (
        rng.integers(0, 256, (32, 32), dtype=np.uint8),
        np.tile(np.arange(250, dtype=np.uint8), (100, 1)),
        np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).resize((90, 90))),
    ):
        with pytest.raises(BadSample, match="shades of grey"):
            two_valued_mask(picture, "")


def test_colours_are_told_apart_though_their_grey_is_alike() -> None:
    colours = np.zeros((100, 100, 3), np.uint8)
    colours[LESION] = (255, 0, 0)
    assert two_valued_mask(colours, "").mean() == 0.09
    colours[SECOND] = (0, 130, 0)  # luma 76, as red
    with pytest.raises(BadSample, match="3 colours"):
        two_valued_mask(colours, "")
    with pytest.raises(BadSample, match="in colour; mask_value names a value of grey"):
        mask_of_values(colours, [76], "")


def test_a_mask_may_say_its_region_by_transparency(tmp_path: Path) -> None:
    def saved(grey: np.ndarray, alpha: np.ndarray) -> Path:
        Image.fromarray(np.dstack([grey, grey, grey, alpha])).save(tmp_path / "it.png")
        return tmp_path

    white, black, shape = np.full((100, 100), 255, np.uint8), np.zeros((100, 100), np.uint8), (100, 100)
    region = drawn(255)
    assert (read_mask(saved(white, region), "it.png", shape) == (region > 0)).all()
    with pytest.raises(BadSample, match="drawn in its transparency alone"):
        read_mask(saved(black, region), "it.png", shape)
    assert not read_mask(saved(black, white), "it.png", shape).any()
    with pytest.raises(BadSample, match="3 colours"):
        read_mask(saved(white, drawn(127)), "it.png", shape)


def test_a_palette_of_two_regions(tmp_path: Path) -> None:
    image = Image.fromarray(drawn(2, first=1)).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])  # as of PASCAL VOC
    image.save(tmp_path / "it.png")
    with pytest.raises(BadSample, match="3 colours"):
        read_mask(tmp_path, "it.png", (100, 100))


def test_which_value_is_the_region_may_be_said() -> None:
    first, second = np.zeros((2, 100, 100), bool)
    first[LESION], second[SECOND] = True, True
    for low, high in ((1, 2), (127, 255), (254, 255)):
        pixels = drawn(low, high)
        assert (mask_of_values(pixels, [low], "") == second).all() and (
            mask_of_values(pixels, [high], "") == first
        ).all()
        assert (mask_of_values(pixels, [low, high], "") == first | second).all()
        assert not mask_of_values(pixels, [3], "").any()
    inverted = drawn(0, first=255, ground=255)
    assert (mask_of_values(inverted, [0], "") == second).all()
    for quality in (80, 97):
        assert (mask_of_values(lossy(inverted, quality), [0], "") == second).all()
    assert not mask_of_values(inverted, [1], "").any()
    for pixels in (drawn(127), drawn(255)):
        with pytest.raises(BadSample, match="mask_value cannot choose"):
            mask_of_values(lossy(pixels, 80), [127], "")


def test_two_labels_of_one_file(tmp_path: Path) -> None:
    table = write_cohort(tmp_path)
    for mask in table["mask"][table["mask"] != ""]:
        pixels = np.zeros((20, 30), np.uint8)
        pixels[5:10, 10:19], pixels[12:18, 3:9] = 1, 2
        Image.fromarray(pixels).save(tmp_path / mask)
    masks = {"cyst": "mask", "solid": "mask"}
    raw = reader_for(config(tmp_path, masks=masks, mask_value={"cyst": 1, "solid": [2, 9]})).load("case0.png")
    assert {label: int(mask.sum()) for label, mask in raw.rois} == {"cyst": 45, "solid": 36}
    with pytest.raises(BadSample, match=r"3 values \(0, 1, 2\)"):
        reader_for(config(tmp_path)).load("case0.png")
    assert reader_for(config(tmp_path, mask_value=2)).load("case0.png").rois[0][1].sum() == 36
    for wrong, why in (({"lesoin": 1}, "did you mean 'lesion'"), ({"lesion": -1}, "greater than or equal to 0")):
        with pytest.raises(ConfigError, match=why):
            reader_for(config(tmp_path, mask_value=wrong))


def test_labels_of_a_volume(tmp_path: Path) -> None:
    voxels = np.zeros((4, 5, 3), np.uint8)
    voxels[0, :, 1], voxels[1, :2, 1] = 1, 2
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "it.nii")
    with pytest.raises(BadSample, match="3 different values; two are wanted: say with mask_value"):
        read_slice_mask(tmp_path, "it.nii", SlicePosition([1], np.eye(4)), (5, 4))
    counts = [
        int(read_slice_mask(tmp_path, "it.nii", SlicePosition([1], np.eye(4)), (5, 4), values).sum())
        for values in ([1], [2], [1, 2])
    ]
    assert counts == [5, 2, 7]


@pytest.mark.parametrize("affine", [np.diag([1, -1, 1, 1]), np.diag([2, 1, 1, 1]), np.eye(4) + np.eye(4, k=3)])
def test_a_mask_that_lies_elsewhere_than_its_image(tmp_path: Path, affine: np.ndarray) -> None:
    """As of a mask that was saved with another affine: turned round, of larger voxels, or moved."""
    voxels = np.zeros((4, 5, 3), np.uint8)
    voxels[0, :, 1] = 1
    nibabel.Nifti1Image(voxels, affine).to_filename(tmp_path / "it.nii")
    with pytest.raises(BadSample, match="the mask lies elsewhere than its image"):
        read_slice_mask(tmp_path, "it.nii", SlicePosition([1], np.eye(4)), (5, 4))


def test_a_volume_without_a_ground(tmp_path: Path) -> None:
    voxels = np.ones((4, 5, 3), np.uint8)
    voxels[0, :, 1] = 2
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "it.nii")
    with pytest.raises(BadSample, match="has no voxel of value 0"):
        read_slice_mask(tmp_path, "it.nii", SlicePosition([1], np.eye(4)), (5, 4))


@pytest.mark.parametrize("width", [1, 2])
def test_a_dark_line_that_hangs_on_a_bright_region(width: int) -> None:
    """No nine neighbours share its value, and it is no island: yet it is far from the bright region's edge."""
    mask = np.zeros((64, 64), np.uint8)
    mask[14 : 14 + width, 20:60] = 100
    mask[10:20, 10:20] = 255
    with pytest.raises(BadSample, match="a region darker than another"):
        two_valued_mask(mask, "it.png")
