"""From files to a store: what is kept, and what an interruption leaves."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpkd.cohort import facts, journal, reader_for, splits
from mmpkd.cohort import prepare as preparation
from mmpkd.cohort.facts import RawImage
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.table.reader import Table
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig
from mmpkd.frames import from_run_lengths
from mmpkd.types import CohortError
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort

LESION = (slice(5, 10), slice(10, 20))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sample ids in the order they were decoded."""
    seen: list[str] = []
    load = Table.load

    def counted(self: Table, sample_id: str) -> RawImage:
        seen.append(sample_id)
        return load(self, sample_id)

    monkeypatch.setattr(Table, "load", counted)
    return seen


def test_store_holds_what_was_written(root: Path, fresh: Path) -> None:
    table = cases()
    store = prepare(config(root), fresh)
    assert store.sample_ids.tolist() == table["image"].tolist()
    assert store.image_NCHW.shape == (60, 1, 15, 15) and store.image_NCHW.dtype == np.uint8
    # 20 x 30 scaled by a half is 10 x 15: two rows of padding above, three below
    assert store.content_box_N4.tolist() == [[2, 0, 12, 15]] * 60
    for index in (0, 17, 59):
        assert (store.image_NCHW[index, 0, 2:12] == 2 * index).all()
        assert (store.image_NCHW[index, 0, :2] == 0).all() and (store.image_NCHW[index, 0, 12:] == 0).all()
    assert store.target_NK[:, 0].tolist() == [float(name == "malignant") for name in table["pathology"]]
    assert store.known_NK.all() and store.target_NK.dtype == np.float32
    assert len(set(store.patient_N)) == 30 and (store.patient_N[::2] == store.patient_N[1::2]).all()
    assert store.manifest["bit_depth"] == 8 and store.manifest["window"] is None
    assert store.facts == facts(config(root))


def test_regions_of_interest(root: Path, fresh: Path) -> None:
    store = prepare(config(root), fresh)
    assert store.roi_mask(np.arange(3)).any(axis=(2, 3)).tolist() == [[True], [False], [True]]
    mask = store.roi_mask(np.array([4, 1]))
    expected = np.zeros((15, 15), bool)
    expected[4:7, 5:10] = True  # rows 5-9 halved are 2.5-4.5: rows 2 (half covered), 3 and 4, below 2 of padding
    assert (mask[0, 0] == expected).all() and not mask[1].any()
    rois = pd.read_parquet(store.path / "rois.parquet")
    original = from_run_lengths(rois["runs"][0], (rois["height"][0], rois["width"][0]))
    assert original.shape == (20, 30) and original[LESION].all() and original.sum() == 50


def test_privileged_columns(root: Path, fresh: Path) -> None:
    store = prepare(config(root), fresh)
    columns = store.privileged(["age", "shape", "birads"])
    assert columns.index.tolist() == store.sample_ids.tolist()
    assert columns["age"].dtype == np.float64 and columns["age"].tolist() == cases()["age"].astype(float).tolist()
    assert columns["shape"].isna().tolist() == (cases()["shape"] == "n/a").tolist()
    stored = set(pd.read_parquet(store.path / "samples.parquet").columns)
    assert not [name for name in stored if "biopsy" in name or "scanner" in name or "pathology" in name]
    assert store.facts.unlisted == ("scanner",)


def test_folds_go_by_patient_and_test_stays_sealed(root: Path, fresh: Path) -> None:
    store = prepare(config(root), fresh)
    test = set(store.rows("test"))
    for fold in range(4):
        train, val = set(store.rows("train", fold)), set(store.rows("val", fold))
        parts = [{int(store.patient_N[row]) for row in part} for part in (train, val, test)]
        assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]
        assert train | val | test == set(range(60))
        assert list(store.rows("train", fold)) == sorted(train)
    assert len({tuple(store.rows("val", fold)) for fold in range(4)}) == 4


def test_fingerprint_follows_content_not_place(root: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "elsewhere")
    one = prepare(config(root), tmp_path / "a")
    other = prepare(config(tmp_path / "elsewhere"), tmp_path / "b")
    assert one.fingerprint == other.fingerprint and one.path.name == other.path.name
    assert (one.path / "images.npy").read_bytes() == (other.path / "images.npy").read_bytes()
    resized = prepare(config(root, image_size=16), tmp_path / "a")
    table = cases()
    table.loc[0, "age"] = "81"
    table.to_csv(root / "cases.csv", index=False)  # as many bytes as before
    changed = prepare(config(root), tmp_path / "a")
    assert len({one.fingerprint, resized.fingerprint, changed.fingerprint}) == 3


def test_a_second_preparation_decodes_nothing(root: Path, fresh: Path, loads: list[str]) -> None:
    prepare(config(root), fresh)
    num_loads = len(loads)
    prepare(config(root), fresh)
    assert num_loads >= 60 and len(loads) == num_loads


def test_two_at_once_prepare_once(root: Path, fresh: Path, loads: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: prepare(config(root), fresh), range(2))
    assert one.path == other.path
    assert len(loads) - len(set(loads)) <= 1  # the first image is also looked at for its depth


def test_an_interrupted_preparation_continues(
    root: Path, fresh: Path, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "BLOCK", 8)
    counted = Table.load

    def interrupted(self: Table, sample_id: str) -> RawImage:
        if sample_id == "case30.png":
            raise KeyboardInterrupt
        return counted(self, sample_id)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(Table, "load", interrupted)
        prepare(config(root), fresh)
    (partial,) = (fresh / "stores").glob("*.partial")
    assert not list((fresh / "stores").glob("*/manifest.json"))
    with (partial / "journal.jsonl").open("a") as file:
        file.write('["case24.png", 20')  # killed while writing
    loads.clear()
    store = prepare(config(root), fresh)
    assert set(loads) == {f"case{index}.png" for index in range(24, 60)}  # three blocks of eight were done
    assert not partial.exists()
    whole = prepare(config(root), tmp_path / "uninterrupted")
    for name in ("images.npy", "samples.parquet", "rois.parquet", "manifest.json"):
        assert (store.path / name).read_bytes() == (whole.path / name).read_bytes(), name


@pytest.mark.parametrize("step", ["write_tables", "keep_rows", "_counts"])
def test_killed_after_decoding_with_a_sample_left_out(
    root: Path, fresh: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, while and after the arrays lose the rows of bad samples."""
    (root / "images" / "case7.png").write_bytes(b"not a picture")
    asked = config(root, max_bad=0.034)
    done = getattr(preparation, step)

    def killed(*args: Any) -> None:
        done(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(preparation, step, killed)
        prepare(asked, fresh)
    store = prepare(asked, fresh)
    whole = prepare(asked, tmp_path / "uninterrupted")
    names = sorted(file.name for file in whole.path.iterdir())
    assert sorted(file.name for file in store.path.iterdir()) == names
    for name in names:
        assert (store.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_what_lies_about_without_a_journal_is_swept(
    root: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while rows were moved; then the bad file can be read after all, and as many bytes long."""
    file = root / "images" / "case7.png"
    good = file.read_bytes()
    file.write_bytes(bytes(len(good)))
    asked = config(root, max_bad=0.034)

    def killed(path: Path, *args: Any) -> None:
        path.with_name("kept-images.npy").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(preparation, "keep_rows", killed)
        prepare(asked, fresh)
    file.write_bytes(good)
    store = prepare(asked, fresh)
    assert store.facts.num_samples == 60 and not list(store.path.glob("kept-*"))


def test_a_store_outlives_its_source(root: Path, fresh: Path) -> None:
    store = prepare(config(root), fresh)
    shutil.rmtree(root)
    opened = Store.open(store.path)
    assert (opened.image_NCHW[59, 0, 2:12] == 118).all() and opened.roi_mask(np.array([58])).any()
    assert opened.facts == store.facts and len(opened.privileged(["age"]).dropna()) == 60


def test_empty_masks_count_as_no_region(root: Path, fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(root / "masks" / "case4.png")
    store = prepare(config(root), fresh)
    assert not store.roi_mask(np.array([4])).any() and store.manifest["counts"]["empty_masks"] == 1
    assert "masks without a region (empty, or lacking their mask_value): 1" in capsys.readouterr().err


def test_sixteen_bits_share_one_window(tmp_path: Path, fresh: Path) -> None:
    write_cohort(tmp_path / "raw", depth=16)  # grey 0, 200, ... 11800
    store = prepare(config(tmp_path / "raw"), fresh)
    low, high = store.manifest["window"]
    assert store.manifest["bit_depth"] == 16 and 0 <= low < high <= 11800
    seen = np.setdiff1d(np.arange(60), store.rows("test"))[[0, -1]] * 200
    assert seen[0] <= low < seen[0] + 300 and seen[1] - 300 < high <= seen[1]
    expected = np.clip((200 * np.arange(60) - low) / (high - low), 0, 1) * 255
    assert np.abs(store.image_NCHW[:, 0, 6, 6] - expected).max() <= 0.5


def test_the_window_does_not_look_at_the_sealed_test(tmp_path: Path, fresh: Path) -> None:
    table = cases().assign(part=["train"] * 30 + ["val"] * 12 + ["test"] * 18)
    write_cohort(tmp_path / "raw", table, depth=16)
    store = prepare(config(tmp_path / "raw", split="part"), fresh)
    _, high = store.manifest["window"]
    assert high <= 41 * 200 and (store.image_NCHW[42:, 0, 6, 6] == 255).all()


def test_views_and_text_are_stored_in_order(tiny_cohort: CohortConfig, cache: Path) -> None:
    store = prepare(tiny_cohort, cache)
    reader = reader_for(tiny_cohort)
    scan = reader.scan()
    views = np.load(store.path / "views" / "superior.npy")
    text = pd.read_parquet(store.path / "text.parquet").set_index("sample")
    assert scan.text is not None and text.index.tolist() == store.sample_ids.tolist()
    for row in (0, 50, 101):
        raw = reader.load(store.sample_ids[row])
        assert (store.image_NCHW[row, 0] == raw.image).all() and (views[row, 0] == raw.views["superior"]).all()
    pd.testing.assert_frame_equal(text, scan.text, check_names=False, check_dtype=False)


def test_an_official_validation_part_has_no_folds(tiny_cohort: CohortConfig, cache: Path) -> None:
    store = prepare(tiny_cohort, cache)
    assert [len(store.rows(part)) for part in ("train", "val", "test")] == [60, 30, 12]
    with pytest.raises(CohortError, match=r"cohort\.fold=2: the cohort has an official validation part"):
        store.rows("val", 2)


def test_folds_are_dealt_once(root: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an evaluation as well, which first tries whether they can be dealt."""
    numbers, deal = [], splits._deal_by_strata

    def counted(scan: facts.Scan, chosen: Any, number: int) -> Any:
        numbers.append(number)
        return deal(scan, chosen, number)

    monkeypatch.setattr(splits, "_deal_by_strata", counted)
    store = prepare(config(root), fresh, folds=False)
    assert numbers == [5] and store.num_folds == 4
