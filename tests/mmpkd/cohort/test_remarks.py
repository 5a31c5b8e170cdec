"""What is odd about a cohort's pixels and regions is said at prepare, and again by show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmpkd.cohort.decode import Clahe, Depth, measure_appearance
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.remarks import nearly_black_or_white
from tests.mmpkd.cohort.cbis_trees import write_dicom
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort

GREY = (
    "images in colour, be it a tint or a mark, stored as grey: {} of 30; channels: 3 in cohort.params (reader table) "
    "keeps the colours"
)


def even(index: int) -> np.ndarray:
    """A picture like any other of its cohort."""
    return np.random.default_rng(index).integers(60, 140, (20, 30), dtype=np.uint8)


def coloured(index: int) -> np.ndarray:
    return np.dstack([even(index), even(index) // 3, even(index) // 4])


def notes(
    folder: Path, image: Callable[[int], np.ndarray], mask: Callable[[int], np.ndarray] | None = None, **params: Any
) -> list[str]:
    table = write_cohort(folder, cases(15))
    for index, row in table.iterrows():
        number = int(str(index))
        Image.fromarray(image(number)).save(folder / "images" / row["image"])
        if mask is not None and row["mask"]:
            Image.fromarray(mask(number)).save(folder / row["mask"])
    store = prepare(config(folder, **params), folder / "cache")
    return [note for note in store.manifest["notes"] if "empty masks" not in note]


def test_nothing_odd_nothing_said(tmp_path: Path) -> None:
    assert notes(tmp_path, even) == []


@pytest.mark.parametrize("scale", [100, 1])
def test_two_machines_under_one_window(tmp_path: Path, scale: int) -> None:
    """Stored means of 24 and 96: the second machine's values are a quarter of the first's."""
    kind = np.uint16 if scale > 1 else np.uint8
    (note,) = notes(tmp_path, lambda index: even(index).astype(kind) * kind(scale) // kind(1 + 3 * (index % 2)))
    assert note.startswith("warning: stored images differ in brightness, means from ")
    how = "one window, " if scale > 1 else "values are kept as they are. If they come from several machines"
    assert how in note


def test_blank_images_are_counted(tmp_path: Path) -> None:
    said = notes(tmp_path, lambda index: even(index) if index > 1 else np.full((20, 30), 90, np.uint8))
    assert said == ["warning: images of one value all over: 2 of 30"]


def test_12_bits_cut_to_8(tmp_path: Path) -> None:
    """Up to 12 of 255, as Pillow makes of 12-bit values in 16-bit colour."""
    (note,) = notes(tmp_path, lambda index: even(index) // 10)
    assert "in no image is more than a hundredth brighter than 13 of 255" in note


def test_files_that_differ_in_channels(tmp_path: Path) -> None:
    def mixed(index: int) -> np.ndarray:
        return coloured(index) if index % 3 else even(index)

    (note,) = notes(tmp_path / "grey", mixed)
    assert note == GREY.format(20)
    (note,) = notes(tmp_path / "colour", mixed, channels=3)
    assert note.startswith("warning: images without colour among those with: 10 of 30")
    assert notes(tmp_path / "all", coloured, channels=3) == []


def test_all_of_a_faint_tint(tmp_path: Path) -> None:
    """A display's sepia: ten levels between red and blue, in every image."""

    def tinted(index: int) -> np.ndarray:
        return np.dstack([even(index) + 5, even(index), even(index) - 5]).astype(np.uint8)

    assert notes(tmp_path, tinted) == [GREY.format(30)]


def test_one_mark_in_colour(tmp_path: Path) -> None:
    def marked(index: int) -> np.ndarray:
        picture = np.dstack([even(index)] * 3)
        picture[2:4, 2:4] = [230, 200, 20]
        return picture

    assert notes(tmp_path, marked) == [GREY.format(30)]


def test_grey_in_three_channels_is_not_colour(tmp_path: Path) -> None:
    """Nor is what a lossy format makes of it: two levels between channels."""

    def grey(index: int) -> np.ndarray:
        return np.dstack([even(index), even(index), even(index) + np.uint8(2 * (index % 2))])

    assert notes(tmp_path, grey) == []


def test_a_lesion_that_is_black_on_white(tmp_path: Path) -> None:
    def inverted(index: int) -> np.ndarray:
        mask = np.full((20, 30), 255, np.uint8)
        mask[5:10, 10:20] = 0
        return mask

    (note,) = notes(tmp_path / "bright", even, inverted)
    assert note.startswith("warning: regions of lesion that cover more than half of their image: 15 of 15. If their")
    assert notes(tmp_path / "dark", even, inverted, mask_value=0) == []


def test_a_value_that_no_mask_has(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, even, mask_value=7)
    assert note.startswith(
        "warning: not one sample has a region of lesion: all its masks are empty, or lack its mask_v"
    )


def test_one_image_of_a_larger_range(tmp_path: Path) -> None:
    """Its window leaves 16 of 256 levels to the others, of which the percentiles of their means tell nothing."""

    def values(index: int) -> np.ndarray:
        return even(index).astype(np.uint16) * np.uint16(16 if index != 4 else 400)

    (note,) = notes(tmp_path / "range", values)
    assert note.startswith("warning: images that are all but black as they are stored: 29 of 30; one window, ")


def test_letters_burnt_into_every_image(tmp_path: Path) -> None:
    def burnt(index: int) -> np.ndarray:
        pixels = even(index).astype(np.uint16) * np.uint16(16)
        pixels[0, :10] = 65535
        return pixels

    (note,) = notes(tmp_path, burnt)
    assert note.startswith("warning: images that are all but black as they are stored: 30 of 30")


def test_a_ground_that_is_white_and_less_than_half(tmp_path: Path) -> None:
    def inverted(index: int) -> np.ndarray:
        mask = np.full((20, 30), 255, np.uint8)
        mask[2:18, 2:28] = 0
        return mask

    (note,) = notes(tmp_path, even, inverted)
    assert note.startswith("warning: regions of lesion that reach all four corners of their image: 15 of 15")


def test_outlines_that_are_not_filled(tmp_path: Path) -> None:
    def outline(index: int) -> np.ndarray:
        mask = np.zeros((20, 30), np.uint8)
        mask[4:16, 4:26] = 255
        mask[5:15, 5:25] = 0
        return mask

    (note,) = notes(tmp_path, even, outline)
    assert note.startswith("warning: regions of lesion that are hollow: 15 of 15")


@pytest.mark.parametrize(
    ("scan", "told"),
    [
        (np.zeros((8, 9), np.uint8), "images of view 'scan' of one value all over: 30 of 30"),
        (np.arange(72, dtype=np.uint8).reshape(8, 9) // 6, "is more than a hundredth brighter than 11 of 255 (images"),
    ],
)
def test_a_further_image_is_looked_at_too(tmp_path: Path, scan: np.ndarray, told: str) -> None:
    table = write_cohort(tmp_path, cases(15).assign(scan="scan.png"))
    for index, name in enumerate(table["image"]):
        Image.fromarray(even(index)).save(tmp_path / "images" / name)
    Image.fromarray(scan).save(tmp_path / "scan.png")
    told_notes = prepare(config(tmp_path, views={"scan": "scan"}), tmp_path / "cache").manifest["notes"]
    assert any(told in note for note in told_notes)


def test_units_that_differ(tmp_path: Path) -> None:
    """A CT without slope and intercept is not in Hounsfield units, and one window cannot serve it."""
    table = cases(15).assign(mask="")
    table["image"] = [f"scan{index}.dcm" for index in range(30)]
    (tmp_path / "images").mkdir()
    table.to_csv(tmp_path / "cases.csv", index=False)
    for index, name in enumerate(table["image"]):
        rescale = {"RescaleSlope": 1, "RescaleIntercept": -1000} if index else {}
        write_dicom(tmp_path / "images" / name, even(index).astype(np.uint16) * 16, Modality="CT", **rescale)
    (note,) = [note for note in prepare(config(tmp_path), tmp_path / "cache").manifest["notes"] if "kinds" in note]
    assert "(CT in HU: 29, CT in no stated unit: 1), and one window serves all of them" in note


@pytest.mark.parametrize(("scale", "told"), [(100, "white"), (1, "black"), (16, "")])
def test_new_images_in_the_window_of_a_student(scale: int, told: str) -> None:
    depth = Depth(16, (0.0, 4095.0), Clahe(0.01, 8))
    lines = nearly_black_or_white(
        [measure_appearance(even(0).astype(np.uint16) * np.uint16(scale), depth)], depth, "images"
    )
    assert [line.split(" as ")[0] for line in lines] == [f"warning: images that are all but {told}"] * bool(told)
