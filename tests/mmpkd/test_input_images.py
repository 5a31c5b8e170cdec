"""Input images of an exported student: the spacing of their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpkd.input_images import spacing_of
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
