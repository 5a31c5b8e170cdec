"""The conversions of COCO and LabelMe files in docs/your_own_data.md give cells that the table reader draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import reader_for
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort

SQUARE, FAR = [[2, 3], [6, 3], [6, 5], [2, 5]], [[10, 10], [12, 10], [12, 12]]


def block(first_line: str, after: str) -> str:
    """The Python block of the page that follows `after` and starts with this line."""
    text = (Path(__file__).parents[3] / "docs" / "your_own_data.md").read_text().partition(after)[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    assert code.startswith(first_line)
    return code


def joined(root: Path, **params: Any) -> Any:
    """A reader of the cohort of `write_cohort` with the columns of regions.csv."""
    table = cases().rename(columns={"image": "file_name"})
    table = table.merge(pd.read_csv(root / "regions.csv", dtype=str), on="file_name", how="left")
    write_cohort(root, table.rename(columns={"file_name": "image"}).fillna(""))
    return reader_for(config(root, masks={}, **params))


def test_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [{"id": 7 + index, "file_name": f"case{index}.png", "width": 30, "height": 20} for index in range(3)]
    annotations = [
        {"image_id": 7, "category_id": 1, "bbox": [2, 3, 4, 2], "segmentation": [np.ravel(SQUARE).tolist()]},
        {"image_id": 7, "category_id": 1, "bbox": [10, 10, 2, 2], "segmentation": [np.ravel(FAR).tolist()]},
        {"image_id": 8, "category_id": 2, "bbox": [0, 0, 9, 9], "segmentation": [np.ravel(FAR).tolist()]},
    ]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    monkeypatch.chdir(tmp_path)
    exec(block("import json, pandas\n", "From COCO"))
    reader = joined(tmp_path, boxes={"node": "node"}, polygons={"duct": "outline"})
    rois = dict(reader.load("case0.png").rois)
    wanted = np.zeros((20, 30), bool)
    wanted[3:5, 2:6] = wanted[10:12, 10:12] = True
    assert np.array_equal(rois["node"], wanted)
    assert rois["duct"][3:6, 2:7].all() and rois["duct"][10, 12] and not rois["duct"][7].any()
    assert reader.load("case1.png").rois == reader.load("case2.png").rois == reader.load("case3.png").rois == []


def test_labelme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labelme").mkdir()
    shapes = [{"label": "duct", "points": SQUARE}, {"label": "duct", "points": FAR}, {"label": "other", "points": FAR}]
    for index, some in enumerate((shapes, shapes[2:])):
        content = {"imagePath": f"case{index}.png", "shapes": [{**one, "shape_type": "polygon"} for one in some]}
        (tmp_path / "labelme" / f"case{index}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    exec(block("import json, pathlib, pandas\n", "From a folder of LabelMe files"))
    reader = joined(tmp_path, polygons={"duct": "outline"})
    ((label, mask),) = reader.load("case0.png").rois
    assert label == "duct" and mask[3:6, 2:7].all() and mask[10, 12] and not mask[7].any()
    assert reader.load("case1.png").rois == []
