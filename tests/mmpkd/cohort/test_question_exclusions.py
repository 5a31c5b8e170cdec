"""What happens to a cohort of questions of which many cannot be used, or some have boxes in another unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig
from mmpkd.types import UserError


def cohort_of(root: Path, rows: list[dict[str, Any]], side: int = 20, max_bad: float = 0.0) -> CohortConfig:
    """Writes a row, with an image of a patient of its own, for each of the given questions."""
    for number in range(len(rows)):
        Image.new("L", (side, side), 5 * number).save(root / f"{number}.png")
    default = {"question": "where?", "answer": "there"}
    lines = [json.dumps({"image": f"{number}.png", **default, **row}) for number, row in enumerate(rows)]
    (root / "rows.jsonl").write_text("\n".join(lines))
    content = {"reader": "vqa", "root": str(root), "image_size": 16, "max_bad": max_bad}
    return CohortConfig.model_validate(content | {"params": {"file": "rows.jsonl", "boxes": "boxes"}})


def test_a_cohort_that_loses_most_of_its_questions_is_refused(tmp_path: Path) -> None:
    torn = {"answer": "plantedanswer <box>(1,2)", "boxes": None}
    rows = [torn] * 6 + [{"boxes": ""}] * 5
    with pytest.raises(UserError, match=r"(?s)more than half of the questions.*6 of 11 .*torn box") as caught:
        facts(cohort_of(tmp_path, rows))
    assert "cohort.max_bad=0.546" in str(caught.value) and "planted" not in str(caught.value)
    assert facts(cohort_of(tmp_path, rows, max_bad=0.546)).questions is not None
    assert facts(cohort_of(tmp_path, rows[1:])).questions is not None, "half of them may be left out"


def test_not_a_number_is_no_answer(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, [{"answer": float("nan"), "boxes": [1, 2, 3, 4]}, {"answer": float("nan")}])
    questions = reader_for(cohort).scan().questions
    assert questions is not None and questions["answer"].iloc[0] == "<box>(1,2),(3,4)</box>"
    assert questions["answer"].isna().tolist() == [False, True]


@pytest.mark.parametrize(("num_in_pixels", "is_noticed"), [(12, True), (3, False)])
def test_boxes_of_which_some_are_in_pixels_are_noticed(num_in_pixels: int, is_noticed: bool, tmp_path: Path) -> None:
    """Images of 200 x 200 pixels; the others have boxes on the grid, one of them at the right and the bottom."""
    in_pixels, on_grid = {"boxes": [10, 10, 90, 120]}, {"boxes": [400, 300, 600, 500]}
    rows = [in_pixels] * num_in_pixels + [on_grid] * 20 + [{"boxes": [900, 900, 1000, 1000]}]
    notes = prepare(cohort_of(tmp_path, rows, side=200), tmp_path / "cache").manifest["notes"]
    known = [note for note in notes if "in pixels and the others are not" in note]
    assert len(known) == is_noticed and all("12 of the 33 boxes" in note and "more than 1" in note for note in known)


@pytest.mark.parametrize("key", ["task", "modality"])
def test_texts_are_no_names_of_scores(key: str, tmp_path: Path) -> None:
    """A column of free text would be printed and sent to MLflow, word for word, as names of scores."""
    cohort = cohort_of(tmp_path, [{key: f"planted {number}", "boxes": ""} for number in range(51)])
    cohort = cohort.model_copy(update={"params": {**cohort.params, key: key}})
    with pytest.raises(UserError, match=rf"cohort.params.{key}\) holds 51 different names") as caught:
        facts(cohort)
    assert "planted" not in str(caught.value)
