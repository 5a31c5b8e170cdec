"""python -m mmpkd.cohort: what it shows, what it checks, and what it never says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from mmpkd.cohort.__main__ import main
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.show import SHEET
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort, write_mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "raw")
    return tmp_path / "raw"


def words(root: Path, **params: object) -> list[str]:
    """The cohort of `write_cohort` as a configuration file and the rest of a command line."""
    path = root.parent / "space.yaml"
    cohort = config(root, **params).model_dump(mode="json")
    path.write_text(yaml.safe_dump({"cohort": cohort, "arms": {"none": {}}}))
    return [f"config={path}", f"cache={root.parent / 'cache'}"]


def test_show_by_hand(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", *words(root)])
    told = capsys.readouterr().out
    store = prepare(config(root), root.parent / "cache")
    lines = [" ".join(line.strip("│ \n").split()) for line in told.splitlines()]
    assert "table: 60 samples of 30 patients, 1 x 15 x 15 from 8 bits" in lines
    for fold in range(4):
        rows = store.rows("val", fold)
        malignant = int(store.target_NK[rows, 0].sum())
        assert f"fold {fold} │ {len(rows)} │ {len(rows) // 2} │ 0 │ {len(rows) - malignant} │ {malignant}" in lines
    # every other image has a lesion of 5 x 10 of 20 x 30 pixels: 12.5 of the square's 225, give or take rounding
    regions = lines[lines.index("part │ lesion") if "part │ lesion" in lines else 0 :]
    assert any("; 5." in line or "; 6." in line for line in regions)
    table = cases()
    missing = {name: f"{(table[name].isin(['', 'n/a'])).mean():.0%}" for name in ("shape", "signs", "age")}
    assert any(line.startswith(f"shape │ descriptor │ categorical │ {missing['shape']} │ 2") for line in lines)
    assert any(line.startswith(f"signs │ descriptor │ multivalued │ {missing['signs']} │ 2") for line in lines)
    assert "birads │ near_label │ categorical │ 0% │ 2 │ 1.00 !" in lines
    assert "biopsy │ forbidden │ │ │ │ not stored" in lines
    assert "columns without a role, not stored: scanner" in lines
    with Image.open(store.path / SHEET) as sheet:
        assert sheet.width > 1000


def test_a_credentialed_cohort_is_shown_without_a_value(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = cases()
    table["shape"] = np.where(table["shape"] == "oval", "plantedshape", table["shape"])
    table["patient"] = "plantedpatient" + table["patient"]
    write_cohort(root, table)
    main(["show", *words(root, credentialed=True)])
    main(["check", *words(root, credentialed=True)])
    said = "".join(capsys.readouterr())
    assert "planted" not in said and "case1" not in said


def test_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CohortError, match=r"no store of these sources and options .*; prepare it first: python -m"):
        main(["check", *words(root)])
    main(["prepare", *words(root)])
    main(["check", *words(root), "samples=all"])
    assert "complete, and 60 of 60 samples decoded again are as stored" in capsys.readouterr().out
    main(["check", *words(root), "samples=7"])
    assert "7 of 60 samples" in capsys.readouterr().out


def test_check_sees_pixels_regions_and_tables_that_changed(root: Path) -> None:
    main(["prepare", *words(root)])
    image, mask = root / "images" / "case4.png", root / "masks" / "case6.png"
    size = image.stat().st_size
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(image)  # of the same size in bytes, as it happens
    assert image.stat().st_size == size
    with pytest.raises(CohortError, match=r"sample 5 of the store: the image has other pixels\n.*prepare it again"):
        main(["check", *words(root), "samples=all"])
    write_cohort(root)
    before = mask.read_bytes()
    Image.open(mask).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(mask)
    mask.write_bytes(mask.read_bytes().ljust(len(before), b"\0"))
    assert mask.stat().st_size == len(before)
    with pytest.raises(CohortError, match="sample 7 of the store: it has other regions"):
        main(["check", *words(root), "samples=all"])
    write_mask(mask, (20, 30))
    table = pd.read_csv(root / "cases.csv", dtype=str)
    table.loc[0, "age"] = "31"
    table.to_csv(root / "cases.csv", index=False)
    with pytest.raises(CohortError, match=r"prepare it first.*\n.*table-.* differs in the files or tables$"):
        main(["check", *words(root)])


def test_a_damaged_store(root: Path) -> None:
    store = prepare(config(root), root.parent / "cache")
    (store.path / "rois.parquet").write_bytes(b"")
    with pytest.raises(CohortError, match=r"rois.parquet has 0 bytes, its manifest says"):
        main(["check", *words(root)])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("chek cohort.reader=table", "did you mean 'check'"),
        ("show cohort.reader=tabel", "did you mean 'table'"),
        ("show reader=table", "keys begin with cohort."),
        ("show", "cohort.reader"),
        ("check cohort.reader=synthetic samples=many", "a number or all"),
        ("show config=nowhere.yaml", "cannot be read"),
    ],
)
def test_mistakes(line: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        main(line.split())
    assert told in str(raised.value)


def test_help_and_a_generated_cohort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "contact sheet" in " ".join(capsys.readouterr().out.split())
    small = json.dumps({"train": 40, "val": 20, "test": 20})
    line = ["cohort.reader=synthetic", "cohort.image_size=32", f"cohort.params={small}", f"cache={tmp_path}"]
    main(["show", *line])
    main(["check", *line])
    said = capsys.readouterr().out
    assert "train" in said and "test (sealed)" in said and "decoded again are as stored" in said
