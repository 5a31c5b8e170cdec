"""MIMIC-CXR-JPG on a small tree with the published headers: labels, views, reports, boxes and parts, worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.facts import RawImage, Scan
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.mimic_cxr.boxes import held_out_part
from mmpkd.cohort.readers.mimic_cxr.reports import normal_name, split_sections
from mmpkd.cohort.readers.mimic_cxr.tables import PUBLISHED, describe_differences
from mmpkd.config import CohortConfig
from mmpkd.types import ConfigError
from tests.mmpkd.cohort.mimic_trees import (
    BOXES_CSV,
    BOXES_JSON,
    FINDINGS,
    HEIGHT,
    METADATA,
    NEGBIO,
    REPORT,
    WIDTH,
    box_rows,
    dicom_id,
    image_file,
    pixels,
    report_file,
    subject_id,
    tables,
    write_table,
    write_tables,
    write_tree,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("mimic"))


def config(root: Path, **params: Any) -> CohortConfig:
    return CohortConfig(reader="mimic_cxr", root=root, image_size=32, params=params)


def scan(root: Path, **params: Any) -> Scan:
    return reader_for(config(root, **params)).scan()


def labels(root: Path, number: int, **params: Any) -> dict[str, float]:
    """The known labels of an image; unknown ones are left out."""
    row = scan(root, **params).labels.loc[dicom_id(number)].dropna()
    return {str(name).removeprefix("findings/"): float(value) for name, value in row.items()}


def numbers(one: Scan) -> list[int]:
    return [int(sample[:8], 16) // 1000 for sample in one.samples.index]


def load(root: Path, number: int, **params: Any) -> RawImage:
    return reader_for(config(root, **params)).load(dicom_id(number))


def test_ids_rows_parts_and_files(tree: Path) -> None:
    one = scan(tree)
    assert numbers(one) == [1, 3, 5, 6, 7, 8, 9, 10, 11, 12]  # without the lateral and the unstated one
    assert one.samples.loc[dicom_id(7)].to_dict() == {"patient": subject_id(15), "split": "val", "row": 8}
    assert one.samples["split"].value_counts().to_dict() == {"train": 6, "val": 2, "test": 2}
    assert one.files[dicom_id(1)] == ["files/p10/p10000011/s50000011/" + dicom_id(1) + ".jpg"]
    assert one.text is None and one.roi_labels == ()
    assert list(one.labels) == [f"findings/{name}" for name in FINDINGS]
    assert "left out: 2 images whose ViewPosition is not AP or PA; 1 of them state none" in one.notes
    assert "2 images of 2 studies have no label: all unknown" in one.notes


def test_roles(tree: Path) -> None:
    one = scan(tree, labels=["Edema"])
    assert one.unlisted == ("Rows", "Columns")
    roles = {name: column.role for name, column in one.columns.items()}
    assert {roles[name] for name in FINDINGS} == {"forbidden"}  # those that are not asked for, too
    assert roles["subject_id"] == roles["split"] == roles["StudyDate"] == "id" and roles["ViewPosition"] == "context"
    assert list(one.privileged) == [name for name, role in roles.items() if role == "context"]
    assert one.privileged.loc[dicom_id(3), "PerformedProcedureStepDescription"] == "CHEST (PORTABLE AP)"
    assert pd.isna(one.privileged.loc[dicom_id(1), "PerformedProcedureStepDescription"])


@pytest.mark.parametrize(
    ("views", "kept"),
    [(["PA"], [1, 5, 7, 9, 11, 12]), (["LATERAL", "unstated"], [2, 4]), (["unstated"], [4])],
)
def test_views(tree: Path, views: list[str], kept: list[int]) -> None:
    assert numbers(scan(tree, views=views)) == kept


EDEMA = {"Edema": 1.0, "Cardiomegaly": 0.0}
REST = dict.fromkeys(FINDINGS, 0.0)


@pytest.mark.parametrize(
    ("number", "params", "known"),
    [
        # study 12: Edema 1, Pneumonia -1, Cardiomegaly 0
        (3, {"empty": "ignore"}, EDEMA | {"No Finding": 0.0}),  # an abnormality denies No Finding
        (3, {"empty": "ignore", "no_finding": "as_given"}, EDEMA),
        (3, {"empty": "ignore", "uncertain": "zero"}, EDEMA | {"No Finding": 0.0, "Pneumonia": 0.0}),
        (3, {"empty": "ignore", "uncertain": "one"}, EDEMA | {"No Finding": 0.0, "Pneumonia": 1.0}),
        (3, {}, {name: value for name, value in (REST | {"Edema": 1.0}).items() if name != "Pneumonia"}),
        (3, {"empty": "one", "uncertain": "zero"}, REST | dict.fromkeys(FINDINGS, 1.0) | {
            "Cardiomegaly": 0.0, "Pneumonia": 0.0, "No Finding": 0.0}),
        (3, {"empty": "one", "uncertain": "zero", "no_finding": "as_given"}, dict.fromkeys(FINDINGS, 1.0) | {
            "Cardiomegaly": 0.0, "Pneumonia": 0.0}),
        # study 11: No Finding 1 and nothing else, which says nothing of Support Devices
        (1, {"empty": "ignore"}, {n: v for n, v in (REST | {"No Finding": 1.0}).items() if n != "Support Devices"}),
        (1, {"empty": "ignore", "no_finding": "as_given"}, {"No Finding": 1.0}),
        (1, {}, REST | {"No Finding": 1.0}),
        # study 13 has no row, study 14 has no label: unknown whatever the policy
        (5, {"empty": "one"}, {}),
        (6, {"empty": "one", "uncertain": "one"}, {}),
    ],
)  # fmt: skip
def test_label_policies(tree: Path, number: int, params: dict[str, Any], known: dict[str, float]) -> None:
    assert labels(tree, number, **params) == known


def test_an_uncertain_finding_denies_no_finding_only_where_it_counts_as_found(tree: Path) -> None:
    """Study 22: Support Devices 1, Pneumonia -1."""
    some: dict[str, Any] = {"views": ["unstated"], "empty": "ignore"}
    assert labels(tree, 4, **some) == {"Support Devices": 1.0}
    assert labels(tree, 4, **some, uncertain="one") == {"Support Devices": 1.0, "Pneumonia": 1.0, "No Finding": 0.0}
    assert labels(tree, 4, **some, uncertain="zero") == {"Support Devices": 1.0, "Pneumonia": 0.0}


def test_a_subset_of_labels_in_the_order_asked_for(tree: Path) -> None:
    one = scan(tree, labels=["Edema", "Cardiomegaly"])
    assert one.tasks[0].labels == ("Edema", "Cardiomegaly") and one.tasks[0].kind == "multilabel"
    assert one.labels.loc[dicom_id(3)].tolist() == [1, 0]
    assert scan(tree, labels=["Edema"], labeller="negbio").labels.loc[dicom_id(3)].item() == 0
    assert f"{NEGBIO}" in scan(tree, labeller="negbio").tables


def test_expert_labels_are_the_test_parts_only(tree: Path) -> None:
    """Of studies 17 and 18 the experts saw 17: Edema 0, Airspace Opacity 1. Validation keeps the labeller's."""
    some: dict[str, Any] = {"test_labels": "expert", "empty": "ignore", "no_finding": "as_given"}
    assert labels(tree, 9, **some) == {"Edema": 0.0, "Lung Opacity": 1.0}
    assert labels(tree, 10, **some) == {}
    assert labels(tree, 7, **some) == {"Edema": 1.0}
    assert "test labels are the experts'; 1 of 2 test images have none" in scan(tree, **some).notes


def test_zipped_tables_are_the_same(tree: Path, tmp_path: Path) -> None:
    zipped = write_tree(tmp_path / "zipped", zipped=True)
    assert not (zipped / METADATA).exists() and (zipped / f"{METADATA}.gz").is_file()
    one, other = scan(tree, test_labels="expert"), scan(zipped, test_labels="expert")
    pd.testing.assert_frame_equal(one.labels, other.labels)
    pd.testing.assert_frame_equal(one.samples, other.samples)
    assert other.tables[0] == f"{METADATA}.gz"


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        (
            REPORT,
            {
                "preamble": "FINAL REPORT",
                "examination": "CHEST (PORTABLE AP)",
                "indication": "___ year old with cough.",
                "findings": "The lungs are clear.",
                "impression": "No acute process.",
            },
        ),
        # A name needs its line end and its blank; it is not looked for within the header's own line.
        ("A\nFINDINGS: x\n Heart: y\n FINDINGS:z\n", {"full report": "A FINDINGS: x Heart: y FINDINGS:z"}),
        ("A\n FINDINGS: CHEST: x\n", {"preamble": "A", "findings": "CHEST: x"}),
        # So a header right under an empty one is taken for text, as the authors' code does.
        ("A\n FINDINGS:\n IMPRESSION: x\n", {"preamble": "A", "findings": "IMPRESSION: x"}),
        ("A\n FINDINGS:\n \n IMPRESSION: x\n", {"preamble": "A", "impression": "x"}),
        # The last one counts, so an addendum above the report does not.
        (
            "A\n ADDENDUM:  seen\n FINDINGS: old\n _____\n FINAL REPORT\n FINDINGS: new\n IMPRESSION: i\n",
            {"preamble": "A", "addendum": "seen", "findings": "new", "impression": "i"},
        ),
        # An empty one does not count.
        ("A\n FINDINGS: x\n \n FINDINGS: \n \n HISTORY: h\n", {"preamble": "A", "findings": "x", "history": "h"}),
        # Other spellings.
        (
            "A\n CLINICAL HISTORY: h\n CHEST, TWO VIEWS: f\n CONCLUSION: i\n",
            {"preamble": "A", "history": "h", "findings": "f", "impression": "i"},
        ),
        ("A\n FINDINGS AND IMPRESSION: i\n", {"preamble": "A", "impression": "i"}),
        # Neither findings nor impression: what follows the first blank line of the last section.
        ("A\n INDICATION: cough\n \n Clear\n lungs.\n", {"preamble": "A", "indication": "cough",
                                                        "last_paragraph": "Clear lungs."}),
        ("A\n \n Clear.\n \n Normal.", {"full report": "A", "last_paragraph": "Clear. Normal."}),
        ("A\n INDICATION: cough\n", {"preamble": "A", "indication": "cough"}),
        ("", {}),
    ],
)  # fmt: skip
def test_sections(text: str, sections: dict[str, str]) -> None:
    assert split_sections(text) == sections


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("FINDINGS", "findings"),
        ("IMPRESSION AND RECOMMENDATION", "impression"),
        ("PORTABLE AP CHEST RADIOGRAPH", "findings"),
        ("LATERAL AND PA", "findings"),
        ("RECOMMENDATION(S)", "recommendations"),
        ("REASON FOR EXAM", "indication"),
        ("COMPARISON STUDIES", "comparison"),
        ("IMPRESSON", "impression"),
        ("NOTE", "note"),
    ],
)
def test_section_names(spelt: str, name: str) -> None:
    assert normal_name(spelt) == name


def test_text_columns(tree: Path) -> None:
    text = scan(tree, reports=".").text
    assert text is not None and list(text) == ["findings"]
    assert text.loc[dicom_id(1), "findings"] == "The lungs are clear." and pd.isna(text.loc[dicom_id(8), "findings"])
    one = scan(tree, reports=".", sections=["indication", "history"], near_label_sections=["impression"])
    assert one.text is not None and list(one.text) == ["indication", "history", "impression"]
    assert one.text["history"].isna().all() and one.text.loc[dicom_id(1), "impression"] == "No acute process."
    assert "1 of 10 studies have no report" in one.notes
    assert any("near-label sections" in note for note in one.notes)
    assert one.files[dicom_id(1)] == [image_file(1), report_file(1)] and one.files[dicom_id(8)] == [image_file(8)]


def test_reports_in_a_folder_of_their_own(tree: Path, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "apart")
    for path in (root / "files").rglob("*.txt"):
        moved = root / "mimic-cxr" / path.relative_to(root)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    path = root / "mimic-cxr" / report_file(3)
    path.write_text("A\n FINDINGS: Wet.\n")
    one = scan(root, reports="mimic-cxr")
    assert one.text is not None and one.text.loc[dicom_id(3), "findings"] == "Wet."
    assert one.files[dicom_id(3)] == [image_file(3), f"mimic-cxr/{report_file(3)}"]
    assert any(note.startswith("1 reports have findings and no impression") for note in one.notes)


@pytest.mark.parametrize("file", [BOXES_CSV, BOXES_JSON])
def test_boxes_are_top_left_and_size(tree: Path, file: str) -> None:
    raw = load(tree, 11, boxes=file)
    assert [label for label, _ in raw.rois] == ["Cardiomegaly", "Edema"]
    heart, edema = (mask for _, mask in raw.rois)
    wanted = np.zeros((HEIGHT, WIDTH), bool)
    wanted[20:36, 10:40] = True
    assert np.array_equal(heart, wanted)
    assert edema.sum() == 20 + 20 - 2 * 2 and edema[7, 5] and not edema[0, 4]  # the union of two
    (corner,) = load(tree, 12, boxes=file).rois
    assert corner[1].sum() == 32 and corner[1][63, 47]
    assert load(tree, 1, boxes=file).rois == []
    assert np.abs(raw.image.astype(int) - pixels(11)).mean() < 3


def test_box_tables_of_all_forms_agree(tree: Path, tmp_path: Path) -> None:
    """1.0.0 has no split, `path` may lack files/, and its patients do not matter: images are found by dicom_id."""
    root = write_tree(tmp_path / "forms")
    rows = box_rows(prefix="")
    write_table(root / "old.csv", [{name: row[name] for name in row if name != "split"} for row in rows])
    write_table(root / "moved.csv", [row | {"path": image_file(1)} for row in box_rows()])
    scans = [scan(root, boxes=file) for file in (BOXES_CSV, BOXES_JSON, "old.csv", "moved.csv")]
    for other in scans[1:]:
        pd.testing.assert_frame_equal(scans[0].samples, other.samples)
        assert scans[0].notes == other.notes
    assert len({len(load(root, 11, boxes=file).rois) for file in (BOXES_CSV, BOXES_JSON, "old.csv", "moved.csv")}) == 1


def test_patients_with_boxes_leave_fitting(tree: Path) -> None:
    """The digit sum of `printf 10000019 | sha256sum` is 1 modulo 3, so is the number (16 is 1); of 10000020 it is 0."""
    one = scan(tree, boxes=BOXES_CSV)
    parts = one.samples["split"]
    assert parts[dicom_id(11)] == held_out_part(subject_id(19)) == "test"
    assert parts[dicom_id(12)] == held_out_part(subject_id(20)) == "val"
    others = scan(tree).samples["split"].drop([dicom_id(11), dicom_id(12)])
    assert parts.drop([dicom_id(11), dicom_id(12)]).equals(others)
    told = "2 patients with boxes leave fitting, whatever their official part: 1 are in val, 1 in test"
    assert told in one.notes
    share = np.mean([held_out_part(str(10_000_000 + patient)) == "val" for patient in range(3000)])
    assert 0.3 < share < 0.37


def test_a_patient_with_boxes_takes_all_images_along(tmp_path: Path) -> None:
    """A box on the lateral image of study 11, which is not in view; and one on an image that the copy lacks."""
    root = write_tree(tmp_path / "along")
    rows = box_rows([(2, "Edema", 1, 1, 5, 5), (3, "Edema", 1, 1, 5, 5), (12, "Edema", 1, 1, 5, 5)])
    rows[1] |= {"dicom_id": dicom_id(99)}  # of patient 12, says its path
    write_table(root / "boxes.csv", rows)
    one = scan(root, boxes="boxes.csv")
    assert {one.samples.loc[dicom_id(number), "split"] for number in (1, 3, 12)} <= {"val", "test"}
    assert any("3 patients with boxes" in note for note in one.notes)
    assert "1 images with boxes are not in mimic-cxr-2.0.0-metadata.csv" in one.notes
    assert any(note.endswith("1 have boxes") for note in one.notes)


def test_prepare_stores_all_of_it(tree: Path, tmp_path: Path) -> None:
    asked = {"reports": ".", "near_label_sections": ["impression"], "boxes": BOXES_JSON}
    store = prepare(config(tree, **asked), tmp_path)
    assert store.facts.credentialed and len(store.facts.roi_labels) == 8
    assert {name: one.near_label for name, one in store.facts.sections.items()} == {
        "findings": False,
        "impression": True,
    }
    assert store.manifest["counts"]["samples"] == 10 and len(store.rows("train")) == 4
    text = pd.read_parquet(store.path / "text.parquet")
    assert list(text) == ["sample", "findings", "impression"]
    assert text["findings"].isna().sum() == 1 and text["findings"][0] == "The lungs are clear."
    row = store.sample_ids.tolist().index(dicom_id(11))
    masks = store.roi_mask(np.array([row]))[0]
    assert masks.any(axis=(1, 2)).nonzero()[0].tolist() == [1, 3]  # Cardiomegaly, Edema
    assert not set(FINDINGS) & set(store.privileged(["ViewPosition"]))
    assert facts(config(tree)).num_samples == 10


def test_the_fingerprint_does_not_hang_on_where_the_root_lies(tree: Path, tmp_path: Path) -> None:
    moved = write_tree(tmp_path / "moved")
    assert prepare(config(tree), tmp_path / "a").fingerprint == prepare(config(moved), tmp_path / "b").fingerprint


def test_deviations(tree: Path) -> None:
    assert describe_differences(PUBLISHED) == []
    assert sum(one for one, *_ in PUBLISHED.values()) == 377_110
    reader = reader_for(config(tree))
    told = reader.deviations(reader.scan())
    assert len(told) == 12 and told[0] == "part train has 8 images, published are 368,960"
    assert told[3] == "part train has 6 frontal images, published are 248,020"


@pytest.mark.parametrize(
    ("params", "path", "said"),
    [
        ({"sections": ["impression"], "reports": "."}, "sections", "list it under near_label_sections"),
        ({"near_label_sections": ["findings"], "reports": "."}, "near_label_sections.0", "input should be"),
        ({"near_label_sections": ["impression"]}, "", "cohort.params.reports=DIR"),
        ({"reports": ".", "sections": []}, "", "name one"),
        ({"reports": "/mnt/reports"}, "reports", "relative to cohort.root"),
        ({"boxes": "../boxes.csv"}, "boxes", "relative to cohort.root"),
        ({"boxes": "none.csv"}, "boxes", "no such file"),
        ({"reports": "none"}, "reports", "no such folder"),
        ({"labels": ["Edemas"]}, "labels.0", "'Edema'"),
        ({"labels": ["Edema", "Edema"]}, "labels", "twice"),
        ({"labels": []}, "", "at least one of labels"),
        ({"views": ["LATERALS"]}, "views", "did you mean 'LATERAL'"),
        ({"views": ["LL"]}, "views", "no image has a ViewPosition of LL"),
        ({"uncertain": "drop"}, "uncertain", "'ignore', 'zero' or 'one'"),
    ],
)
def test_options_that_do_not_fit(tree: Path, params: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        scan(tree, **params)
    (mistake,) = raised.value.mistakes
    assert mistake.path == f"cohort.params.{path}".rstrip(".") and said in mistake.problem


def test_column_order_byte_order_mark_and_line_ends_do_not_matter(tree: Path, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "order")
    write_tables(root, {name: [dict(reversed(row.items())) for row in rows] for name, rows in tables().items()})
    for path in root.glob("*.csv"):
        path.write_bytes("\ufeff".encode() + path.read_bytes().replace(b"\n", b"\r\n"))
    for path in (root / "files").rglob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    asked: dict[str, Any] = {"reports": ".", "boxes": BOXES_CSV, "test_labels": "expert"}
    one, other = scan(tree, **asked), scan(root, **asked)
    assert one.text is not None and other.text is not None
    for name in ("samples", "labels", "privileged", "text"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
