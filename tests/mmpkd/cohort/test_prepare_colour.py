"""Preparing the colour cohort where something is the matter with some of its samples; see `colour_cohort.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort.prepare import prepare
from tests import colour_cohort
from tests.colour_cohort import LABELS, letterboxed


@pytest.fixture
def root(colour_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(colour_root, tmp_path / "raw")


def test_who_is_left_out_moves_nobody_elses_pixels_labels_or_regions(root: Path, tmp_path: Path) -> None:
    table = colour_cohort.read(root)
    lost = list(table.index[[3, 20, 21]])
    for name in lost:
        (root / "images" / name).write_bytes(b"damaged")
    store = prepare(colour_cohort.config(root, max_bad=0.1), tmp_path / "cache")
    kept = table.drop(lost)
    assert store.sample_ids.tolist() == kept.index.tolist()
    np.testing.assert_array_equal(np.where(store.known_NK, store.target_NK, np.nan), kept[list(LABELS)].to_numpy())
    has_roi_NR = store.roi_mask(np.arange(len(kept))).any(axis=(2, 3))
    np.testing.assert_array_equal(has_roi_NR, kept[["mask", "left"]].notna().to_numpy())
    for row in range(0, len(kept), 4):
        name = store.sample_ids[row]
        np.testing.assert_array_equal(store.image_NCHW[row].transpose(1, 2, 0), letterboxed(root / "images" / name))
        scan = letterboxed(root / kept.loc[name, "scan"])
        np.testing.assert_array_equal(store.view("mri")[row].transpose(1, 2, 0), scan)


def test_the_probe_does_not_see_what_is_told_of_sealed_patients(root: Path, tmp_path: Path) -> None:
    """Their cells state the label now, or the other way round; the same patients are dealt to the same parts."""
    before = prepare(colour_cohort.config(root), tmp_path / "before")
    table = pd.read_csv(root / "cases.csv", dtype=str, keep_default_na=False).set_index("image")
    sealed = before.sample_ids[before.rows("test")]
    table.loc[sealed, "shape"] = np.where(table.loc[sealed, "pathology"] == "malignant", "oval", "irregular")
    table.loc[sealed, "size"] = "40.0"
    table.reset_index().to_csv(root / "cases.csv", index=False)
    after = prepare(colour_cohort.config(root), tmp_path / "after")
    assert after.sample_ids[after.rows("test")].tolist() == sealed.tolist()
    assert len(before.manifest["probe"]) >= 5 and after.manifest["probe"] == before.manifest["probe"]
