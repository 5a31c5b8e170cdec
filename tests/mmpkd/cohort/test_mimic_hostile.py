"""MIMIC-CXR copies with something wrong: an image is listed with its reason, or the whole is refused with the mend.

Nothing that is said names a file, a patient or a word of a report.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmpkd.cohort import reader_for
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.source import missing_files
from mmpkd.config import CohortConfig
from mmpkd.types import CohortError, UserError
from tests.mmpkd.cohort.mimic_trees import (
    BOXES_CSV,
    BOXES_JSON,
    CHEXPERT,
    EXPERT,
    IMAGES,
    METADATA,
    SPLIT,
    Tables,
    box_rows,
    dicom_id,
    image_file,
    report_file,
    study_id,
    subject_id,
    tables,
    write_boxes_json,
    write_table,
    write_tables,
    write_tree,
)

ALL: dict[str, Any] = {"reports": ".", "boxes": BOXES_CSV, "test_labels": "expert"}
NUMBER = 3  # the image that gets damaged: row 4 of the metadata
# An id, a file or a word of the report: what no message may hold.
SECRET = re.compile(r"[15]00000\d\d|[0-9a-f]{8}-[0-9a-f]{8}|\.jpg|\.txt|cough|lungs", re.IGNORECASE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "mimic")


def config(root: Path, **params: Any) -> CohortConfig:
    return CohortConfig(reader="mimic_cxr", root=root, image_size=32, params=params)


def refused(root: Path, **params: Any) -> str:
    with pytest.raises(CohortError) as raised:
        reader_for(config(root, **{**ALL, **params})).scan()
    told = str(raised.value)
    assert not SECRET.search(told.replace("s<study_id>.txt", "")), told
    return told


def reason(root: Path, number: int = NUMBER, **params: Any) -> str:
    """Why this image cannot be used; all others can."""
    reader = reader_for(config(root, **{**ALL, **params}))
    scan = reader.scan()
    lacking = missing_files(root, scan)
    if lacking:
        assert set(lacking) == {dicom_id(number)}
        return lacking[dicom_id(number)].reason
    for other in scan.samples.index.drop(dicom_id(number)):
        reader.load(str(other))
    with pytest.raises(BadSample) as raised:
        reader.load(dicom_id(number))
    assert raised.value.file == image_file(number) and not SECRET.search(raised.value.reason)
    return raised.value.reason


def change(name: str, at: int, **cells: str) -> Callable[[Tables], None]:
    return lambda all_tables: all_tables[name][at].update({key.replace("_0_", " "): one for key, one in cells.items()})


def renamed(name: str, old: str, new: str) -> Callable[[Tables], None]:
    def rename(all_tables: Tables) -> None:
        all_tables[name] = [{new if key == old else key: one for key, one in row.items()} for row in all_tables[name]]

    return rename


def twice(name: str, at: int) -> Callable[[Tables], None]:
    return lambda all_tables: all_tables[name].append(all_tables[name][at])


def gone(name: str, at: int) -> Callable[[Tables], None]:
    def remove(all_tables: Tables) -> None:
        del all_tables[name][at]

    return remove


@pytest.mark.parametrize(
    ("name", "edit", "told"),
    [
        (METADATA, twice(METADATA, 0), "a dicom_id that is listed before, in row 14"),
        (SPLIT, twice(SPLIT, 1), "a dicom_id that is listed before, in row 14"),
        (CHEXPERT, twice(CHEXPERT, 0), "a study_id that is listed before, in row 12"),
        (EXPERT, twice(EXPERT, 0), "a study_id that is listed before, in row 3"),
        (METADATA, change(METADATA, 2, subject_id="10000012.0"), "a subject_id that is not 8 digits"),
        (METADATA, change(METADATA, 2, study_id="s5000001"), "a study_id that is not 8 digits, as published, in row 4"),
        (METADATA, change(METADATA, 2, study_id=""), "a study_id that is not 8 digits"),
        (METADATA, change(METADATA, 2, dicom_id="../../secret"), "a dicom_id that is not five groups of 8"),
        (METADATA, change(METADATA, 2, study_id=study_id(13)), f"another study_id than {SPLIT} has"),
        (METADATA, change(METADATA, 2, subject_id=subject_id(13)), f"another subject_id than {SPLIT} has"),
        (METADATA, gone(SPLIT, 2), f"an image that {SPLIT} does not list, in row 4"),
        (SPLIT, change(SPLIT, 2, split="valid"), "a split that is none of train, validate, test, in row 4"),
        (CHEXPERT, change(CHEXPERT, 1, Edema="2.0"), "not 1, 0, -1 or empty in column 'Edema', in row 3"),
        (CHEXPERT, change(CHEXPERT, 1, Edema="nan"), "not 1, 0, -1 or empty in column 'Edema', in row 3"),
        (CHEXPERT, change(CHEXPERT, 1, Lung_0_Lesion="The lungs"), "in column 'Lung Lesion', in row 3"),
        (CHEXPERT, change(CHEXPERT, 1, subject_id=subject_id(13)), f"another subject_id than {CHEXPERT}"),
        (EXPERT, change(EXPERT, 0, study_id=study_id(15)), "none of its studies is in the test part"),
        (METADATA, renamed(METADATA, "ViewPosition", "view"), "no column ViewPosition (found of those wanted: d"),
        (SPLIT, renamed(SPLIT, "split", "part"), "no column split"),
        (CHEXPERT, renamed(CHEXPERT, "Lung Opacity", "Airspace Opacity"), "no column Lung Opacity"),
        (EXPERT, renamed(EXPERT, "Edema", "Oedema"), "no column Edema"),
    ],
)
def test_tables_that_are_not_as_published(root: Path, name: str, edit: Callable[[Tables], None], told: str) -> None:
    changed = tables()
    edit(changed)
    write_tables(root, changed)
    message = refused(root)
    assert told in message and name in message


def test_many_wrong_rows_are_counted(root: Path) -> None:
    changed = tables()
    for row in changed[METADATA]:
        row["subject_id"] = "x"
    write_tables(root, changed)
    assert "in row 2, 3, 4, 5, 6 and 7 more (the header is row 1)" in refused(root)


@pytest.mark.parametrize("name", [METADATA, SPLIT, CHEXPERT, EXPERT])
def test_tables_that_are_missing_or_damaged(root: Path, name: str) -> None:
    path = root / name
    whole = path.read_bytes()
    path.unlink()
    assert f"no {name}.gz and no {name} in" in refused(root)
    for content in (b"", b"\xff\xfe\x00 not a table", b'a,"b\n1,2\n', whole.replace(b"0000", b"\xff", 1)):
        path.write_bytes(content)
        assert name in refused(root)
    path.write_bytes(whole.split(b"\n")[0] + b"\n")
    assert "no row" in refused(root)
    path.unlink()
    zipped = gzip.compress(whole)
    for content in (zipped[: len(zipped) // 2], whole, zipped[:20] + b"\0" * 20 + zipped[40:]):
        (root / f"{name}.gz").write_bytes(content)
        assert "is not a gzipped CSV file" in refused(root)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    path.write_text("not an image")


def removed(path: Path) -> None:
    path.unlink()


def linked_out(path: Path) -> None:
    outside = path.parents[6] / "outside.jpg"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncated, "truncated"),
        (emptied, "is not an image"),
        (replaced, "is not an image"),
        (removed, "no such file"),
        (linked_out, "leads out of cohort.root"),
    ],
)
def test_damaged_images(root: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(root / image_file(NUMBER))
    assert told in reason(root)


def test_a_report_that_is_not_text(root: Path) -> None:
    (root / report_file(NUMBER)).write_bytes(b" FINDINGS: \xff\xfe lungs\n")
    assert reason(root) == "its report is not UTF-8 text"


def test_a_report_that_is_a_folder(root: Path) -> None:
    (root / report_file(NUMBER)).unlink()
    (root / report_file(NUMBER)).mkdir()
    assert reason(root) == "no such file; it is a folder"


def test_a_report_that_leads_out_of_the_root(root: Path) -> None:
    linked_out(root / report_file(NUMBER))
    assert reason(root) == "leads out of cohort.root"


def test_no_report_at_all(root: Path) -> None:
    (root / "empty").mkdir()
    assert "no report of any study in" in refused(root, reports="empty")


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        ((10, 20, 40, 36), "reaches out of its image of 48 x 64 pixels (width x height); a box is left, top, width"),
        ((-2, 0, 5, 5), "reaches out"),
        ((0, 60, 5, 6), "reaches out"),
        ((0, 1000, 5, 5), "reaches out"),
        ((5, 5, 0, 5), "a box on it has no area"),
        ((5, 5, 5, -1), "has no area"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "json"])
def test_boxes_that_do_not_fit_their_image(root: Path, frame: tuple[int, ...], told: str, form: str) -> None:
    """The first is a box of 30 x 16 written as two corners."""
    boxes = [(12, "Edema", 0, 0, 5, 5), (NUMBER, "Pneumonia", 1, 1, 5, 5), (NUMBER, "Pneumonia", *frame)]
    if form == "csv":
        write_table(root / "boxes.csv", box_rows(boxes))
    else:
        write_boxes_json(root / "boxes.json", boxes)
    assert told in reason(root, boxes=f"boxes.{form}", test_labels="labeller")


def test_a_rounded_box_may_reach_a_pixel_over_the_edge(root: Path) -> None:
    write_table(root / "boxes.csv", box_rows([(NUMBER, "Edema", 43.6, 59.5, 5, 5)]))
    (region,) = reader_for(config(root, boxes="boxes.csv")).load(dicom_id(NUMBER)).rois
    rows, columns = np.nonzero(region[1])
    found = (rows.min(), rows.max(), columns.min(), columns.max())
    assert found == (59, 63, 44, 47)  # pixel 43 has its centre outside, pixel 59 on the edge


def test_a_resized_image_is_told_by_its_boxes(root: Path) -> None:
    path = root / image_file(11)
    Image.open(path).resize((32, 32)).save(path)
    assert reason(root, 11) == "is 32 x 32 pixels, a box on it is of an image of 48 x 64"


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"category_name": "Edemas"}, "a finding that is none of Atelectasis"),
        ({"x": "left"}, "a x, y, w, h, image_width, image_height that is not a number, in row 2"),
        ({"w": ""}, "is not a number, in row 2"),
        ({"h": "inf"}, "is not a number, in row 2"),
        ({"dicom_id": "image"}, "a dicom_id that is not five groups"),
    ],
)
def test_box_tables_that_are_not_as_published(root: Path, cells: dict[str, str], told: str) -> None:
    rows = box_rows()
    rows[0].update(cells)
    write_table(root / BOXES_CSV, rows)
    assert told in refused(root)


def test_box_tables_of_another_kind(root: Path) -> None:
    write_table(
        root / BOXES_CSV, [{"left" if key == "x" else key: one for key, one in row.items()} for row in box_rows()]
    )
    assert "no column x" in refused(root)
    write_table(root / BOXES_CSV, [row | {"dicom_id": dicom_id(99)} for row in box_rows()])
    assert f"none of its images is in {METADATA}" in refused(root)
    (root / BOXES_CSV).write_bytes(b"")
    assert "is not a CSV file: EmptyDataError" in refused(root)


def edited(change_json: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        content = json.loads(text)
        change_json(content)
        return json.dumps(content)

    return edit


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda text: text[:-9], "is not MS-CXR's COCO JSON file: JSONDecodeError"),
        (lambda text: "[]", "no categories, images, annotations"),
        (lambda text: "3", "is not MS-CXR's COCO JSON file: TypeError"),
        (lambda text: "[" * 200_000, "is not MS-CXR's COCO JSON file"),
        (edited(lambda content: content.pop("images")), "no images"),
        (edited(lambda content: content["categories"][0].pop("id")), "COCO JSON file: KeyError"),
        (edited(lambda content: content["annotations"].clear()), "no box"),
        (edited(lambda content: content["annotations"][1].update(image_id=1)), "annotation 2: its image or category"),
        (edited(lambda content: content["annotations"][1].update(category_id=[])), "annotation 2: its image or cat"),
        (edited(lambda content: content["annotations"][1].update(bbox=[1, 2, 3])), "annotation 2: its image or cat"),
        (edited(lambda content: content["annotations"][1].update(bbox=["a", 2, 3, 4])), "COCO JSON file: ValueError"),
        (edited(lambda content: content["annotations"][1].update(width=None)), "COCO JSON file: TypeError"),
        (edited(lambda content: content["annotations"][1].update(bbox=[float("nan"), 2, 3, 4])), "in annotation 2"),
        (edited(lambda content: content["categories"][0].update(name="Heart")), "a finding that is none of"),
        (edited(lambda content: content["images"][0].update(path="a/b.jpg")), "a dicom_id that is not five groups"),
    ],
)
def test_box_json_that_is_not_as_published(root: Path, edit: Callable[[str], str], told: str) -> None:
    path = root / BOXES_JSON
    path.write_text(edit(path.read_text()))
    message = refused(root, boxes=BOXES_JSON)
    assert told in message and BOXES_JSON in message


def test_nothing_that_is_said_names_a_patient_a_file_or_a_report(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Planted words, several images damaged in different ways; first refused, then prepared without them."""
    for number, *_ in IMAGES:
        if number != 8:
            (root / report_file(number)).write_text("A\n FINDINGS: Mrs Zanzibar coughs.\n HISTORY: Quagmire\n")
    changed = tables()
    for row in changed[METADATA]:
        row["PerformedProcedureStepDescription"] = "Zanzibar"
    write_tables(root, changed)
    truncated(root / image_file(2))
    removed(root / image_file(5))
    linked_out(root / image_file(6))
    (root / report_file(11)).write_bytes(b" FINDINGS: Zanzibar \xff\n")
    write_table(root / "boxes.csv", box_rows([(12, "Edema", 20, 20, 40, 40)]))
    views = ["AP", "PA", "LATERAL", "unstated"]
    asked = config(root, reports=".", boxes="boxes.csv", near_label_sections=["impression"], views=views)
    with pytest.raises(UserError) as missing:
        prepare(asked, tmp_path / "cache")
    allowed = asked.model_copy(update={"max_bad": 0.2})  # the two that lack a file; not the others
    with pytest.raises(UserError) as raised:
        prepare(allowed, tmp_path / "cache")
    store = prepare(asked.model_copy(update={"max_bad": 0.6}), tmp_path / "cache")
    out, err = capfd.readouterr()
    said = "\n".join((out, err, str(missing.value), str(raised.value), caplog.text, *store.manifest["notes"]))
    assert "row 6: no such file" in said and "row 7: leads out of cohort.root" in said and "row 3: " in said
    assert "row 12: its report is not UTF-8 text" in said and "row 13: a region " in said
    for secret in (
        "Zanzibar",
        "Edema, 40",
        "Quagmire",
        "1000001",
        "1000002",
        "5000001",
        "5000002",
        dicom_id(1)[:8],
        ".jpg",
        ".txt",
    ):
        assert secret not in said, secret
