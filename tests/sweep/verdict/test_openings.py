"""Openings that the ledger recognises although the cohort, the students or the external cohort are others now."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpkd.cohort.likeness import MIN_SIDE, NO_HASH
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, validate
from mmpkd.export.student_file import source_of
from mmpkd.types import ConfigError
from sweep.storage.layout import Storage
from sweep.transfer.addresses import Place
from sweep.verdict.folder import ConfirmationFolder
from sweep.verdict.opening.ledger import Ledger
from sweep.verdict.opening.sharing import Images, is_among

SIDE = 24


def table_cohort(tmp_path: Path, patients: int = 40, side: int = SIDE) -> tuple[Path, CohortConfig]:
    """Writes a table with an image of noise for each patient."""
    root, generator = tmp_path / "data", np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for number in range(patients):
        pixels_HW = generator.integers(0, 256, (side, side), np.uint8)
        Image.fromarray(pixels_HW).save(root / f"{number}.png")
    names = [f"{number}.png" for number in range(patients)]
    kinds = ["benign" if number % 3 else "malignant" for number in range(patients)]
    pd.DataFrame({"image": names, "patient": names, "kind": kinds}).to_csv(root / "cases.csv", index=False)
    tasks = {"kind": {"kind": "binary", "column": "kind", "labels": ["benign", "malignant"]}}
    params = {"file": "cases.csv", "image": "image", "patient": "patient", "tasks": tasks}
    section = {"reader": "table", "root": str(root), "image_size": SIDE, "params": params}
    return root, validate(CohortConfig, section, "cohort")


def ledger_of(store: Store, tmp_path: Path) -> Ledger:
    storage = Storage(tmp_path / "runs")
    return Ledger.of(Place("", str(tmp_path / "cache")), source_of(store.manifest), storage, store=store)


def folder_of(tmp_path: Path, name: str) -> ConfirmationFolder:
    folder = Storage(tmp_path / "runs").sweep(name)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.spool.touch()
    return ConfirmationFolder(folder)


def test_a_corrected_label_does_not_hide_an_opening(tmp_path: Path) -> None:
    root, config = table_cohort(tmp_path)
    before = prepare(config, tmp_path / "stores")
    ledger_of(before, tmp_path).open(folder_of(tmp_path, "first"), "a", "command", False)
    table = pd.read_csv(root / "cases.csv")
    table.loc[7, "kind"] = "malignant"
    table.to_csv(root / "cases.csv", index=False)
    after = prepare(config, tmp_path / "stores")
    assert source_of(after.manifest) != source_of(before.manifest), "the key of the ledger"
    ledger = ledger_of(after, tmp_path)
    tested, opened = (set(store.sample_ids[store.split_N == "test"]) for store in (after, before))
    shares = f"another version of this data: {len(opened)} of the {len(opened)} images that were opened then"
    with pytest.raises(ConfigError, match=rf"opened before:\n.*{shares}.*\n.*again=true"):
        ledger.refuse_second("b", False)
    (earlier,) = ledger.others("b")
    again = f"and {len(tested & opened)} of the {len(tested)} images to be tested were opened then"
    assert earlier.shares.startswith(shares) and earlier.shares.endswith(again)
    ledger.open(folder_of(tmp_path, "second"), "b", "command", True)
    assert {opening.sweep for opening in ledger_of(after, tmp_path).read()} == {"first", "second"}
    shutil.rmtree(tmp_path / "cache")
    assert {opening.sweep for opening in ledger_of(after, tmp_path).read()} == {"first", "second"}, "by the records"


def test_other_patients_of_the_same_kind_are_not_opened(tmp_path: Path) -> None:
    _, config = table_cohort(tmp_path)
    first = prepare(config, tmp_path / "stores")
    ledger_of(first, tmp_path).open(folder_of(tmp_path, "first"), "a", "command", False)
    for file in (tmp_path / "data").glob("*.png"):
        pixels_HW = np.random.default_rng(int(file.stem) + 99).integers(0, 256, (SIDE + 1, SIDE), np.uint8)
        Image.fromarray(pixels_HW).save(file)
    second = prepare(config, tmp_path / "stores")
    assert source_of(second.manifest) != source_of(first.manifest)
    assert not ledger_of(second, tmp_path).read()


def hashes(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_half_of_the_images_count_as_most() -> None:
    """Four images were opened. A cohort with two of them counts, with one it does not, unless it tests no other."""
    four = hashes(*(0xFF << shift for shift in (0, 16, 32, 48)))
    earlier = Images(four, four).text
    assert (
        Images(hashes(0xFF << 8), np.append(four[:2], hashes(0xFF << 8)))
        .shared_with(earlier)
        .startswith(
            "another version of this data: 2 of the 4 images that were opened then are in this cohort, and 0 of the 1"
        )
    )
    others = hashes(0xFF << 8, 0xFF << 24)
    assert not Images(np.append(others, four[:1]), np.append(others, four[:1])).shared_with(earlier)
    assert Images(four[:1], np.append(others, four[:1])).shared_with(earlier)
    assert not Images().shared_with(earlier) and not Images(four, four).shared_with("")


def test_hashes_that_differ_in_three_bits_are_of_one_image() -> None:
    assert is_among(hashes(0b0111, 0b1111), hashes(0, 1 << 63)).tolist() == [True, False]
    assert is_among(hashes(), hashes(1)).tolist() == is_among(hashes(1), hashes()).tolist()[1:] == []


def test_images_without_a_hash_are_not_compared(tmp_path: Path) -> None:
    _, config = table_cohort(tmp_path, side=MIN_SIDE - 8)
    small = config.model_copy(update={"image_size": MIN_SIDE - 8})
    store = prepare(small, tmp_path / "stores")
    assert (store.perceptual_hashes() == NO_HASH).all() and Images.of(store, True).text == ""


def test_another_result_under_the_same_protocol_is_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "first")
    ledger = Ledger.of(Place("", str(tmp_path / "cache")), "source", Storage(tmp_path / "runs"))
    ledger.open(folder, "a", "command", False)
    assert ledger.note_result(folder, "a", "1" * 16) == ledger.note_result(folder, "a", "1" * 16) == []
    (line,) = ledger.note_result(folder, "a", "2" * 16)
    assert "has given another result before" in line and line.endswith("or on another machine.")
    assert ledger.note_result(folder, "a", "2" * 16) == [line]
    assert [opening.result[:1] for opening in ledger.read()] == ["1", "2"] and not ledger.lost()
    shutil.rmtree(tmp_path / "cache")
    assert [opening.result[:1] for opening in ledger.read()] == ["1", "2"], "by the record of the confirmation"
