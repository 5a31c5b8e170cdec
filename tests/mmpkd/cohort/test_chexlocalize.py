"""CheXlocalize on generated copies: masks as pycocotools writes them, labels, layouts; and copies with something wrong.

Nothing that is said names a patient or a file of an image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.facts import BadSample, Scan
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.chexlocalize import MASKED, decode_mask, run_lengths
from mmpkd.cohort.readers.mimic_cxr.tables import FINDINGS
from mmpkd.config import CohortConfig
from mmpkd.frames import Letterbox
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort.mimic_trees import FINDINGS as MIMIC_FINDINGS

HEIGHT, WIDTH = 48, 64
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
EMPTY = "PP3"  # of 48 x 64; this and the counts below were written by pycocotools 2.0.11
BOX = "Zn0d0l0000000000000000000000000000000000000000000000fm0"
ELLIPSE = "ah07X12N2N2N2O0O2O0O2O000000000000000000000001N101N101N2N2N2NPl0"
DRAWN = {
    BOX: (ROWS >= 10) & (ROWS < 30) & (COLUMNS >= 20) & (COLUMNS < 44),
    ELLIPSE: (ROWS - 20) ** 2 / 100 + (COLUMNS - 30) ** 2 / 225 < 1,
    "01oo2": (ROWS == 0) & (COLUMNS == 0),
    "0PP3": ROWS >= 0,
}
PUBLISHED_ORDER = [  # of the findings in CheXpert's tables
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
DRAWABLE = [name for name in PUBLISHED_ORDER if name not in ("No Finding", "Pneumonia", "Pleural Other", "Fracture")]
VAL, TEST = "CheXpert/val_labels.csv", "CheXpert/test_labels.csv"
VAL_MASKS, TEST_MASKS = "CheXlocalize/gt_segmentations_val.json", "CheXlocalize/gt_segmentations_test.json"
SAMPLE = "patient64541_study1_view1_frontal"
FILE = "CheXpert/val/patient64541/study1/view1_frontal.jpg"
IMAGES = (  # part, path, sex, age, AP/PA, findings that are 1
    ("val", "patient64541/study1/view1_frontal", "Male", "73", "AP", ("Cardiomegaly", "Lung Opacity", "Fracture")),
    ("val", "patient64542/study1/view1_frontal", "Female", "70", "PA", ("No Finding",)),
    ("val", "patient64542/study1/view2_lateral", "Female", "70", "", ("No Finding",)),
    ("test", "patient64741/study1/view1_frontal", "", "", "", ("Edema",)),
    ("test", "patient64742/study1/view1_frontal", "", "", "", ("No Finding",)),
)
# A patient, a view or a file of an image: what no message may hold.
SECRET = re.compile(r"patient[0-9]|study[0-9]|view[0-9]|6454|6474|Female", re.IGNORECASE)
Tables = dict[str, pd.DataFrame]
Masks = dict[str, dict[str, Any]]


def tables() -> Tables:
    """With the published headers: the test table has no column but Path and the findings."""
    rows: dict[str, list[dict[str, str]]] = {VAL: [], TEST: []}
    for part, path, sex, age, projection, found in IMAGES:
        view = "Frontal" if "frontal" in path else "Lateral"
        row = {"Path": f"{'CheXpert-v1.0/valid' if part == 'val' else 'test'}/{path}.jpg"}
        if part == "val":
            row |= {"Sex": sex, "Age": age, "Frontal/Lateral": view, "AP/PA": projection}
        row |= {name: "1.0" if name in found else "0.0" for name in PUBLISHED_ORDER}
        rows[VAL if part == "val" else TEST].append(row)
    return {name: pd.DataFrame(one) for name, one in rows.items()}


def entry(**counts: str) -> dict[str, Any]:
    """The ten masks of an image, empty but for those given by the first word of their finding."""
    published = ["Airspace Opacity" if name == "Lung Opacity" else name for name in DRAWABLE]
    return {name: {"size": [HEIGHT, WIDTH], "counts": counts.get(name.split()[0], EMPTY)} for name in published}


def masks() -> dict[str, Masks]:
    return {
        VAL_MASKS: {SAMPLE: entry(Cardiomegaly=BOX, Airspace=ELLIPSE)},
        TEST_MASKS: {
            "patient64741_study1_view1_frontal": entry(Edema="01oo2"),
            "patient64742_study1_view1_frontal": entry(),
        },
    }


def write(root: Path, name: str, content: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) if name.endswith(".json") else content.to_csv(index=False))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "chexlocalize"
    for name, content in (tables() | masks()).items():
        write(base, name, content)
    for number, (part, path, *_) in enumerate(IMAGES):
        file = base / "CheXpert" / part / f"{path}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = (120 + 90 * np.sin(ROWS / (5 + number)) * np.cos(COLUMNS / 9)).astype(np.uint8)
        Image.fromarray(grey).save(file, quality=95)
    return base


def config(root: Path, **params: Any) -> CohortConfig:
    return CohortConfig(reader="chexlocalize", root=root, image_size=32, params=params)


def scan(root: Path, **params: Any) -> Scan:
    return reader_for(config(root, **params)).scan()


def test_run_lengths_by_hand() -> None:
    """A 3 x 4 mask of (0, 1), (1, 1), (2, 3): by columns 000 110 000 001, so 3 out, 2 in, 6 out, 1 in.

    The fourth is written as 1 - 2 = -1: five bits of 1, whose highest is the sign, so character 48 + 31 = O.
    """
    assert run_lengths("326O") == [3, 2, 6, 1]
    mask = decode_mask({"size": [3, 4], "counts": "326O"}, (3, 4), "")
    assert mask is not None and mask.astype(int).tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    # Of the published sample's first image, without a pixel: 0, 6, 7, 8, 6, of which 32 is added to all but the last.
    assert run_lengths("PVWX6") == [6 * 32 + 7 * 32**2 + 8 * 32**3 + 6 * 32**4] == [2320 * 2828]
    assert run_lengths("") == []


@pytest.mark.parametrize("counts", DRAWN)
def test_masks_that_pycocotools_wrote(counts: str) -> None:
    mask = decode_mask({"size": [HEIGHT, WIDTH], "counts": counts}, (HEIGHT, WIDTH), "")
    assert mask is not None and mask.dtype == bool and np.array_equal(mask, DRAWN[counts])


def test_a_mask_without_a_pixel_is_none() -> None:
    assert decode_mask({"size": [HEIGHT, WIDTH], "counts": EMPTY}, (HEIGHT, WIDTH), "") is None


def test_labels_are_those_of_mimic() -> None:
    assert list(FINDINGS) == MIMIC_FINDINGS == sorted(PUBLISHED_ORDER)
    assert set(MASKED) == {"Airspace Opacity" if name == "Lung Opacity" else name for name in DRAWABLE}
    assert list(MASKED.values()) == sorted(DRAWABLE)


def test_scan(root: Path) -> None:
    one = scan(root)
    (task,) = one.tasks
    assert (task.name, task.kind, list(task.labels)) == ("findings", "multilabel", MIMIC_FINDINGS)
    assert one.samples["split"].to_list() == ["val", "val", "test", "test"]
    assert one.samples["patient"].to_list() == ["patient64541", "patient64542", "patient64741", "patient64742"]
    assert one.samples.index[0] == SAMPLE and one.samples["row"].iloc[2] == "2 of test_labels.csv"
    named = one.labels.set_axis(list(task.labels), axis=1)
    assert named.notna().all(axis=None)
    assert [set(row.index[row == 1]) for _, row in named.iterrows()] == [set(IMAGES[at][5]) for at in (0, 1, 3, 4)]
    cells = one.privileged
    assert cells["Age"].to_list()[:2] == [73, 70] and cells.loc[cells.index[2:], ["Sex", "Age", "AP/PA"]].isna().all(
        axis=None
    )
    assert cells["AP/PA"].to_list()[:2] == ["AP", "PA"] and set(cells["Frontal/Lateral"]) == {"Frontal"}
    assert {name: column.role for name, column in one.columns.items() if name not in FINDINGS} == {
        "Path": "id",
        "Sex": "context",
        "Age": "context",
        "AP/PA": "context",
        "Frontal/Lateral": "context",
    }
    assert all(one.columns[name].role == "forbidden" for name in FINDINGS) and one.unlisted == ()
    assert one.tables == [VAL, VAL_MASKS, TEST, TEST_MASKS] and one.files[SAMPLE] == [FILE]
    assert one.notes == (
        "2 of 3 val images have no masks, and so no ROI",
        "left out: 1 images that are not Frontal",
    )


def test_views_labels_and_parts(root: Path) -> None:
    both = scan(root, views=["Frontal", "Lateral"])
    assert both.privileged["Frontal/Lateral"].to_list() == ["Frontal", "Frontal", "Lateral", "Frontal", "Frontal"]
    assert scan(root, views=["Lateral"]).samples.index.to_list() == ["patient64542_study1_view2_lateral"]
    some = scan(root, labels=["Edema", "Cardiomegaly"])
    assert some.tasks[0].labels == ("Edema", "Cardiomegaly") and some.labels.to_numpy().tolist() == [
        [0, 1],
        [0, 0],
        [1, 0],
        [0, 0],
    ]
    for name in (TEST, TEST_MASKS):
        (root / name).unlink()
    assert set(scan(root, parts=["val"]).samples["split"]) == {"val"}
    with pytest.raises(CohortError, match=r"no test_labels\.csv in .*CheXpert: .*cohort\.params\.images=DIR, or leave"):
        scan(root)


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"views": []}, "views"),
        ({"labels": ["Edema", "Edema"]}, "labels"),
        ({"labels": ["Oedema"]}, r"labels\.0"),
        ({"parts": ["train"]}, r"parts\.0"),
        ({"images": "../elsewhere"}, "images"),
        ({"masks": "/elsewhere"}, "masks"),
    ],
)
def test_options_that_are_none(root: Path, params: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match=rf"cohort\.params\.{path}: "):
        scan(root, **params)


def test_a_view_that_no_image_has(root: Path) -> None:
    write(root, VAL, tables()[VAL].iloc[:2])
    with pytest.raises(ConfigError, match=r"cohort\.params\.views: no image is Lateral"):
        scan(root, views=["Lateral"])


def test_blank_labels_are_unknown_and_other_columns_unlisted(root: Path) -> None:
    changed = tables()[VAL].assign(reader="x")
    changed.loc[0, "Edema"] = ""
    write(root, VAL, changed)
    one = scan(root)
    assert one.labels["findings/Edema"].isna().to_list() == [True, False, False, False] and one.unlisted == ("reader",)


def test_regions(root: Path) -> None:
    reader = reader_for(config(root))
    raw = reader.load(SAMPLE)
    assert raw.image.shape == (HEIGHT, WIDTH) and raw.image.dtype == np.uint8
    assert [finding for finding, _ in raw.rois] == ["Cardiomegaly", "Lung Opacity"]
    assert all(np.array_equal(mask, DRAWN[counts]) for (_, mask), counts in zip(raw.rois, (BOX, ELLIPSE), strict=True))
    assert reader.load("patient64542_study1_view1_frontal").rois == []  # not in the file
    assert reader.load("patient64742_study1_view1_frontal").rois == []  # ten empty masks


def test_a_prepared_store_has_no_training_part(root: Path, tmp_path: Path) -> None:
    store = prepare(config(root), tmp_path / "cache")
    assert [len(store.rows(part)) for part in ("train", "val", "test")] == [0, 2, 2] and store.num_folds == 1
    assert store.facts.external and store.facts.credentialed and facts(config(root)) == store.facts
    assert store.manifest["counts"]["empty_masks"] == 0
    mask = store.roi_mask(store.rows("val"))
    frame = Letterbox(HEIGHT, WIDTH, 32)
    for position, finding in enumerate(store.facts.roi_labels):
        counts = {"Cardiomegaly": BOX, "Lung Opacity": ELLIPSE}.get(finding)
        wanted = frame.store_mask(DRAWN[counts]) if counts else np.zeros((32, 32), bool)
        assert np.array_equal(mask[0, position], wanted) and not mask[1, position].any()


def test_the_layout_of_chexpert_byte_order_mark_and_columns_in_another_order(root: Path) -> None:
    """valid/ and valid.csv under a folder of its own, Paths of the small release, masks beside it."""
    before = scan(root, parts=["val"])
    (root / "CheXpert" / "val").rename(root / "CheXpert" / "valid")
    table = tables()[VAL]
    table["Path"] = table["Path"].str.replace("v1.0", "v1.0-small")
    turned = table[table.columns[::-1]].rename(columns={"Lung Opacity": "Airspace Opacity"}).to_csv(index=False)
    (root / VAL).unlink()
    (root / "CheXpert" / "valid.csv").write_bytes(b"\xef\xbb\xbf" + turned.replace("\n", "\r\n").encode())
    (root / "CheXpert").rename(root / "CheXpert-v1.0")
    (root / VAL_MASKS).write_bytes(b"\xef\xbb\xbf" + (root / VAL_MASKS).read_bytes())
    params: dict[str, Any] = {"parts": ["val"], "images": "CheXpert-v1.0"}
    after = scan(root, **params)
    pd.testing.assert_frame_equal(before.labels, after.labels)
    pd.testing.assert_frame_equal(before.privileged, after.privileged)
    assert after.files[SAMPLE] == ["CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg"]
    assert len(reader_for(config(root, **params)).load(SAMPLE).rois) == 2


def test_deviations(root: Path) -> None:
    reader = reader_for(config(root))
    assert reader.deviations(reader.scan()) == [
        "part val has 3 images, published are 234",
        "part val has 2 patients, published are 200",
        "part val has 1 images with masks, published are 187",
        "part test has 2 images, published are 668",
        "part test has 2 patients, published are 500",
    ]


def told(root: Path, **params: Any) -> str:
    with pytest.raises(CohortError) as raised:
        scan(root, **params)
    assert not SECRET.search(str(raised.value)), str(raised.value)
    return str(raised.value)


def cell(name: str, at: int, column: str, value: str) -> Callable[[Tables], None]:
    return lambda all_tables: all_tables[name].__setitem__(
        column, [value if row == at else old for row, old in enumerate(all_tables[name][column])]
    )


def repeated(path: str) -> Callable[[Tables], None]:
    """The first image of val once more, under another Path."""

    def repeat(all_tables: Tables) -> None:
        all_tables[VAL] = pd.concat([all_tables[VAL], all_tables[VAL].iloc[:1].assign(Path=path)])

    return repeat


def path_of(part: str, rest: str = "patient64541/study1/view1_frontal.jpg") -> str:
    return f"CheXpert-v1.0/{part}/{rest}"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (repeated(path_of("valid")), "val_labels.csv: a Path that is listed before, in row 5"),
        (repeated(path_of("val")), "val_labels.csv: an image that is listed before, in row 5 (the header is row 1)"),
        (cell(VAL, 1, "Path", path_of("valid", "../../secret.jpg")), "a Path that does not end in val or valid/"),
        (cell(VAL, 1, "Path", path_of("valid", "patient1/../study1/view1_frontal.jpg")), "in row 3"),
        (cell(VAL, 1, "Path", path_of("valid", "patient1/study1/view1_oblique.jpg")), "in row 3"),
        (cell(VAL, 1, "Path", path_of("valid", "patient1/study1/view1_frontal.png")), "in row 3"),
        (cell(VAL, 1, "Path", path_of("valid", "patiént1/study1/view1_frontal.jpg")), "in row 3"),
        (cell(VAL, 1, "Path", path_of("train")), "does not end in val or valid/patient.../study.../view..._frontal"),
        (cell(VAL, 1, "Path", path_of("test")), "does not end in val or valid/"),
        (cell(TEST, 1, "Path", path_of("valid")), "test_labels.csv: a Path that does not end in test/"),
        (cell(TEST, 1, "Path", ""), "does not end in test/"),
        (cell(TEST, 1, "Path", path_of("test")), "1 patients are in the tables of both parts"),
        (cell(VAL, 1, "Edema", "-1.0"), "a label that is not 1, 0 or empty in column 'Edema', in row 3"),
        (cell(VAL, 1, "Edema", "nan"), "a label that is not 1, 0 or empty in column 'Edema', in row 3"),
        (cell(VAL, 2, "Age", "unknown"), "an Age that is not a number of years, in row 4"),
        (lambda all_tables: all_tables[TEST].pop("Edema"), "test_labels.csv: no column Edema"),
        (lambda all_tables: all_tables[VAL].pop("Path"), "val_labels.csv: no column Path"),
        (lambda all_tables: all_tables.update({TEST: all_tables[TEST].iloc[:0]}), "test_labels.csv: no row"),
    ],
)
def test_tables_that_are_not_as_published(root: Path, edit: Callable[[Tables], Any], said: str) -> None:
    changed = tables()
    edit(changed)
    for name, table in changed.items():
        write(root, name, table)
    assert said in told(root)


def without(finding: str) -> Masks:
    return {SAMPLE: {name: one for name, one in entry().items() if name != finding}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not a JSON file: JSONDecodeError; is it the file as published?"),
        ("[" * 100_000, "is not a JSON file: RecursionError"),
        ("[]", "wanted masks by image and finding"),
        (json.dumps({SAMPLE: []}), "not the masks of Atelectasis, "),
        (json.dumps(masks()[VAL_MASKS] | {"x": entry() | {"Oedema": {}}}), "Support Devices, in entry 2; correct it"),
        (json.dumps(without("Edema")), "in entry 1"),
        (json.dumps({"patient1_study1_view1_frontal": entry()}), "none of its entries is of an image in CheXpert/val_"),
        ("{}", "none of its entries is of an image"),
    ],
)
def test_masks_that_are_not_as_published(root: Path, content: str, said: str) -> None:
    (root / VAL_MASKS).write_text(content)
    message = told(root)
    assert said in message and "gt_segmentations_val.json" in message


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("images", VAL),
        ("images", TEST),
        ("masks", VAL_MASKS),
        ("masks", TEST_MASKS),
        ("images", "CheXpert/val"),
        ("images", "CheXpert/test"),
    ],
)
def test_missing_tables_and_folders(root: Path, option: str, name: str) -> None:
    (root / name).rename(root / "moved")
    message = told(root)
    assert f"no {name.rpartition('/')[2]}" in message and f"cohort.params.{option}=DIR" in message


def test_entries_of_no_image_are_counted(root: Path) -> None:
    write(root, VAL_MASKS, masks()[VAL_MASKS] | {"patient1_study1_view1_frontal": entry()})
    assert f"1 entries of {VAL_MASKS} are of no image in {VAL}" in scan(root).notes


def mask_of(counts: Any, *size: Any) -> dict[str, Any]:
    return {"size": list(size) or [HEIGHT, WIDTH], "counts": counts}


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (mask_of(BOX[:-1]), "it ends within a run length"),
        (mask_of(BOX[:-3]), "do not add up"),  # cut at the end of a number, so that it decodes
        (mask_of(BOX + "1"), "do not add up"),
        (mask_of(""), "do not add up"),
        (mask_of("PP3O1"), "do not add up"),  # 3072, -1, 1
        (mask_of("PP3 "), "no run length has"),
        (mask_of("PP3é"), "no run length has"),
        (mask_of("P" * 1_000_000), "no run length has"),
        (mask_of([3072]), "no compressed counts"),
        (mask_of(None), "no compressed counts"),
        ({"size": [HEIGHT, WIDTH]}, "no compressed counts"),
        ([], "no compressed counts"),
        (mask_of(EMPTY, WIDTH, HEIGHT), "is 64 x 48 pixels, a mask of it is of another size; masks are of CheXpert's"),
        (mask_of(EMPTY, HEIGHT), "of another size"),
        (mask_of(EMPTY, "patient64541"), "of another size"),
        (mask_of(EMPTY, 10**9, 10**9), "of another size"),
        (mask_of("PPPPPPP1", HEIGHT, WIDTH), "no run length has"),
    ],
)
def test_damaged_masks(root: Path, mask: Any, said: str) -> None:
    write(root, VAL_MASKS, {SAMPLE: entry(Cardiomegaly=BOX) | {"Edema": mask}})
    with pytest.raises(BadSample) as raised:
        reader_for(config(root)).load(SAMPLE)
    assert raised.value.file == FILE and said in raised.value.reason and not SECRET.search(raised.value.reason)


def test_bad_samples_are_named_by_their_rows(root: Path, tmp_path: Path) -> None:
    write(root, TEST_MASKS, {"patient64741_study1_view1_frontal": entry(Edema="0")})
    (root / FILE).unlink()
    with pytest.raises(CohortError, match=r"row 2 of val_labels\.csv: no such file") as raised:
        prepare(config(root), tmp_path / "cache")
    assert not SECRET.search(str(raised.value).replace(str(tmp_path), ""))
    (root / FILE).symlink_to(tmp_path / "elsewhere.jpg")
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "elsewhere.jpg")
    with pytest.raises(CohortError, match=r"row 2 of val_labels\.csv: leads out of cohort\.root"):
        prepare(config(root), tmp_path / "cache")
    (root / FILE).unlink()
    Image.new("L", (WIDTH, HEIGHT)).save(root / FILE)
    with pytest.raises(CohortError, match=r"row 2 of test_labels\.csv: a mask of it is damaged") as raised:
        prepare(config(root), tmp_path / "cache")
    assert not SECRET.search(str(raised.value).replace(str(tmp_path), ""))
