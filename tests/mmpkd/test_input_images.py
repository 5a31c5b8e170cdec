"""Input images of an exported student: warnings about them, and the spacing of their pixels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmpkd.cohort.decode import Depth, measure_appearance
from mmpkd.prediction.input_images import MASK, spacing_of, warnings_in_words, warnings_of
from tests.mmpkd.cohort.cbis_trees import write_dicom
from tests.mmpkd.cohort.radpath_trees import nifti, volume


@pytest.mark.parametrize(
    ("elements", "spacing"),
    [
        ({"PixelSpacing": [0.3, 0.2]}, 0.2),  # of rows, then of columns
        ({"ImagerPixelSpacing": [0.3, 0.2]}, None),
        ({"PixelSpacing": [0.3, 0]}, None),
        ({}, None),
    ],
)
def test_the_spacing_of_columns_of_a_dicom_file(
    tmp_path: Path, elements: dict[str, list[float]], spacing: float | None
) -> None:
    write_dicom(tmp_path / "a.dcm", np.zeros((4, 6), np.uint8), **elements)
    assert spacing_of(tmp_path / "a.dcm") == spacing


@pytest.mark.parametrize(("unit", "spacing"), [(2, 0.7), (1, None), (0, None)])  # millimetres, metres, unknown
def test_the_spacing_of_a_volume_is_that_of_the_axis_to_the_right(
    tmp_path: Path, unit: int, spacing: float | None
) -> None:
    """The first axis of this volume runs to the back, its second one to the right."""
    content = bytearray(nifti(volume(), ((0, 0.7, 0), (-0.5, 0, 0), (0, 0, 2))))
    content[123] = unit
    (tmp_path / "t1.nii").write_bytes(content)
    assert spacing_of(tmp_path / "t1.nii") == (spacing and pytest.approx(spacing))


def test_a_picture_states_no_spacing(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png", dpi=(300, 300))
    assert spacing_of(tmp_path / "a.png") is None


@pytest.mark.parametrize(("coloured", "wanted"), [(1.0, ("without colour",)), (0.5, ()), (None, ())])
def test_grey_images_are_unusual_for_a_student_of_coloured_ones(
    coloured: float | None, wanted: tuple[str, ...]
) -> None:
    card, origin = SimpleNamespace(channels=3, slices=(), depth=Depth()), SimpleNamespace(coloured=coloured)
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    for image in (grey, np.repeat(grey[..., None], 3, axis=2)):
        look = measure_appearance(image, card.depth)
        assert warnings_of(image, "a.png", card, origin, look) == wanted  # type: ignore[arg-type]
    assert warnings_of(grey, "a.png", card, None, look) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "masks", "advice"),
    [
        (["case001.png", "case002.png"], ["case001_tumor.png"], "pattern='case???.png' leaves them out"),
        (["a1.png", "b12.png"], ["a1_mask.png"], "pattern='*[0-9].png' leaves them out"),
        (["a.jpg", "b.jpg"], ["a.png"], "pattern='*.jpg' leaves them out"),
        (["img_a.png", "img_b.png"], ["mask_a.png"], "pattern='img_*' leaves them out"),
        (["images/a.png", "images/b.png"], ["masks/a.png"], "pattern='images/*' leaves them out"),
        (["a.png", "b.png"], ["c.png"], "move the images to a folder of their own"),
        ([], ["c.png", "d.png"], "If so, name the folder of the images"),
        (["a[1].png", "a[2].png"], ["a[1]m.png"], "pattern='a[[]?].png' leaves them out"),
    ],
)
def test_a_pattern_that_leaves_masks_out_is_named(images: list[str], masks: list[str], advice: str) -> None:
    (line,) = warnings_in_words({MASK: masks}, Path("in"), [*images, *masks])
    assert advice in line
