"""CBIS-DDSM from its real description files, on generated image files in each layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import reader_for
from mmpkd.cohort.facts import Reader, Scan
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig
from tests.mmpkd.cohort.cbis_trees import NAMES, read_rows, write_rows, write_tree

CSV = Path(__file__).parents[4] / "shared" / "data" / "cbis_csv"
LAYOUTS = ("descriptive", "classic", "jpeg")
# The layouts are compared on one patient in fifty; WHOLE_CBIS=1 takes all of them (three minutes).
WHOLE = bool(os.environ.get("WHOLE_CBIS"))
pytestmark = pytest.mark.skipif(not CSV.is_dir(), reason=f"the real description files are not in {CSV}")
Rows = list[dict[str, str]]


def written(root: Path, layout: str, keep: Callable[[Rows], Rows] = list) -> Path:
    """A copy of the data set in a layout, with the rows of each description file that `keep` keeps."""
    rows = []
    for name in NAMES:
        some = keep(read_rows(CSV, [name]))
        write_rows(root / "csv" / name if layout == "jpeg" else root / name, some)
        rows += some
    write_tree(root, rows, layout)
    return root


def some(rows: Rows) -> Rows:
    return [row for row in rows if WHOLE or row["patient_id"].endswith(("07", "37"))]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {layout: written(tmp_path_factory.mktemp(layout), layout, some) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def stores(trees: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    cache = tmp_path_factory.mktemp("cache")
    return {layout: prepare(config(root), cache / layout) for layout, root in trees.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file of the data set, in the layout that is the quickest to write."""
    return written(tmp_path_factory.mktemp("whole"), "jpeg")


@pytest.fixture(scope="module")
def reader(whole: Path) -> Reader:
    """The reader of the whole data set, which keeps where the files of each sample lie."""
    return reader_for(config(whole))


@pytest.fixture(scope="module")
def scan(reader: Reader) -> Scan:
    return reader.scan()


def config(root: Path, **params: Any) -> CohortConfig:
    return CohortConfig(reader="cbis_ddsm", root=root, image_size=32, params=params)


def test_the_counts_are_the_published_ones(whole: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame(read_rows(CSV))
    assert rows["image file path"].nunique() == 3103 and rows["patient_id"].nunique() == 1566
    store = prepare(config(whole), tmp_path)
    assert store.manifest["counts"]["samples"] == 2394 + 645
    assert len(store.rows("test")) == 645
    assert sum(len(store.rows("val", fold)) for fold in range(4)) == 2394
    assert store.manifest["counts"]["positive"] == {"malignant/malignant": 1079 + 264}
    assert store.manifest["left_out"] == {}
    assert store.manifest["counts"]["empty_masks"] == 0
    told = " ".join(store.manifest["notes"])
    assert "31 patients" in told and "64 training images" in told and "42 views" in told


def test_the_three_layouts_agree(stores: Mapping[str, Store]) -> None:
    first, *others = stores.values()
    names = [name for name, one in first.facts.columns.items() if one.role in ("descriptor", "context", "near_label")]
    for other in others:
        assert (first.sample_ids == other.sample_ids).all()
        assert (first.target_NK == other.target_NK).all() and (first.patient_N == other.patient_N).all()
        pd.testing.assert_frame_equal(first.privileged(names), other.privileged(names))
        rows = np.arange(len(first.sample_ids))
        assert (first.roi_mask(rows) == other.roi_mask(rows)).all()
        apart_N = np.abs(first.image_NCHW.astype(int) - other.image_NCHW).mean(axis=(1, 2, 3))
        assert apart_N.max() < 2
    assert first.roi_mask(rows).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("params", "samples", "malignant"),
    [
        ({"kinds": ["mass"]}, 1231 + 361, None),  # neither split shares a patient with itself
        ({"kinds": ["calc"]}, 1227 + 284, None),
        ({"kinds": ["mass"], "rows": "abnormality"}, 1318 + 378, 637 + 147),
        ({"kinds": ["calc"], "rows": "abnormality"}, 1546 + 326, 544 + 129),
        ({}, 2394 + 645, 1079 + 264),
        ({"mixed": "left_out"}, 2394 + 645 - 17, 1079 + 264 - 17),
    ],
)
def test_rows_and_kinds(whole: Path, scan: Scan, params: Any, samples: int, malignant: int | None) -> None:
    one = reader_for(config(whole, **params)).scan() if params else scan
    assert len(one.samples) == len(one.files) == samples
    assert malignant is None or one.labels.sum().item() == malignant


def test_several_abnormalities_counted() -> None:
    rows = pd.DataFrame(read_rows(CSV))
    images = rows.groupby("image file path")["pathology"].agg(lambda cells: [one == "MALIGNANT" for one in cells])
    several = images[images.map(len) > 1]
    assert len(several) == 293 and (several.map(lambda one: len(set(one))) > 1).sum() == 17


def test_an_image_with_several_abnormalities(whole: Path, reader: Reader, scan: Scan) -> None:
    """P_00797: oval and circumscribed (3, benign), irregular and spiculated (5, malignant); both of subtlety 5."""
    sample = "Mass-Training_P_00797_LEFT_CC"
    cells = scan.privileged.loc[sample]
    assert cells["mass_shape"] == "IRREGULAR-OVAL" and cells["mass_margins"] == "CIRCUMSCRIBED-SPICULATED"
    assert cells["assessment"] == "5" and cells["subtlety"] == "5" and cells["breast_density"] == "2"
    assert cells["left_or_right_breast"] == "LEFT" and cells["image_view"] == "CC" and pd.isna(cells["calc_type"])
    assert scan.labels.loc[sample].item() == 1 and scan.samples.loc[sample, "split"] == "train"
    raw = reader.load(sample)
    assert [label for label, _ in raw.rois] == ["lesion", "lesion"]
    assert not np.array_equal(raw.rois[0][1], raw.rois[1][1])

    apart = reader_for(config(whole, kinds=["mass"], rows="abnormality"))
    scanned = apart.scan()
    assert scanned.labels.loc[[f"{sample}_1", f"{sample}_2"]].to_numpy().ravel().tolist() == [0, 1]
    assert scanned.privileged.loc[f"{sample}_1", "mass_shape"] == "OVAL"
    (region,) = apart.load(f"{sample}_2").rois
    assert np.array_equal(region[1], raw.rois[1][1])


def test_cells_as_they_really_are(scan: Scan) -> None:
    """Both spellings of density, hyphens in any order, doubled values, LUCENT_CENTERED, N/A, and grade 0."""
    cells = scan.privileged
    assert set(cells["breast_density"].dropna()) == set("1234")  # 0 of P_01743 is missing
    assert set(cells["subtlety"].dropna()) == set("12345")
    atoms = {name: set(cells[name].dropna().str.split("-").explode()) for name in cells if "_" in name}
    assert atoms["mass_margins"] == {"CIRCUMSCRIBED", "SPICULATED", "ILL_DEFINED", "OBSCURED", "MICROLOBULATED"}
    assert atoms["calc_distribution"] == {"CLUSTERED", "SEGMENTAL", "REGIONAL", "LINEAR", "DIFFUSELY_SCATTERED"}
    assert len(atoms["mass_shape"]) == 8 and len(atoms["calc_type"]) == 13
    assert "LUCENT_CENTERED" not in atoms["calc_type"]
    assert not cells["mass_shape"].str.contains("OVAL-IRREGULAR").any()  # sorted
    assert set(cells["abnormality_type"]) == {"mass", "calcification"}
    assert not {"pathology", "patient_id"} & set(cells)
