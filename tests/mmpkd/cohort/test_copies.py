"""One picture under several patients: what counts as one picture, what is refused, and how to mend it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from scipy import fft

from mmpkd.cohort import copies, facts
from mmpkd.cohort.likeness import MIRRORINGS, NO_HASH, Pair, candidates, is_same_picture, perceptual_hash
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import HASH, Store
from mmpkd.config import CohortConfig
from mmpkd.machine.checksums import of_files, sealed
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort
from tests.mmpkd.pictures import CHANGES, picture, recompressed


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_the_same_one(change: str) -> None:
    images = [picture(number) for number in range(20)]
    changed = [CHANGES[change](image) for image in images]
    hashes = [np.array([perceptual_hash(image) for image in these], np.uint64) for these in (images, changed)]
    pairs = [pair for pairs in candidates(*hashes) for pair in pairs]
    same = [pair for pair in pairs if is_same_picture(images[pair.first], changed[pair.second], pair)]
    assert sorted((pair.first, pair.second) for pair in same) == [(number, number) for number in range(20)]


def test_the_hash_is_that_of_a_cosine_transform() -> None:
    """The signs of scipy's coefficients; the first bit belongs to the lowest frequency along both sides."""
    image = picture(3)
    coefficients = fft.dctn(image.astype(float), type=2)[1:9, 1:9].ravel()
    expected = sum(1 << position for position, value in enumerate(coefficients) if value > 0)
    assert int(perceptual_hash(image)) == expected
    for mirrored, bits in zip((image, image[::-1], image[:, ::-1], image[::-1, ::-1]), MIRRORINGS, strict=True):
        assert int(perceptual_hash(mirrored)) == expected ^ int(bits)


def test_images_that_show_nothing_have_no_hash() -> None:
    even = np.full((40, 40), 9, np.uint8)
    assert perceptual_hash(even) == perceptual_hash(picture(0, 15, 80)) == NO_HASH
    assert not [*candidates(np.array([NO_HASH, NO_HASH]))]


@pytest.mark.parametrize("number", range(4))
def test_a_shared_outline_is_not_a_shared_picture(number: int) -> None:
    """The same bright ellipse and the same letters before black, with other tissue in it."""
    rows, columns = np.mgrid[-1:1:60j, -1:1:80j]
    letters = (np.arange(80) % 3 == 0) & (rows < -0.9)
    images = []
    for tissue in (picture(2 * number), picture(2 * number + 1)):
        image = np.where(rows**2 + columns**2 < 0.8, 100 + tissue // 2, 0)
        images.append(np.where(letters, 255, image).astype(np.uint8))
    assert not is_same_picture(images[0], images[1], Pair(0, 1))
    assert is_same_picture(images[0], recompressed(images[0]), Pair(0, 1))


def test_letters_before_black_are_not_a_shared_picture() -> None:
    """Dark frames with other patients' numbers in the corner; alike but for one digit. Equal pixels are one picture."""
    images = []
    for number in ("Pat 1000", "Pat 1001"):
        frame = Image.new("L", (112, 112))
        ImageDraw.Draw(frame).text((4, 4), number, fill=255)
        images.append(np.asarray(frame))
    assert not is_same_picture(images[0], images[1], Pair(0, 1))
    assert is_same_picture(images[0], images[0].copy(), Pair(0, 1))


def test_a_long_list_is_not_an_option(tmp_path: Path) -> None:
    asked = config(tmp_path).model_copy(update={"leave_out": (7,)})
    samples = pd.DataFrame({"row": range(2, 2002)})
    assert copies.leave_out_option(samples, [0, 3], asked) == "'cohort.leave_out=[7,2,5]'"
    assert copies.leave_out_option(samples, range(copies.MAX_LEFT_OUT), asked).count(",") == copies.MAX_LEFT_OUT
    assert copies.leave_out_option(samples, range(copies.MAX_LEFT_OUT + 1), asked) == ""


def copied(root: Path, changed: dict[int, tuple[int, str]], parts: bool = True) -> CohortConfig:
    """The cohort of `write_cohort` with pictures, some of which are changed copies of others.

    Args:
        changed: by row, counted from 0, the row that is copied and the change.
        parts: whether train, val and test are stated: 20 patients, 5, and 5.
    """
    table = cases().assign(part=["train"] * 40 + ["val"] * 10 + ["test"] * 10, mask="")
    write_cohort(root, table)
    for row, name in enumerate(table["image"]):
        source, change = changed.get(row, (row, "one bit"))
        image = picture(source) if source == row else CHANGES[change](picture(source))
        Image.fromarray(np.ascontiguousarray(image)).save(root / "images" / name)
    split = {"split": "part"} if parts else {}
    return config(root, image_size=64, masks={}, columns={}, **split)


def test_across_parts_it_is_refused_and_can_be_left_out(tmp_path: Path) -> None:
    """The message names the rows, and the command that it gives works."""
    config = copied(tmp_path / "raw", {50: (3, "JPEG"), 44: (5, "left to right"), 7: (5, "one bit")})
    with pytest.raises(CohortError) as raised:
        prepare(config, tmp_path / "cache")
    message = str(raised.value)
    assert "2 pictures are in several parts of the cohort, under different patients" in message
    assert "row 5 (case3.png) in train; row 52 (case50.png) in test" in message
    assert "row 7 (case5.png) in train; row 9 (case7.png) in train; row 46 (case44.png) in val" in message
    assert not list((tmp_path / "cache" / "stores").glob("*.partial"))
    left_out = json.loads(re.search(r"cohort\.leave_out=(\[.*\])'", message)[1])  # type: ignore[index]
    assert left_out == [5, 7, 9]  # of the sealed and the validation part nothing is taken
    store = prepare(config.model_copy(update={"leave_out": tuple(left_out)}), tmp_path / "cache")
    assert len(store.sample_ids) == 57 and not {"case3.png", "case5.png", "case7.png"} & set(store.sample_ids)
    assert "left out, as cohort.leave_out says: 3 of 60 samples" in store.manifest["notes"]


def test_across_folds_it_is_refused(tmp_path: Path) -> None:
    config = copied(tmp_path / "raw", {}, parts=False)
    folds = prepare(config, tmp_path / "cache").split_N
    other = next(row for row in range(60) if folds[row] not in (folds[0], "test"))
    with pytest.raises(CohortError, match=f"row 2 .* in {folds[0]}; row {other + 2} .* in {folds[other]}"):
        prepare(copied(tmp_path / "again", {other: (0, "upside down, and JPEG")}, parts=False), tmp_path / "cache")


def test_in_one_part_there_is_a_warning_and_of_one_patient_none(tmp_path: Path) -> None:
    store = prepare(copied(tmp_path / "two", {6: (1, "crop")}), tmp_path / "cache")
    (note,) = (note for note in store.manifest["notes"] if "picture" in note)
    assert note.startswith("warning: 1 picture is in one part under different patients")
    assert "row 3 (case1.png) and row 8 (case6.png)" in note
    store = prepare(copied(tmp_path / "one", {1: (0, "JPEG")}), tmp_path / "cache")
    assert not [note for note in store.manifest["notes"] if "picture" in note]


def test_rows_alone_are_named_of_credentialed_cohorts(tmp_path: Path) -> None:
    config = copied(tmp_path / "raw", {50: (3, "JPEG")})
    secret = config.model_copy(update={"params": {**config.params, "credentialed": True}})
    with pytest.raises(CohortError, match="row 5 in train; row 52 in test") as raised:
        prepare(secret, tmp_path / "cache")
    assert "case" not in str(raised.value) and "p1" not in str(raised.value)


@pytest.mark.parametrize(("rows", "problem"), [((1,), "no sample comes from row 1;"), (range(2, 62), "leaves no")])
def test_rows_that_cannot_be_left_out(tmp_path: Path, rows: range, problem: str) -> None:
    write_cohort(tmp_path)
    with pytest.raises(ConfigError, match=rf"cohort\.leave_out: {problem}"):
        facts(config(tmp_path).model_copy(update={"leave_out": tuple(rows)}))


def test_a_store_of_an_earlier_version_opens_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copied(tmp_path / "raw", {})
    store = prepare(config, tmp_path / "cache")
    hashes = store.perceptual_hashes()
    path = store.path / "samples.parquet"
    pd.read_parquet(path).drop(columns=HASH).to_parquet(path, index=False)
    manifest = {**store.manifest, "files": {**store.manifest["files"], path.name: path.stat().st_size}}
    manifest["checksums"] = of_files(store.path, manifest["files"])
    (store.path / "manifest.json").write_text(sealed(manifest, indent=1))
    capsys.readouterr()
    old: Store = prepare(config, tmp_path / "cache")
    assert "is of an earlier version, which did not compare the images of different patients" in capsys.readouterr().err
    assert (old.perceptual_hashes() == hashes).all() and not old.is_compared
