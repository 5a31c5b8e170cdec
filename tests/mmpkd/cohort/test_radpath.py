"""CPM-RadPath on generated volumes: which slices, which way up, which labels; and copies with something wrong."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.chosen_columns import check_columns
from mmpkd.cohort.facts import BadSample, Scan
from mmpkd.cohort.formats.nifti import read_nifti
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.radpath import AGE, CLASS, ID
from mmpkd.config import CohortConfig
from mmpkd.export.student_file import slices_of
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort.radpath_trees import (
    BRAIN,
    LPS,
    PATIENT,
    PER_PART,
    RAS,
    features,
    nifti,
    patients,
    volume,
    write_tree,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "radpath")


def config(root: Path, **params: Any) -> CohortConfig:
    return CohortConfig(reader="radpath", root=root, image_size=32, params=params)


def scan(root: Path, **params: Any) -> Scan:
    return reader_for(config(root, **params)).scan()


def test_slices(root: Path) -> None:
    """The brain is at levels 5 to 15; the right is at the right, the front on top."""
    image = reader_for(config(root, slices=[0, 0.44, 1])).load(PATIENT).image
    assert image.shape == (14, 12, 3) and image.dtype == np.uint8
    box = volume()[BRAIN].astype(float)
    low, high = np.percentile(box, [0.5, 99.5])
    for channel, level in enumerate((5, 9, 15)):  # 5 + 0.44 x 10 = 9.4
        inside = ((volume()[:, :, level] - low) / (high - low)).clip(0, 1) * 255
        wanted = np.where(volume()[:, :, level] > 0, inside, 0).T[::-1]
        assert np.abs(image[..., channel] - wanted).max() <= 1
    assert image[3, 2, 1] > image[10, 2, 1] and image[10, 8, 1] >= image[10, 2, 1]  # to the front, to the right
    assert not image[:3].any() and not image[:, :2].any() and not image[11:].any() and not image[:, 9:].any()


@pytest.mark.parametrize("shares", [[0.1, 0.2], [0.1, 0.2, 1.1], [0.1, -0.2, 0.3], [0.1, float("nan"), 0.3]])
def test_slices_that_are_none(root: Path, shares: Any) -> None:
    with pytest.raises(ConfigError, match=r"cohort\.params\.slices"):
        reader_for(config(root, slices=shares))


def test_a_prepared_store(root: Path, tmp_path: Path) -> None:
    store = prepare(config(root), tmp_path / "cache")
    assert store.manifest["counts"]["parts"] == {"train": PER_PART, "val": PER_PART, "test": PER_PART}
    assert list(store.sample_ids) == list(patients()[ID])
    assert store.target_NK.tolist() == [[float(one == name) for name in "GOA"] for one in patients()[CLASS]]
    assert store.image_NCHW.shape == (3 * PER_PART, 3, 32, 32) and store.image_NCHW.any()
    cells = store.privileged(["slide_0", "slide_3", AGE])
    assert np.allclose(cells[["slide_0", "slide_3"]], features()[["0", "3"]])
    assert cells[AGE].to_list() == [9000.0 + one for one in range(3 * PER_PART)]
    assert any("0.45, 0.6, 0.75 of the brain's height" in note for note in store.manifest["notes"])
    assert slices_of(store) == (0.45, 0.6, 0.75)  # which an exported student brings to `mmpkd.predict`
    outline = facts(config(root))
    assert outline.credentialed and outline.channels == 3
    assert not check_columns(["slide_0", AGE], [], outline) and check_columns([CLASS], [], outline)


def test_features_as_parquet_some_missing_or_none(root: Path) -> None:
    features().iloc[2:].to_parquet(root / "slide_features.parquet")
    one = scan(root, features="slide_features.parquet")
    assert np.allclose(one.privileged["slide_1"].iloc[2:], features()["1"].iloc[2:])
    assert one.privileged["slide_1"].isna().sum() == 2 and "patients without slide features: 2" in one.notes
    alone = scan(root, features=None)
    assert list(alone.privileged) == [AGE] and len(alone.tables) == 3


def test_deviations(root: Path) -> None:
    reader = reader_for(config(root))
    assert reader.deviations(reader.scan())[0] == "part train: G 2 for 103, O 2 for 24, A 2 for 38"
    sizes = {"train": (103, 24, 38), "val": (15, 5, 8), "test": (15, 5, 8)}  # 165, 28, 28
    number = 0
    reader = reader_for(config(root, features=None))
    for part, counts in sizes.items():
        classes = [name for name, count in zip("GOA", counts, strict=True) for _ in range(count)]
        ids = [f"CPM19_X_{number + one}_1" for one in range(len(classes))]
        number += len(classes)
        table = pd.DataFrame({ID: ids, CLASS: classes, AGE: "1"})
        table.to_csv(root / "labels" / f"split_1_{part}.csv", index=False)
    assert number == 221 and reader.deviations(reader.scan()) == []


AXES = [  # how the axes of the file run, and how a volume in RAS is stored so
    (RAS, lambda voxels: voxels),
    (LPS, lambda voxels: voxels[::-1, ::-1]),
    (((0, 1, 0), (0, 0, -1), (1, 0, 0)), lambda voxels: voxels.transpose(2, 0, 1)[:, :, ::-1]),
    (((0.98, 0.17, 0), (-0.17, 0.98, 0), (0, 0, 1)), lambda voxels: voxels),  # ten degrees
    (((0, -2, 0), (3, 0, 0), (0, 0, 1)), lambda voxels: voxels.transpose(1, 0, 2)[:, ::-1]),
]


@pytest.mark.parametrize(("axes", "stored"), AXES)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_orientation_comes_out_alike(
    tmp_path: Path, axes: Any, stored: Callable[[np.ndarray], np.ndarray], order: str
) -> None:
    (tmp_path / "one.nii").write_bytes(nifti(stored(volume()), axes, order))
    assert np.array_equal(read_nifti(tmp_path, "one.nii"), volume())


def test_a_qform(tmp_path: Path) -> None:
    """Half a turn about the z axis (a = b = c = 0, d = 1): left and back. Then with the z axis turned round."""
    (tmp_path / "one.nii").write_bytes(nifti(volume()[::-1, ::-1], q=(0, 0, 1, 1)))
    assert np.array_equal(read_nifti(tmp_path, "one.nii"), volume())
    (tmp_path / "two.nii").write_bytes(nifti(volume()[::-1, ::-1, ::-1], q=(0, 0, 1, -1)))
    assert np.array_equal(read_nifti(tmp_path, "two.nii"), volume())


@pytest.mark.parametrize("code", [2, 4, 16, 512])
def test_types_and_scaling(tmp_path: Path, code: int) -> None:
    voxels = np.arange(24).reshape(2, 3, 4)
    (tmp_path / "one.nii").write_bytes(nifti(voxels, code=code, scale=(2, -5)))
    assert np.array_equal(read_nifti(tmp_path, "one.nii"), 2 * voxels - 5)
    (tmp_path / "two.nii").write_bytes(nifti(voxels[..., None], code=code))
    assert np.array_equal(read_nifti(tmp_path, "two.nii"), voxels)


BROKEN: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda whole: whole[: len(whole) // 2], "truncated or damaged"),
    (lambda whole: gzip.compress(gzip.decompress(whole)[:5000]), "truncated or damaged"),
    (lambda whole: gzip.compress(gzip.decompress(whole)[:200]), "is not a NIfTI file"),
    (lambda whole: b"", "is not a NIfTI file"),
    (lambda whole: b"<html>404</html>" * 99, "is not a NIfTI file"),
    (lambda whole: nifti(volume()), "is not a NIfTI file"),  # not zipped, under a name that says so
    (lambda whole: whole[:20] + b"\xff" * 40 + whole[60:], "truncated or damaged"),
    (lambda whole: gzip.compress(nifti(np.zeros((3, 3)))), "has the sides 3, 3; a volume has three"),
    (lambda whole: gzip.compress(nifti(np.zeros((3, 3, 3, 2)))), "has the sides 3, 3, 3, 2"),
    (lambda whole: gzip.compress(nifti(np.zeros((0, 3, 3)))), "has the sides 0, 3, 3"),
    (lambda whole: gzip.compress(nifti(np.zeros((2, 2, 2)), code=128)), "no real numbers"),
    (lambda whole: gzip.compress(nifti(volume(), offset=float("nan"))), "does not decode"),
    (lambda whole: gzip.compress(nifti(volume() * np.nan, code=16)), "not finite"),
    (lambda whole: gzip.compress(nifti(volume(), axes=None)), "how it is oriented"),
    (lambda whole: gzip.compress(nifti(volume(), ((0, 0, 0), (0, 0, 0), (0, 0, 0)))), "runs nowhere"),
    (lambda whole: gzip.compress(nifti(volume(), ((1, 1, 0), (0, 0, 0), (0, 0, 1)))), "run the same way"),
    (lambda whole: gzip.compress(nifti(0 * volume())), "the same value everywhere"),
    (
        lambda whole: gzip.compress(nifti(np.zeros((1, 1, 1)))[:42] + b"\xff\x7f" * 3 + nifti(volume())[48:]),
        "voxels; 268,435,456 are",
    ),
]


@pytest.mark.parametrize(("damage", "told"), BROKEN)
def test_damaged_volumes(root: Path, damage: Callable[[bytes], bytes], told: str) -> None:
    path = root / PATIENT / f"{PATIENT}_t1ce.nii.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadSample) as raised:
        reader_for(config(root)).load(PATIENT)
    assert told in raised.value.reason and "CPM19" not in raised.value.reason


def test_missing_volumes_are_named_by_their_rows(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / PATIENT)
    with pytest.raises(CohortError, match=r"row 2 of split_1_train\.csv: no such file") as raised:
        prepare(config(root), tmp_path / "cache")
    assert "CPM19" not in str(raised.value)
    with pytest.raises(CohortError, match="Not one can be used"):
        prepare(config(root, sequence="flair"), tmp_path / "cache")


def edit(root: Path, name: str, change: Callable[[str], str]) -> None:
    (root / name).write_text(change((root / name).read_text()))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("val", lambda text: text.replace("class", "grade"), "no column class"),
        ("val", lambda text: text.split("\n")[0] + "\n", "no row"),
        ("val", lambda text: "", "is not a CSV file: EmptyDataError"),
        (
            "val",
            lambda text: text.replace(",G,", ",H,"),
            r"split_1_val.csv: a class that is none of G, O, A, in row 2, 5 ",
        ),
        ("val", lambda text: text.replace(",G,", ",,"), "a class that is none of G, O, A"),
        ("val", lambda text: text.replace("9006", "old"), "an age_in_days that is not a number of days"),
        ("val", lambda text: text.replace("CPM19_", "../"), "not of letters, digits and underscores"),
        (
            "val",
            lambda text: text + text.split("\n")[1] + "\n",
            "split_1_val.csv: a patient that is listed before, in row 8 ",
        ),
        ("val", lambda text: text.replace("AAG", "AAA"), "split_1_val.csv: a patient that is listed before, in row 2 "),
    ],
)
def test_label_files_that_are_not_as_published(root: Path, name: str, change: Callable[[str], str], told: str) -> None:
    edit(root, f"labels/split_1_{name}.csv", change)
    with pytest.raises(CohortError, match=told) as raised:
        scan(root)
    assert "CPM19" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace(ID, "patient"), f"no column {ID} .*wanted {ID} and a column for each feature"),
        (lambda text: "\n".join(line.split(",")[0] for line in text.split("\n")), "a column for each feature"),
        (
            lambda text: text + text.split("\n")[1] + "\n",
            r"slide_features.csv: a patient that is listed before, in row 20 ",
        ),
        (lambda text: text.replace("AAB_1,", "AAB_1,x"), "a feature that is not a finite number, in row 3 "),
        (lambda text: text.replace("AAB_1,", "AAB_1,inf,"), "is not a CSV file: ParserError"),
        (lambda text: "\x00\xff", f"no column {ID} "),
    ],
)
def test_features_that_are_none(root: Path, change: Callable[[str], str], told: str) -> None:
    edit(root, "slide_features.csv", change)
    with pytest.raises(CohortError, match=told) as raised:
        scan(root)
    assert "CPM19" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "mend"), [("labels/split_1_test.csv", "params.labels"), ("slide_features.csv", "params.features=null")]
)
def test_missing_tables(root: Path, name: str, mend: str) -> None:
    (root / name).unlink()
    with pytest.raises(CohortError, match=f"no {Path(name).name} in .*cohort.{mend}"):
        scan(root)


def test_a_byte_order_mark_windows_line_ends_and_columns_in_another_order(root: Path) -> None:
    before = scan(root)
    for path in (root / "labels").iterdir():
        table = pd.read_csv(path, dtype=str)
        turned = table[table.columns[::-1]].rename(columns=str.upper).to_csv(index=False)
        path.write_bytes(b"\xef\xbb\xbf" + turned.replace("\n", "\r\n").encode())
    after = scan(root)
    pd.testing.assert_frame_equal(before.labels, after.labels)
    pd.testing.assert_frame_equal(before.privileged, after.privileged)
