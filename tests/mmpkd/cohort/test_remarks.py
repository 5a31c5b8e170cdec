"""What is odd about a cohort's pixels and regions is said at prepare, and again by show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmpkd.cohort.prepare import prepare
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort


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
    assert "in no image is more than a hundredth brighter than 12 of 255" in note


def test_files_that_differ_in_channels(tmp_path: Path) -> None:
    def mixed(index: int) -> np.ndarray:
        return coloured(index) if index % 3 else even(index)

    (note,) = notes(tmp_path / "grey", mixed)
    assert note == "images in colour, stored as grey: 20 of 30; channels: 3 keeps the colours"
    (note,) = notes(tmp_path / "colour", mixed, channels=3)
    assert note.startswith("warning: images without colour among those with: 10 of 30")
    assert notes(tmp_path / "all", coloured, channels=3) == []


def test_a_lesion_that_is_black_on_white(tmp_path: Path) -> None:
    def inverted(index: int) -> np.ndarray:
        mask = np.full((20, 30), 255, np.uint8)
        mask[5:10, 10:20] = 0
        return mask

    (note,) = notes(tmp_path / "bright", even, inverted)
    assert note.startswith("warning: regions of lesion that cover more than half of their image: 15 of 15. If they")
    assert notes(tmp_path / "dark", even, inverted, mask_value=0) == []


def test_a_value_that_no_mask_has(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, even, mask_value=7)
    assert note.startswith(
        "warning: not one sample has a region of lesion: all its masks are empty, or lack its mask_v"
    )
