"""The published data set, as it is on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpkd.cohort import facts
from mmpkd.cohort.chosen_columns import check_columns
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.breast_lesions_usg import COLUMNS, IMAGES, BreastLesionsUsg, BreastLesionsUsgParams
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig
from mmpkd.types import CohortError
from tests.conftest import real_data

NAME = "breast_lesions_usg"


@pytest.fixture(scope="module")
def root() -> Path:
    return real_data(NAME)


@pytest.fixture(scope="module")
def store(root: Path, cache: Path) -> Store:
    return prepare(CohortConfig(reader=NAME, root=root, image_size=96), cache)


def test_252_labelled_images_with_masks(store: Store) -> None:
    assert store.image_NCHW.shape == (252, 1, 96, 96)
    assert store.known_NK.all() and store.target_NK.sum() == 98  # malignant; 154 benign
    everyone = np.arange(252)
    assert store.roi_mask(everyone).any(axis=(2, 3)).all()
    assert len(set(store.patient_N)) == 252 and store.manifest["counts"]["empty_masks"] == 0
    assert "left out, without a tumour mask: 4 normal" in store.manifest["notes"]


def test_parts_are_disjoint_and_stratified(store: Store) -> None:
    parts = [store.rows("train"), store.rows("val"), store.rows("test")]
    assert sum(map(len, parts)) == 252 and len(set(np.concatenate(parts))) == 252
    for rows in parts:
        assert store.target_NK[rows].mean() == pytest.approx(98 / 252, abs=0.02)


def test_masks_lie_where_the_published_ones_do(root: Path, store: Store) -> None:
    for row in (0, 100, 251):
        published = Image.open(root / IMAGES / f"{store.sample_ids[row]}_tumor.png").convert("L")
        top, left, bottom, right = store.content_box_N4[row]
        nearest = np.asarray(published.resize((right - left, bottom - top), Image.Resampling.NEAREST)) > 127
        inside = store.roi_mask(np.array([row]))[0, 0, top:bottom, left:right]
        assert (inside & nearest).sum() / (inside | nearest).sum() > 0.9


def test_table_cells_by_eye(store: Store) -> None:
    """case002 of the spreadsheet: age not available; some Margin lists what makes it not circumscribed."""
    columns = store.privileged(["Age", "Margin", "Signs", "BIRADS"])
    ages = columns["Age"].to_numpy()
    assert ages[0] == 57.0 and np.isnan(ages[1])
    atoms = set(columns["Margin"].str.split("&").explode())
    assert atoms == {"circumscribed", "indistinct", "angular", "spiculated", "microlobulated"}
    assert columns["Signs"].isna().sum() > 0 and "palpable" in set(columns["Signs"].str.split("&").explode())
    assert set(columns["BIRADS"]) == {"2", "3", "4a", "4b", "4c", "5"}


def test_the_sentence_of_a_lesion_by_eye(store: Store) -> None:
    """case001 and case005 of the spreadsheet."""
    told = store.text(["description"])["description"]
    assert told.iloc[0] == (
        "An irregular, heterogeneous mass with indistinct margins, posterior shadowing, no halo, no calcifications "
        "and skin thickening."
    )
    assert told.iloc[4] == (
        "An oval, complex cystic and solid mass with circumscribed margins, posterior enhancement, no halo, "
        "no calcifications and no skin thickening."
    )


def test_the_sentence_tells_the_descriptors_and_nothing_else(store: Store) -> None:
    """One sentence for each combination of descriptors, whatever age, symptoms and verdict stand beside it."""
    descriptors = store.privileged([column.name for column in COLUMNS if column.role == "descriptor"])
    told = store.text(["description"])["description"]
    assert told.notna().all() and told.nunique() == len(descriptors.drop_duplicates()) == 122
    assert (told.groupby([descriptors[name] for name in descriptors]).nunique() == 1).all()


def described(folder: Path, *lesions: dict[str, str]) -> list[str]:
    """The sentences of a table of these cells, all other descriptors missing; "" where there is none."""
    (folder / IMAGES).mkdir(exist_ok=True)
    missing = {column.name: "not applicable" for column in COLUMNS} | {"Age": "not available"}
    known = {"Classification": "benign", "Diagnosis": "cyst", "Symptoms": "breast scar", "BIRADS": "2"}
    files = [{"CaseID": str(one), "Image_filename": f"{one}.png"} for one in range(len(lesions))]
    rows = [missing | known | file | cells for file, cells in zip(files, lesions, strict=True)]
    pd.DataFrame(rows).to_excel(folder / "clinical.xlsx", index=False)
    text = BreastLesionsUsg(folder, BreastLesionsUsgParams()).scan().text
    assert text is not None
    return list(text["description"].fillna(""))


def test_what_is_missing_is_not_mentioned(tmp_path: Path) -> None:
    margins = {"Margin": "not circumscribed - angular&microlobulated&indistinct", "Halo": "yes"}
    assert described(
        tmp_path,
        {"Shape": "round"},
        {"Echogenicity": "isoechoic", "Calcifications": ""},
        margins | {"Calcifications": "in a mass"},
        {"Shape": "oval", "Echogenicity": "complex cystic/solid", "Margin": "circumscribed", "Skin_thickening": "no"},
        {"Calcifications": "not available"},
    ) == [
        "A round mass.",
        "An isoechoic mass.",
        "A mass with angular, microlobulated and indistinct margins, an echogenic halo and calcifications in the mass.",
        "An oval, complex cystic and solid mass with circumscribed margins and no skin thickening.",
        "",
    ]


def test_a_finding_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"a Halo that is none of no, yes, in row 3 .*got 'perhaps'"):
        described(tmp_path, {"Halo": "no"}, {"Halo": "perhaps"})


def test_nothing_forbidden_is_stored(store: Store) -> None:
    stored = set(pd.read_parquet(store.path / "samples.parquet").columns)
    for column in COLUMNS:
        assert (f"privileged/{column.name}" in stored) == (column.role in ("descriptor", "context", "near_label"))
    assert store.facts.unlisted == ("Pixel_size",)


def test_wrong_columns_of_the_real_table(root: Path) -> None:
    known = facts(CohortConfig(reader=NAME, root=root))
    for name, said in {
        "Diagnosis": "forbidden",
        "Verification": "forbidden",
        "Interpretation": "forbidden",
        "Classification": "forbidden",
        "BIRADS": "list it under `near_label:`",
        "Pixel_size": "has no role",
        "Margins": "did you mean 'Margin'",
        "margin": "write it as the source does: 'Margin'",
    }.items():
        (mistake,) = check_columns([name], [], known)
        assert said in mistake.problem
    assert check_columns(["Shape", "Margin", "Age"], ["BIRADS"], known) == []


def test_no_single_admitted_column_alarms(store: Store) -> None:
    worth = {name: scores["malignant/malignant"] for name, scores in store.manifest["probe"].items()}
    admitted = {name: auroc for name, auroc in worth.items() if name != "BIRADS"}
    assert max(admitted, key=lambda name: admitted[name]) == "Margin" and max(admitted.values()) < 0.9
    assert worth["BIRADS"] > 0.9  # why it must be asked for by name


def test_a_folder_that_is_not_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"is not the BrEaST data set as published: wanted one .*cohort.root"):
        facts(CohortConfig(reader=NAME, root=tmp_path))
