"""CBIS-DDSM on invented description files of the published form, which every clone has; see `test_cbis_ddsm.py` for
the counts of the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import reader_for
from mmpkd.config import CohortConfig
from tests.mmpkd.cohort.cbis_trees import IMAGE, MASK, film, invented_rows, region, write_some

LAYOUTS = ("descriptive", "classic", "jpeg")
TWICE = "Mass-Training_P_00002_RIGHT_CC"  # its image shows two lesions


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {layout: tmp_path_factory.mktemp(layout) for layout in LAYOUTS}
    for layout, root in found.items():
        write_some(root, layout, most=None)
    return found


def config(root: Path, **params: object) -> CohortConfig:
    return CohortConfig(reader="cbis_ddsm", root=root, image_size=32, params=params)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_image_has_its_own_row_film_and_masks(roots: Mapping[str, Path], layout: str) -> None:
    reader = reader_for(config(roots[layout]))
    scan = reader.scan()
    rows = pd.DataFrame([row for rows in invented_rows().values() for row in rows])
    rows["sample"] = rows[IMAGE].str.split("/").str[0]
    for sample in scan.samples.index:
        own = rows[rows["sample"] == sample]
        assert scan.samples.loc[sample, "patient"] == own["patient_id"].iloc[0]
        assert scan.labels.loc[sample].item() == (own["pathology"] == "MALIGNANT").any()
        raw = reader.load(str(sample))
        shown = raw.image / 257 if layout != "jpeg" else raw.image.astype(float)
        wanted = film(own[IMAGE].iloc[0]) / 257
        assert shown.shape == wanted.shape and np.abs(shown - wanted).mean() < 2
        assert [label for label, _ in raw.rois] == ["lesion"] * len(own)
        for (_, mask), path in zip(raw.rois, own[MASK], strict=True):
            assert (mask != (region(path, wanted.shape) > 0)).mean() < 0.02


def test_a_patient_of_a_test_file_leaves_the_training_part(roots: Mapping[str, Path]) -> None:
    scan = reader_for(config(roots["jpeg"])).scan()
    parts = scan.samples.groupby("patient")["split"].agg(set)
    assert parts["P_00004"] == {"test"} and (parts.map(len) == 1).all()
    assert "Mass-Training_P_00004_LEFT_CC" not in scan.samples.index
    assert set(parts.index[parts == {"train"}]) == {f"P_{n:05}" for n in (1, 2, 3, 5, 6, 7, 20, 21, 22, 23)}
    assert "Mass-Training_P_00004_LEFT_CC" in reader_for(config(roots["jpeg"], kinds=["mass"])).scan().samples.index


def test_two_lesions_of_an_image_together_apart_and_left_out(roots: Mapping[str, Path]) -> None:
    together = reader_for(config(roots["jpeg"])).scan()
    cells = together.privileged.loc[TWICE]
    assert (cells["mass_shape"], cells["mass_margins"]) == ("IRREGULAR-OVAL", "CIRCUMSCRIBED-SPICULATED")
    assert cells["assessment"] == "5" and together.labels.loc[TWICE].item() == 1
    apart = reader_for(config(roots["jpeg"], rows="abnormality")).scan()
    assert apart.labels.loc[[f"{TWICE}_1", f"{TWICE}_2"]].to_numpy().ravel().tolist() == [0, 1]
    assert TWICE not in reader_for(config(roots["jpeg"], mixed="left_out")).scan().samples.index


def test_cells_of_one_meaning_are_one(roots: Mapping[str, Path]) -> None:
    """Orders of several values, two names of one calcification, what stands for missing."""
    cells = reader_for(config(roots["jpeg"])).scan().privileged
    assert cells.loc["Mass-Training_P_00005_LEFT_CC", "mass_shape"] == "LOBULATED-OVAL"
    assert cells.loc["Mass-Training_P_00007_LEFT_CC", "mass_shape"] == "LOBULATED-OVAL"
    lucent = ["Calc-Training_P_00021_LEFT_CC", "Calc-Test_P_00004_RIGHT_CC"]
    assert cells.loc[lucent, "calc_type"].tolist() == ["LUCENT_CENTER"] * 2
    assert cells.loc[lucent, "calc_distribution"].isna().all() and cells.loc[lucent, "mass_shape"].isna().all()
    empty = cells.loc["Mass-Training_P_00003_RIGHT_CC"]
    assert pd.isna(empty["subtlety"]) and pd.isna(empty["breast_density"])
    assert not {"pathology", "patient_id"} & set(cells)
