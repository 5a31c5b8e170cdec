"""CBIS-DDSM copies with something wrong: a sample is listed with its reason, or the whole is refused with the mend."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpkd.cohort import reader_for
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.source import missing_files
from mmpkd.config import CohortConfig
from mmpkd.types import CohortError
from tests.mmpkd.cohort.cbis_trees import (
    CROP,
    IMAGE,
    MASK,
    NAMES,
    film,
    invented_rows,
    place,
    read_rows,
    region,
    write_dicom,
    write_rows,
    write_some,
)

ROW = 0  # of every description file, whose files get damaged
Row = dict[str, str]


@pytest.fixture(scope="module", params=["classic", "descriptive", "jpeg"])
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first three rows of each description file and their images."""
    root = tmp_path_factory.mktemp(request.param)
    write_some(root, request.param)
    return root


@pytest.fixture
def broken(copy: Path, tmp_path: Path) -> Path:
    root = tmp_path / copy.name.rstrip("0123456789")
    shutil.copytree(copy, root)
    return root


@pytest.fixture
def row(broken: Path) -> Row:
    return read_rows(broken, [NAMES[0]])[ROW]


def at(root: Path, row: Row, column: str) -> Path:
    """Where a file of a mass row lies."""
    return root / place(row[column], root.name, "full mammogram images" if column == IMAGE else "ROI mask images")


def reason(root: Path, row: Row) -> str:
    reader = reader_for(CohortConfig(reader="cbis_ddsm", root=root))
    scan = reader.scan()
    sample = row[IMAGE].split("/")[0]
    lacking = missing_files(root, scan)
    if lacking:
        assert set(lacking) == {sample}
        return lacking[sample].reason
    for other in scan.samples.index:
        if other != sample:
            reader.load(str(other))
    with pytest.raises(BadSample) as raised:
        reader.load(sample)
    assert raised.value.file and "P_0" not in raised.value.reason
    return raised.value.reason


def save(path: Path, pixels: np.ndarray, **elements: object) -> None:
    if path.suffix == ".dcm":
        write_dicom(path, pixels, **elements)
    else:
        Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)).save(path)


def load(root: Path, row: Row) -> np.ndarray:
    reader = reader_for(CohortConfig(reader="cbis_ddsm", root=root))
    (roi,) = reader.load(row[IMAGE].split("/")[0]).rois
    return roi[1]


def test_a_crop_and_a_mask_that_changed_places(broken: Path, row: Row) -> None:
    before = load(broken, row)
    crop, mask = at(broken, row, CROP), at(broken, row, MASK)
    crop.rename(crop.with_name("moved"))
    mask.rename(crop)
    crop.with_name("moved").rename(mask)
    assert np.array_equal(load(broken, row), before) and before.any()


@pytest.mark.parametrize(("factor", "fits"), [(1.2, True), (1 / 1.2, True), (1.4, False)])
def test_a_mask_of_another_size(broken: Path, row: Row, factor: float, fits: bool) -> None:
    shape = film(row[IMAGE]).shape
    height, width = (round(side * factor) for side in shape)
    mask = Image.fromarray(region(row[MASK], shape)).resize((width, height), Image.Resampling.NEAREST)
    save(at(broken, row, MASK), np.asarray(mask))
    if fits:
        found = load(broken, row)
        wanted = region(row[MASK], shape) > 0
        assert found.shape == shape and (found & wanted).sum() / (found | wanted).sum() > 0.7
    else:
        assert "no mask" in reason(broken, row) and f"{width} x {height}" in reason(broken, row)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not an image")


@pytest.mark.parametrize("damage", [truncated, emptied, text])
@pytest.mark.parametrize("column", [IMAGE, MASK])
def test_damaged_files(broken: Path, row: Row, damage: Callable[[Path], None], column: str) -> None:
    damage(at(broken, row, column))
    assert any(word in reason(broken, row) for word in ("decode", "is not", "cannot be read"))


@pytest.mark.parametrize("column", [IMAGE, MASK])
def test_missing_folders(broken: Path, row: Row, column: str) -> None:
    shutil.rmtree(at(broken, row, column).parent)
    assert reason(broken, row).startswith("no such file")


def test_two_crops_and_no_mask(broken: Path, row: Row) -> None:
    save(at(broken, row, MASK), film(row[IMAGE])[:10, :10])
    assert "no mask" in reason(broken, row)


def test_a_grey_picture_in_place_of_the_mask(broken: Path, row: Row) -> None:
    save(at(broken, row, MASK), film(row[IMAGE]))
    assert "more than two values" in reason(broken, row)


def test_a_mask_that_is_white_all_over(broken: Path, row: Row) -> None:
    save(at(broken, row, MASK), np.full(film(row[IMAGE]).shape, 255, np.uint8))
    assert "no mask" in reason(broken, row)


def test_a_mask_without_a_pixel_counts_as_no_region(broken: Path, row: Row) -> None:
    save(at(broken, row, MASK), np.zeros(film(row[IMAGE]).shape, np.uint8))
    assert not load(broken, row).any()


def test_a_film_in_colour(broken: Path, row: Row) -> None:
    height, width = film(row[IMAGE]).shape
    colours = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    save(at(broken, row, IMAGE), colours)
    assert "colour" in reason(broken, row)


def test_monochrome1_is_turned_round(broken: Path, row: Row) -> None:
    path = at(broken, row, IMAGE)
    if path.suffix != ".dcm":
        pytest.skip("a property of DICOM files")
    write_dicom(path, 65535 - film(row[IMAGE]), PhotometricInterpretation="MONOCHROME1")
    raw = reader_for(CohortConfig(reader="cbis_ddsm", root=broken)).load(row[IMAGE].split("/")[0])
    assert np.array_equal(raw.image, film(row[IMAGE]))
    write_dicom(path, film(row[IMAGE]), PhotometricInterpretation="PALETTE COLOR")
    assert "PALETTE COLOR" in reason(broken, row)


def test_a_huge_film_is_refused_by_its_header(broken: Path, row: Row) -> None:
    path = at(broken, row, IMAGE)
    if path.suffix != ".dcm":
        pytest.skip("Pillow guards its own formats")
    write_dicom(path, film(row[IMAGE]), Rows=60_000, Columns=60_000)
    assert "3,600,000,000 pixels" in reason(broken, row)


def test_dicom_info_of_another_image(broken: Path, row: Row) -> None:
    if broken.name != "jpeg":
        pytest.skip("the JPEG re-release's table")
    series = row[IMAGE].split("/")[2]
    info = broken / "csv" / "dicom_info.csv"
    info.write_text(f"SeriesInstanceUID,PatientID\n{series},Mass-Training_P_00002_LEFT_CC\n")
    assert reason(broken, row).startswith("no such file")
    info.write_text("uid,name\n")
    with pytest.raises(CohortError, match=r"no column SeriesInstanceUID, PatientID \(found: uid, name\)"):
        reader_for(CohortConfig(reader="cbis_ddsm", root=broken)).scan()


def edited(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda path: path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("pathology", "outcome"), "no column pathology"),
        (lambda text: text.replace("BENIGN", "UNSURE"), "a pathology that is none of MALIGNANT"),
        (lambda text: text.replace("MALIGNANT", ""), "no patient, abnormality or pathology"),
        (lambda text: text.replace(".dcm", ".png").replace("/", "\\"), "not folder/StudyUID/SeriesUID/file"),
        (lambda text: text.replace("Mass-Training_", "../Mass-Training_"), "not folder/StudyUID/SeriesUID/file"),
        (lambda text: text.replace("/1.3.6", "/../1.3.6"), "not folder/StudyUID/SeriesUID/file"),
        (lambda text: text + text.split("\n", 1)[1], "listed before, in row"),
        (lambda text: text.split("\n", 1)[0] + "\n", "no row"),
        (lambda text: "", "is not a CSV file"),
    ],
)
def test_description_files_that_are_not_as_published(broken: Path, change: Callable[[str], str], told: str) -> None:
    edited(change)(broken / NAMES[0])
    with pytest.raises(CohortError, match=NAMES[0]) as raised:
        reader_for(CohortConfig(reader="cbis_ddsm", root=broken)).scan()
    assert told in str(raised.value)


def test_a_byte_order_mark_windows_line_ends_and_columns_in_another_order(broken: Path) -> None:
    def scan() -> object:
        return reader_for(CohortConfig(reader="cbis_ddsm", root=broken)).scan().privileged.to_csv()

    before = scan()
    rows = read_rows(broken, [NAMES[0]])
    turned = [dict(reversed(row.items())) for row in rows]
    lines = [",".join(turned[0]), *(",".join(row.values()) for row in turned)]
    (broken / NAMES[0]).write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    assert scan() == before


def test_missing_tables_and_folders(broken: Path, tmp_path: Path) -> None:
    (broken / NAMES[0]).unlink()
    with pytest.raises(CohortError, match=r"no mass_case_description_train_set.csv .* cohort.params.kinds=\[calc\]"):
        reader_for(CohortConfig(reader="cbis_ddsm", root=broken)).scan()
    (tmp_path / "bare").mkdir()
    for name, rows in invented_rows().items():
        write_rows(tmp_path / "bare" / name, rows)
    with pytest.raises(CohortError, match="CBIS-DDSM but no images: wanted a folder of Mass-Training_"):
        reader_for(CohortConfig(reader="cbis_ddsm", root=tmp_path / "bare")).scan()
