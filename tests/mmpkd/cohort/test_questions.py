"""Cohorts of questions: what the store holds, where answers may lack, and that other stores are as before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import facts, splits
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.questions import COLUMNS, check
from mmpkd.cohort.readers.synthetic import CLASSES
from mmpkd.cohort.readers.synthetic_vqa import MODALITIES, SyntheticVqa, SyntheticVqaParams
from mmpkd.cohort.store import MANIFEST, Store
from mmpkd.config import CohortConfig
from mmpkd.types import CohortError
from mmpkd.vlm.boxes import GRID, parse

SMALL = {"train": 24, "val": 12, "test": 12, "side": 48, "labelled": 0.25}
CONFIG = CohortConfig(reader="synthetic_vqa", params=SMALL, image_size=48)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare(CONFIG, tmp_path_factory.mktemp("questions"))


def test_the_store_holds_the_questions_of_the_scan_with_their_rows(store: Store) -> None:
    scanned = SyntheticVqa(None, SyntheticVqaParams(**SMALL)).scan().questions
    assert scanned is not None
    stored = store.questions
    assert tuple(stored) == (*COLUMNS, "row") and isinstance(stored.index, pd.RangeIndex)
    pd.testing.assert_frame_equal(stored[list(COLUMNS)], scanned, check_dtype=False)
    assert (store.sample_ids[stored["row"]] == stored["sample"]).all()
    known = store.facts.questions
    assert known is not None and known == facts(CONFIG).questions
    assert (known.num_items, known.num_unanswered, known.has_boxes) == (192, 4 * 18, True)
    assert known.tasks == ("GC", "MII", "RO", "VG") and set(known.modalities) <= set(MODALITIES)
    assert set(store.split_N[stored["row"]][stored["answer"].isna()]) == {"train"}
    assert Store.open(store.path).questions.equals(stored)


def test_answers_are_true_of_the_pixels(store: Store) -> None:
    """The lesion is darker than its surroundings, or brighter where the modality inverts: the box tells where."""
    items = store.questions[store.questions["answer"].notna()].set_index(["row", "task"])
    differences = []
    for row in items.index.get_level_values("row").unique():
        (box,) = parse(items.loc[(row, "VG"), "answer"])
        assert items.loc[(row, "RO"), "question"].count(items.loc[(row, "VG"), "answer"]) == 1
        left, top, right, bottom = (round(48 * value / GRID) for value in box)
        assert 14 <= right - left <= 23 and 14 <= bottom - top <= 23  # a radius of a sixth to a 4.5th of the side
        image = store.view("superior")[row, 0].astype(float)
        middle = np.zeros((48, 48), bool)
        middle[top + 4 : bottom - 4, left + 4 : right - 4] = True
        outside = np.ones((48, 48), bool)
        outside[top:bottom, left:right] = False
        sign = np.sign(MODALITIES[items.loc[(row, "VG"), "modality"]].contrast)
        differences.append(sign * (image[middle].mean() - image[outside].mean()))
        word = items.loc[(row, "RO"), "answer"]
        half = "left" if left + right < 48 else "right"
        assert items.loc[(row, "GC"), "answer"] == f"a {word} lesion in the {half} half" and word in CLASSES
        yes = f"is the lesion {word}?" == items.loc[(row, "MII"), "question"]
        assert items.loc[(row, "MII"), "answer"] == ("yes" if yes else "no")
    assert np.mean(differences) < -10  # of 255; the lesion is 0.08 darker


def test_a_tint_changes_the_superior_view_alone_and_by_class() -> None:
    plain, tinted = (SyntheticVqa(None, SyntheticVqaParams(**SMALL, darkness=0.3, tint=tint)) for tint in (0.0, 0.2))
    changes: dict[str, list[float]] = {word: [] for word in CLASSES}
    questions = plain.scan().questions
    assert questions is not None
    for sample, answer in questions.loc[questions["task"] == "RO", ["sample", "answer"]].dropna().to_numpy()[:24]:
        before, after = plain.load(sample), tinted.load(sample)
        assert np.array_equal(before.image, after.image)
        changes[answer].append(float(np.mean(after.views["superior"] - before.views["superior"].astype(float))))
    darker, same, brighter = (np.mean(changes[word]) for word in reversed(CLASSES))
    assert darker < -3 and same == 0 and brighter > 3  # of 255; a lesion covers a tenth of the image


def test_yes_and_no_are_balanced_and_a_larger_share_of_answers_contains_a_smaller_one() -> None:
    few, many = (
        SyntheticVqa(None, SyntheticVqaParams(train=400, val=10, test=10, labelled=share)).scan().questions
        for share in (0.25, 0.5)
    )
    assert few is not None and many is not None
    assert (few["answer"].notna() <= many["answer"].notna()).all()
    yes = many.loc[(many["task"] == "MII") & many["answer"].notna(), "answer"] == "yes"
    assert yes.mean() == pytest.approx(0.5, abs=0.14)  # four standard errors of 220


def test_stores_without_questions_are_as_before(tmp_path: Path) -> None:
    plain = CohortConfig(reader="synthetic", params={"train": 20, "val": 20, "test": 20}, image_size=48)
    store = prepare(plain, tmp_path)
    manifest = json.loads((store.path / MANIFEST).read_text())
    assert "questions" not in manifest["facts"] and "questions.parquet" not in manifest["files"]
    assert store.facts.questions is None
    with pytest.raises(CohortError, match="holds no questions"):
        _ = store.questions


def test_a_damaged_table_is_refused(store: Store, tmp_path: Path) -> None:
    pd.read_parquet(store.path / "questions.parquet").assign(sample="nobody").to_parquet(tmp_path / "other.parquet")
    broken = Store(store.path, store.manifest)
    broken.path = tmp_path
    (tmp_path / "other.parquet").rename(tmp_path / "questions.parquet")
    with pytest.raises(CohortError, match=r"questions.parquet is damaged \(LookupError\)"):
        _ = broken.questions


def test_an_answer_may_lack_in_official_training_parts_alone() -> None:
    scan = SyntheticVqa(None, SyntheticVqaParams(**SMALL)).scan()
    questions, split = scan.questions, scan.samples["split"]
    assert questions is not None
    check(questions, split)
    check(None, split)
    with pytest.raises(CohortError, match="72 of 192 questions in a cohort whose folds validate in turn"):
        check(questions, None)
    with pytest.raises(CohortError, match="folds validate in turn"):
        check(questions, split.replace("val", "test"))  # no part val: the training part is dealt into folds
    first_of_test = questions.index[questions["sample"].map(split) == "test"][0]
    questions.loc[first_of_test, "answer"] = np.nan
    with pytest.raises(CohortError, match="1 of 192 questions in val or test have no answer") as caught:
        check(questions, split)
    assert "lesion" not in str(caught.value)


def test_folds_are_dealt_by_modality_and_images_left_out_take_their_questions_along() -> None:
    scan = SyntheticVqa(None, SyntheticVqaParams(train=160, val=10, test=10)).scan()
    dealt = splits.assign(replace(scan, samples=scan.samples.drop(columns="split")))
    assert set(dealt) == {"fold0", "fold1", "fold2", "fold3", "test"}
    modality = dealt.index.str.partition("_").get_level_values(0)
    assert pd.crosstab(dealt, modality).to_numpy().min() >= 1  # each part has images of all eight
    without = facts(CONFIG.model_copy(update={"leave_out": (1, 2)})).questions
    assert without is not None and without.num_items == 192 - 8
