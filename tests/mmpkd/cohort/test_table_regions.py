"""Regions by numbers, second images, report text and DICOM files in one's own table."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.facts import BadSample, Section
from mmpkd.cohort.formats.regions import box_mask, polygon_mask, read_box_list, read_polygons
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.show import show
from mmpkd.config import CohortConfig
from mmpkd.types import ConfigError
from tests.mmpkd.cohort.cbis_trees import write_dicom
from tests.mmpkd.cohort.radpath_trees import LPS, RAS, SHAPE, nifti, volume
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort

BOXES: dict[str, Any] = {"boxes": {"node": ["x", "y", "w", "h"]}}


def written(root: Path, **columns: Any) -> pd.DataFrame:
    """The cohort of `write_cohort` with further columns, whose cells repeat."""
    table = cases().assign(**{name: np.resize(np.array(cells, object), 60) for name, cells in columns.items()})
    return write_cohort(root, table)


def problems(root: Path, **params: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        facts(config(root, **params))
    return dict(caught.value.mistakes)


def test_boxes_by_hand(tmp_path: Path) -> None:
    written(tmp_path, x=["4", ""], y=["2", ""], w=["3", ""], h=["5.0", ""])
    reader = reader_for(config(tmp_path, masks={}, **BOXES))
    assert reader.scan().roi_labels == ("node",)
    ((label, mask),) = reader.load("case0.png").rois
    wanted = np.zeros((20, 30), bool)
    wanted[2:7, 4:7] = True  # left 4, top 2, width 3, height 5
    assert label == "node" and np.array_equal(mask, wanted)
    assert reader.load("case1.png").rois == []


def test_polygons_by_hand(tmp_path: Path) -> None:
    square, two = "[[2, 3], [6, 3], [6, 5], [2, 5]]", "[[[0, 0], [1, 0], [0, 1]], [[10, 10], [12, 10], [12, 12]]]"
    written(tmp_path, outline=[square, two])
    reader = reader_for(config(tmp_path, polygons={"duct": "outline"}))
    assert reader.scan().roi_labels == ("lesion", "duct")
    rois = dict(reader.load("case0.png").rois)
    wanted = np.zeros((20, 30), bool)
    wanted[3:6, 2:7] = True  # Pillow draws the outline too
    assert np.array_equal(rois["duct"], wanted) and rois["lesion"].sum() == 50
    ((_, both),) = reader.load("case1.png").rois
    assert both[0, 0] and both[10, 12] and not both[5, 5]


def test_several_boxes_in_a_cell(tmp_path: Path) -> None:
    written(tmp_path, node=["[4, 2, 3, 5]", "[[4, 2, 3, 5], [10, 2, 2, 2.0]]", ""])
    reader = reader_for(config(tmp_path, masks={}, boxes={"node": "node"}))
    assert reader.scan().roi_labels == ("node",)
    wanted = np.zeros((20, 30), bool)
    wanted[2:7, 4:7] = True  # left 4, top 2, width 3, height 5
    ((label, first),) = reader.load("case0.png").rois
    assert label == "node" and np.array_equal(first, wanted)
    wanted[2:4, 10:12] = True
    assert np.array_equal(reader.load("case1.png").rois[0][1], wanted) and reader.load("case2.png").rois == []


def test_what_is_no_list_of_boxes(tmp_path: Path) -> None:
    for cell in ("[1, 2, 3]", "[1, 2, 0, 4]", "[[1, 2, 3, 4], 5]", "1, 2", "[]", "[1, 2, NaN, 4]", '"1234"', "{}"):
        with pytest.raises((ValueError, TypeError)):
            read_box_list(cell)
    written(tmp_path, node=["[1, 2, 3]", "", "left"])
    found = problems(tmp_path, boxes={"node": "node"})
    assert found["cohort.params.boxes.node"].startswith("40 cells are no box; [left, top, width, height] is wanted")
    found = problems(tmp_path, boxes={"node": ["x", "y"]})
    assert "a box has four columns, of left, top, width and height" in found["cohort.params.boxes.node"]


def test_flat_polygons_as_coco_writes_them() -> None:
    corners = [(0.0, 0.0), (4.0, 0.0), (4.0, 4.0)]
    assert read_polygons("[[0, 0, 4, 0, 4, 4]]") == [corners] == read_polygons("[[0, 0], [4, 0], [4, 4]]")
    assert read_polygons("[[0, 0, 4, 0, 4, 4], [0, 0, 4, 0, 4, 4]]") == [corners, corners]
    for cell in ("[[0, 0, 4, 0, 4]]", "[[0, 0, 4, 0]]", '"004044"', '["004044"]'):
        with pytest.raises(ValueError):
            read_polygons(cell)


def test_what_is_no_box_and_no_polygon(tmp_path: Path) -> None:
    outline = ["[[1, 2], [3, 4]]"]
    written(tmp_path, x=["1", "a", "1", "1", ""], y=["1"], w=["2", "2", "0", "", ""], h=["2"], outline=outline)
    found = problems(tmp_path, polygons={"duct": "outline"}, **BOXES)
    assert found["cohort.params.boxes.node"].startswith("48 cells are no box: four numbers are wanted")
    assert "cases.csv row 3, 4, 5, 6, 8 and 43 more" in found["cohort.params.boxes.node"]
    assert found["cohort.params.polygons.duct"].startswith("60 cells are no polygon; [[x, y], ...] is wanted")
    for cell in ("", "ring", "{}", "[]", "[[1, 2], [3, 4], [5]]", "[[1, 2], [3, NaN], [5, 6]]", '[["a", 1]]', "[7]"):
        with pytest.raises((ValueError, TypeError)):
            read_polygons(cell)


def test_a_region_out_of_its_image() -> None:
    for box in ((25.0, 2.0, 10.0, 3.0), (2.0, 15.0, 3.0, 10.0), (-5.0, 2.0, 3.0, 3.0)):
        with pytest.raises(BadSample, match="reaches out of its image") as raised:
            box_mask(box, (20, 30), "a.png")
        assert "30 x 20" in raised.value.reason
    with pytest.raises(BadSample, match="reaches out"):
        polygon_mask([[(0, 0), (40, 0), (0, 5)]], (20, 30), "a.png")
    assert box_mask((29.6, 19.6, 0.2, 0.2), (20, 30), "a.png").sum() == 1  # never lost
    assert box_mask((-1, 5, 10, 10), (20, 30), "a.png").sum() == 9 * 10  # rounding put it a pixel outside
    assert box_mask((-0.6, -0.6, 31, 21), (20, 30), "a.png").all()
    assert box_mask((0, 0, 30, 20), (20, 30), "a.png").all()


@pytest.mark.parametrize(
    ("left", "width", "columns"),
    [(4, 3, [4, 5, 6]), (4.4, 3, [4, 5, 6]), (4.6, 3, [5, 6, 7]), (4.6, 0.8, [5]), (4.4, 3.4, [4, 5, 6, 7])],
)
def test_a_box_covers_the_pixels_whose_centres_it_holds(left: float, width: float, columns: list[int]) -> None:
    """Pixel 4 has its centre at 4.5."""
    mask = box_mask((left, 2, width, 1), (20, 30), "a.png")
    assert np.argwhere(mask).tolist() == [[2, column] for column in columns]


@pytest.mark.parametrize("left", [0.5, 1.5, 2.5, 3.5])
def test_boxes_from_centre_to_centre_tile(left: float) -> None:
    """Two of width 1, side by side: a pixel each, the one whose centre is the left edge."""
    first, second = (box_mask((at, 0, 1, 1), (1, 30), "a.png")[0].nonzero()[0] for at in (left, left + 1))
    assert [first.tolist(), second.tolist()] == [[left - 0.5], [left + 0.5]]


def test_a_label_may_be_a_mask_here_and_a_box_there(tmp_path: Path) -> None:
    written(tmp_path, x=["", "4"], y=["", "2"], w=["", "3"], h=["", "5"])
    reader = reader_for(config(tmp_path, boxes={"lesion": ["x", "y", "w", "h"]}))
    assert reader.scan().roi_labels == ("lesion",)
    assert [mask.sum() for _, mask in (*reader.load("case0.png").rois, *reader.load("case1.png").rois)] == [50, 15]


def test_second_images_and_text_reach_the_store(tmp_path: Path) -> None:
    written(tmp_path / "raw", scan=[f"scans/{index}.png" for index in range(60)], report=["clear", "a mass", ""])
    (tmp_path / "raw" / "scans").mkdir()
    for index in range(60):
        Image.fromarray(np.full((10, 10), index, np.uint8)).save(tmp_path / "raw" / "scans" / f"{index}.png")
    asked = config(tmp_path / "raw", views={"mri": "scan"}, text={"findings": "report"})
    known = facts(asked)
    assert (
        known.views == ("mri",)
        and known.sections == {"findings": Section(False, 2 / 3)}
        and known.unlisted == ("scanner",)
    )
    store = prepare(asked, tmp_path / "cache")
    view = np.load(store.path / "views" / "mri.npy")
    assert view[:, 0, 7, 7].tolist() == list(range(60))
    text = pd.read_parquet(store.path / "text.parquet")
    assert list(text.columns) == ["sample", "findings"] and text["findings"].isna().sum() == 20
    assert "report" not in pd.read_parquet(store.path / "samples.parquet").to_string()


def test_a_second_image_must_be_there(tmp_path: Path) -> None:
    written(tmp_path, scan=["a.png", "", "b.png"])
    found = problems(tmp_path, views={"mri": "scan"})
    told = "20 cells are missing: cases.csv row 3, 6, 9, 12, 15 and 15 more (the header is row 1)"
    assert found == {"cohort.params.views.mri": told}
    written(tmp_path, scan=["/a.png"])
    assert "60 cells are absolute" in problems(tmp_path, views={"mri": "scan"})["cohort.params.views.mri"]


def test_dicom_by_its_suffix_or_its_mark(tmp_path: Path) -> None:
    table = cases()
    table["image"] = [f"scan{index}" + (".dcm" if index % 2 else "") for index in range(60)]
    (tmp_path / "raw" / "images").mkdir(parents=True)
    for index, name in enumerate(table["image"]):
        write_dicom(tmp_path / "raw" / "images" / name, np.full((20, 30), 100 * index, np.uint16))
    table["mask"] = ""
    table.to_csv(tmp_path / "raw" / "cases.csv", index=False)
    store = prepare(config(tmp_path / "raw"), tmp_path / "cache")
    assert store.manifest["bit_depth"] == 16 and store.manifest["left_out"] == {}
    centre = store.image_NCHW[:, 0, 7, 7].astype(int)
    assert (np.diff(centre) >= 0).all() and centre[0] == 0 and centre[-1] == 255


def volumes(root: Path, mask: np.ndarray | None = None, axes: Any = RAS) -> CohortConfig:
    """The cohort of `write_cohort` with volumes for images, and one mask for all; boxed where a lesion is."""
    table = cases()
    table["image"] = [f"case{index}.nii.gz" for index in range(60)]
    table["mask"] = "" if mask is None else "mask.nii"
    table["node"] = "[3, 9, 1, 1]"
    (root / "images").mkdir(parents=True)
    for index, name in enumerate(table["image"]):
        (root / "images" / name).write_bytes(gzip.compress(nifti(volume(index))))
    if mask is not None:
        (root / "mask.nii").write_bytes(nifti(mask, axes))
    table.to_csv(root / "cases.csv", index=False)
    return config(root, boxes={"node": "node"})


def test_show_says_that_volumes_are_spread_by_their_own_range(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    show(prepare(volumes(tmp_path / "raw"), tmp_path / "cache"), console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "15 x 15 from volumes, each slice spread over 8 bits from its volume's own range" in text


@pytest.mark.parametrize("axes", [RAS, LPS])
def test_a_slice_of_a_volume_and_of_its_mask(tmp_path: Path, axes: Any) -> None:
    """The brain is at levels 5 to 15, so the middle is level 10; a mask that is stored the other way round fits."""
    mask = np.zeros(SHAPE, np.int16)
    mask[3, 4, 10] = mask[8, 8, 11] = 1
    stored = mask if axes is RAS else mask[::-1, ::-1]
    raw = reader_for(volumes(tmp_path, stored, axes)).load("case0.nii.gz")
    assert raw.image.shape == (SHAPE[1], SHAPE[0]) and raw.image.dtype == np.uint8
    inside = raw.image[3:11, 2:9].astype(int)  # the front, y of 10, is in row 3
    assert (np.diff(inside, axis=0) < 0).all() and (np.diff(inside, axis=1) >= 0).all()
    assert raw.image[:3].max() == raw.image[11:].max() == 0
    rois = dict(raw.rois)
    assert np.argwhere(rois["lesion"]).tolist() == [[9, 3]] == np.argwhere(rois["node"]).tolist()


def test_three_slices_are_three_channels(tmp_path: Path) -> None:
    asked = volumes(tmp_path / "raw")
    three = {**asked.params, "slices": [0.0, 0.5, 1.0], "channels": 3, "boxes": {}}
    store = prepare(asked.model_copy(update={"params": three}), tmp_path / "cache")
    brightest = store.image_NCHW[0].reshape(3, -1).max(axis=1).astype(int)
    assert (np.diff(brightest) > 0).all() and store.facts.channels == 3
    with pytest.raises(ConfigError, match=r"slices: one, or one for each of the 1 channels, got 3"):
        facts(asked.model_copy(update={"params": {**asked.params, "slices": [0.0, 0.5, 1.0]}}))


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.zeros((12, 13, 21), np.int16), "the mask has 12 x 13 x 21 voxels, a slice of its image 12 x 14"),
        (np.indices(SHAPE).sum(axis=0).astype(np.int16) % 3, "the mask holds 3 different values; two are wanted: say"),
    ],
)
def test_volumes_that_are_no_mask(tmp_path: Path, mask: np.ndarray, told: str) -> None:
    with pytest.raises(BadSample) as raised:
        reader_for(volumes(tmp_path, mask)).load("case0.nii.gz")
    assert raised.value.reason.startswith(told)


def test_a_volume_is_no_mask_of_a_picture(tmp_path: Path) -> None:
    table = cases().assign(mask="mask.nii")
    write_cohort(tmp_path, table.assign(mask=""))
    table.to_csv(tmp_path / "cases.csv", index=False)
    (tmp_path / "mask.nii").write_bytes(nifti(volume()))
    with pytest.raises(BadSample, match=r"mask\.nii.*the mask is a volume, its image is none"):
        reader_for(config(tmp_path)).load("case0.png")


@pytest.mark.parametrize(
    ("params", "cell", "told"),
    [
        ({"boxes": {"node": "node"}}, "[0.5, 0.5, 0.2, 0.3]", "numbers all lie between 0 and 1"),
        ({"polygons": {"node": "node"}}, "[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]", "numbers all lie between 0 and 1"),
        ({"polygons": {"node": "node"}}, "[[1, 1], [9, 9], [5, 5]]", "no polygon"),
        ({"polygons": {"node": "node"}}, "[[5, 5], [5, 5], [5, 5]]", "no polygon"),
        ({"boxes": {"node": ["x", "x", "w", "h"]}}, "", "four different columns"),
    ],
)
def test_regions_that_would_be_next_to_nothing(tmp_path: Path, params: dict[str, Any], cell: str, told: str) -> None:
    write_cohort(tmp_path, cases().assign(node=cell))
    with pytest.raises(ConfigError, match=told):
        facts(config(tmp_path, **params))


def test_boxes_that_look_like_two_corners(tmp_path: Path) -> None:
    def told(cell: str) -> bool:
        write_cohort(tmp_path, cases().assign(node=cell))
        return any("are they two corners?" in note for note in reader_for(config(tmp_path, **params)).scan().notes)

    params = {"boxes": {"node": "node"}}
    assert told("[2, 3, 9, 8]") and not told("[9, 8, 2, 3]")
