"""What an attacker found: wrong pixels, lost parts, stores of two windows, and how each ends now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpkd.cohort import journal, reader_for
from mmpkd.cohort.__main__ import main
from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import BadSample, RawImage
from mmpkd.cohort.formats.masks import read_mask
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.table.reader import Table
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort.cbis_trees import write_dicom
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort

VALUES = np.array([[0, 100, 2000, 4000]], np.uint16)
TWELVE: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "raw")
    return tmp_path / "raw"


def test_monochrome1_is_turned_round_before_it_is_rescaled(tmp_path: Path) -> None:
    for slope, intercept in (("2", "0"), ("1", "200")):
        write_dicom(tmp_path / "a.dcm", VALUES, **TWELVE, RescaleSlope=slope, RescaleIntercept=intercept)
        wanted = (4095 - VALUES.astype(int)) * int(slope) + int(intercept)
        assert read_image(tmp_path, "a.dcm").tolist() == wanted.tolist()


def test_ybr_is_converted_once(tmp_path: Path) -> None:
    red, green, blue = 200, 30, 60
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    ybr = [luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402]
    pixels = np.tile(np.rint(ybr).astype(np.uint8), (4, 4, 1))
    write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read_image(tmp_path, "a.dcm").astype(int) - [red, green, blue]).max() <= 2


def test_dicom_headers_that_are_damaged(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", VALUES)
    whole = (tmp_path / "a.dcm").read_bytes()
    rows = whole.index(b"\x28\x00\x10\x00US")  # (0028,0010), a VR that there is none of
    (tmp_path / "a.dcm").write_bytes(whole[: rows + 4] + b"UA" + whole[rows + 6 :])
    with pytest.raises(BadSample):
        read_image(tmp_path, "a.dcm")
    write_dicom(tmp_path / "b.dcm", VALUES, BitsStored=12, HighBit=15)
    with pytest.raises(BadSample, match="not the lowest of each pixel"):
        read_image(tmp_path, "b.dcm")


def test_a_photograph_that_lies_on_its_side(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path, "a.png").shape == (8, 4)


def test_a_picture_and_a_white_sheet_are_no_masks(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))
    for name, pixels, why in (
        ("ramp", ramp, "shades of grey"),
        ("white", np.full((40, 50), 255, np.uint8), "all over"),
    ):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        with pytest.raises(BadSample, match=why):
            read_mask(tmp_path, f"{name}.png", (40, 50))


def test_a_mask_in_16_bit_colour(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", np.zeros((4, 4, 3), np.uint16), PhotometricInterpretation="RGB")
    with pytest.raises(BadSample, match="16-bit colour; grey is wanted"):
        read_mask(tmp_path, "a.dcm", (4, 4))


def test_a_part_that_is_lost_whole(tmp_path: Path) -> None:
    table = cases().assign(part=["train"] * 40 + ["val"] * 8 + ["test"] * 12)
    write_cohort(tmp_path / "raw", table)
    for index in range(40, 48):
        (tmp_path / "raw" / "images" / f"case{index}.png").write_bytes(b"damaged")
    with pytest.raises(CohortError, match="not one sample of part val can be used"):
        prepare(config(tmp_path / "raw", split="part", max_bad=0.2), tmp_path / "cache")


def interrupted_after(blocks: int, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, **params: Any) -> Path:
    """A preparation that ends after some blocks of eight; its partial store."""
    load = Table.load

    def stopped(self: Table, sample_id: str) -> RawImage:
        if sample_id == f"case{8 * blocks + 6}.png":
            raise KeyboardInterrupt
        return load(self, sample_id)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(journal, "BLOCK", 8)
        context.setattr("mmpkd.cohort.formats.bit_depths.WINDOW_SAMPLES", 2)
        context.setattr(Table, "load", stopped)
        prepare(config(root, **params), cache)
    (partial,) = (cache / "stores").glob("*.partial")
    return partial


def test_a_preparation_that_goes_on_keeps_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cohort(tmp_path / "raw", depth=16)
    partial = interrupted_after(3, tmp_path / "raw", tmp_path / "cache", monkeypatch)
    (before,) = json.loads((partial / "depths.json").read_text())["depths"]
    store = prepare(config(tmp_path / "raw"), tmp_path / "cache")
    assert before == [16, store.manifest["window"], None]
    centre = store.image_NCHW[:, 0, 7, 7].astype(int)
    assert (np.diff(centre) >= 0).all()  # as the originals rise


@pytest.mark.parametrize("length", [None, 500])
def test_pixels_that_went_missing_while_interrupted(
    root: Path, tmp_path: Path, length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupted_after(3, root, tmp_path / "cache", monkeypatch)
    if length is None:
        (partial / "images.npy").unlink()
    else:
        with (partial / "images.npy").open("r+b") as file:
            file.truncate(length)
    store = prepare(config(root), tmp_path / "cache")
    assert store.image_NCHW[:, 0, 7, 7].tolist() == [2 * index for index in range(60)]


def test_a_file_that_was_mended_later(root: Path, tmp_path: Path) -> None:
    image = root / "images" / "case5.png"
    whole = image.read_bytes()
    image.write_bytes(b"\0" * len(whole))
    prepare(config(root, max_bad=0.1), tmp_path / "cache")
    image.write_bytes(whole)
    with pytest.raises(CohortError, match=r"1 of the samples that were left out of .* can be read now: delete it"):
        prepare(config(root), tmp_path / "cache")


def test_a_second_image_has_a_depth_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = cases().assign(scan=[f"scan{index}.dcm" for index in range(60)])
    write_cohort(tmp_path / "raw", table)
    for index in range(60):
        write_dicom(tmp_path / "raw" / f"scan{index}.dcm", np.full((10, 10), 1000 * index, np.uint16))
    asked = config(tmp_path / "raw", views={"mri": "scan"})
    store = prepare(asked, tmp_path / "cache")
    assert store.manifest["bit_depth"] == 8 and store.manifest["view_depths"]["mri"][0] == 16
    view = np.load(store.path / "views" / "mri.npy")[:, 0, 7, 7].astype(int)
    assert (np.diff(view) >= 0).all() and view[0] == 0 and view[-1] == 255
    words = [
        f"cohort.{name}={value}" for name, value in (("reader", "table"), ("root", asked.root), ("image_size", 15))
    ]
    words += [f"cohort.params={asked.params}", f"cache={tmp_path / 'cache'}", "samples=all"]
    main(["check", *words])
    changed = tmp_path / "raw" / "scan3.dcm"
    write_dicom(changed, np.full((10, 10), 9, np.uint16))
    with pytest.raises(CohortError, match="sample 4 of the store: the view mri has other pixels"):
        main(["check", *words])


def test_columns_that_stand_twice_and_text_that_is_the_label(root: Path) -> None:
    table = pd.read_csv(root / "cases.csv", dtype=str, keep_default_na=False)
    twice = ",".join([*table.columns, "pathology"])
    lines = (root / "cases.csv").read_text().splitlines()
    (root / "cases.csv").write_text("\n".join([twice, *(f"{line},benign" for line in lines[1:])]))
    with pytest.raises(ConfigError, match=r"cases\.csv: columns 3, 11 have the same name, pathology"):
        reader_for(config(root)).scan()
    write_cohort(root)
    with pytest.raises(ConfigError) as raised:
        reader_for(config(root, text={"findings": "pathology", "impression": "biopsy"})).scan()
    assert [mistake.path for mistake in raised.value.mistakes] == [
        "cohort.params.text.findings",
        "cohort.params.text.impression",
    ]
    for views in ({"../images": "mask"}, {"sample": "mask"}):
        with pytest.raises(ConfigError, match="letters, digits and underscores"):
            reader_for(config(root, views=views))
    with pytest.raises(ConfigError, match="'image' is each sample's own image"):
        reader_for(config(root, views={"image": "mask"}))


def test_show_takes_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["no [/x]", "$x^"]
    table = cases().rename(columns={"shape": "size [/mm]"})
    table["pathology"] = table["pathology"].map({"benign": labels[0], "malignant": labels[1]})
    write_cohort(tmp_path / "raw", table)
    columns = {"size [/mm]": {"role": "descriptor"}}
    tasks = {"malignant": {"kind": "binary", "column": "pathology", "labels": labels}}
    from mmpkd.cohort.show import show
    from mmpkd.command import plain_console

    show(
        prepare(config(tmp_path / "raw", columns=columns, tasks=tasks), tmp_path / "cache[1]"), plain_console(width=200)
    )
    said = capsys.readouterr().out
    assert "size [/mm]" in said and "no [/x]" in said and "cache[1]" in said
