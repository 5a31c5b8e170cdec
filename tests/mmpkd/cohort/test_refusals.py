"""Data that cannot become a store, and disks that cannot hold one: what is said, and what is left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmpkd.cohort import disk, facts, reader_for
from mmpkd.cohort.facts import RawImage
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.table.reader import Table
from mmpkd.cohort.source import missing_files
from mmpkd.cohort.store import Store
from mmpkd.types import CohortError
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort, write_mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def left_behind(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock")


def test_an_image_that_does_not_decode_is_named_with_its_mend(root: Path, fresh: Path) -> None:
    (root / "images" / "case7.png").write_bytes(b"not a picture")
    noise = root / "images" / "case9.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)).save(noise)
    noise.write_bytes(noise.read_bytes()[:300])
    with pytest.raises(CohortError) as caught:
        prepare(config(root), fresh)
    message = str(caught.value)
    assert f"{root / 'images' / 'case7.png'}: is not an image" in message
    assert f"{noise}: cannot be read: image file is truncated" in message
    assert "2 of 60 samples" in message and "cohort.max_bad=0.034" in message
    assert len(message.splitlines()) < 20
    assert left_behind(fresh) == []


def test_bad_samples_within_the_share_are_left_out(root: Path, fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "images" / "case7.png").write_bytes(b"not a picture")
    store = prepare(config(root, max_bad=0.034), fresh)
    assert store.facts.num_samples == 59 == len(store.image_NCHW)
    assert "case7.png" not in store.sample_ids
    assert (store.image_NCHW[[6, 7, 58], 0, 5, 5] == [12, 16, 118]).all()  # the rest moved up with their labels
    assert store.target_NK[7, 0] == (cases()["pathology"][8] == "malignant")
    assert store.roi_mask(np.array([7])).any()
    assert "left out: " in capsys.readouterr().err and "case7.png" in store.manifest["left_out"]
    assert left_behind(fresh) == ["images.npy", "manifest.json", "rois.parquet", "samples.parquet"]
    prepare(config(root, max_bad=0.034), fresh)
    assert "warning: 1 sample left out, whose files cannot be read" in capsys.readouterr().err, "each time it is opened"
    with pytest.raises(CohortError, match="1 of 60 samples"):  # the store is there, but less is allowed now
        prepare(config(root), fresh)


def test_many_bad_files_fit_on_one_screen(root: Path, fresh: Path) -> None:
    for index in range(25):
        (root / "images" / f"case{index}.png").unlink()
    for call in (lambda: prepare(config(root), fresh), lambda: facts(config(root))):
        with pytest.raises(CohortError) as caught:
            call()
        assert "no such file" in str(caught.value) and "and 15 more" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 13


def test_a_mask_of_another_size_names_both_sizes(root: Path, fresh: Path) -> None:
    write_mask(root / "masks" / "case4.png", (30, 20))
    with pytest.raises(CohortError, match=r"masks/case4\.png: the mask is 20 x 30 pixels, its image 30 x 20"):
        prepare(config(root), fresh)
    assert left_behind(fresh) == []


def test_a_map_of_numbered_regions_is_no_mask(root: Path, fresh: Path) -> None:
    Image.fromarray(np.tile(np.array([0, 1, 2], np.uint8), (20, 10))).save(root / "masks" / "case4.png")
    with pytest.raises(CohortError, match=r"the mask holds 3 values \(0, 1, 2\), ground included; two are wanted"):
        prepare(config(root), fresh)


def test_a_credentialed_cohort_names_the_row_not_the_file(root: Path, fresh: Path) -> None:
    (root / "images" / "case7.png").write_bytes(b"not a picture")
    with pytest.raises(CohortError) as caught:
        prepare(config(root, credentialed=True), fresh)
    assert "row 9: is not an image" in str(caught.value)  # the header is row 1
    assert "case7" not in str(caught.value)


@pytest.mark.parametrize("name", ["case7" * 60 + ".png", "case7\0.png"])
def test_a_name_no_file_can_have_is_missing_and_unnamed(tmp_path: Path, fresh: Path, name: str) -> None:
    table = write_cohort(tmp_path / "raw")
    table.loc[7, "image"] = name
    table.to_csv(tmp_path / "raw" / "cases.csv", index=False)
    private = config(tmp_path / "raw", credentialed=True)
    for call in (lambda: prepare(private, fresh), lambda: facts(private)):
        with pytest.raises(CohortError, match="row 9: no such file") as caught:
            call()
        assert "case7" not in str(caught.value)


def test_one_image_of_another_depth_is_bad(tmp_path: Path, fresh: Path) -> None:
    write_cohort(tmp_path / "raw", depth=16)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "raw" / "images" / "case3.png")
    with pytest.raises(CohortError, match=r"case3\.png: has 8-bit pixels"):
        prepare(config(tmp_path / "raw"), fresh)


def test_a_full_disk_leaves_nothing(root: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "reserve", full)
    with pytest.raises(CohortError, match=r"No space left on device; needed 0\.3 MB, free .* MB.*cache=DIR"):
        prepare(config(root), fresh)
    assert left_behind(fresh) == []


def test_too_little_space_is_known_before_anything_is_written(
    root: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))

    def untouched(self: Table, sample_id: str) -> RawImage:
        raise AssertionError("decoded although it cannot be stored")

    monkeypatch.setattr(Table, "load", untouched)
    with pytest.raises(CohortError, match=r"needed 0\.3 MB, free 0\.0 MB"):
        prepare(config(root), fresh)
    assert left_behind(fresh) == []


def test_a_damaged_store_is_refused(root: Path, fresh: Path) -> None:
    store = prepare(config(root), fresh)
    with (store.path / "images.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CohortError, match=r"images\.npy has 1000 bytes, its manifest says \d+: delete it \(rm -r"):
        prepare(config(root), fresh)
    manifest = json.loads((store.path / "manifest.json").read_text())
    (store.path / "manifest.json").write_text(json.dumps({**manifest, "schema": 0}))
    with pytest.raises(CohortError, match="store schema 0, this program reads 5"):
        Store.open(store.path)
    with pytest.raises(CohortError, match="is not a prepared cohort"):
        Store.open(fresh)


def test_a_cache_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CohortError, match=r"cannot write to .*cache=DIR"):
        prepare(config(root), tmp_path / "file")


def test_files_outside_the_root(root: Path, tmp_path: Path) -> None:
    images, outside = root / "images", tmp_path / "outside.png"
    (images / "case0.png").rename(outside)
    (images / "case0.png").symlink_to(outside)  # a link out
    (images / "case2.png").rename(root / "case2.png")
    (images / "case2.png").symlink_to(root / "case2.png")  # a link within
    table = cases()
    table.loc[1, "image"] = "../../outside.png"
    table.to_csv(root / "cases.csv", index=False)
    lacking = missing_files(root, reader_for(config(root)).scan())
    assert {sample: bad.reason for sample, bad in lacking.items()} == dict.fromkeys(
        ("case0.png", "../../outside.png"), "leads out of cohort.root"
    )
