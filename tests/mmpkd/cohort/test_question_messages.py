"""Messages about tables of questions: they name the option, the columns, the rows and the files that are wrong."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from mmpkd.cohort import reader_for
from mmpkd.cohort.__main__ import main
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.show import show
from mmpkd.config import CohortConfig
from mmpkd.types import CohortError, ConfigError, UserError
from tests.mmpkd.cohort.question_trees import box
from tests.mmpkd.cohort.test_question_exclusions import cohort_of

SECRET = "Mrs Miller"


def config(root: Path, file: str, **params: Any) -> CohortConfig:
    return CohortConfig(reader="vqa", root=root, image_size=16, params={"file": file, **params})


@pytest.mark.parametrize(
    ("side", "num_boxes", "is_noticed"),
    [(20, 1, True), (224, 2, False), (224, 3, True), (680, 9, True), (700, 9, False)],
)
def test_few_boxes_are_enough_if_they_could_hardly_be_on_the_grid(
    side: int, num_boxes: int, is_noticed: bool, tmp_path: Path
) -> None:
    """By hand: (20 / 1000)^2 = 0.0004; 0.224^4 = 0.0025, 0.224^6 = 0.0001; 0.68^18 = 0.00097, 0.7^18 = 0.0016."""
    in_pixels = {"boxes": [1, 2, 10, 20]}
    rows = [in_pixels] * num_boxes + [{"boxes": ""}] * 5
    notes = prepare(cohort_of(tmp_path, rows, side=side), tmp_path / "cache").manifest["notes"]
    known = [note for note in notes if f"none of the {num_boxes} boxes" in note]
    assert len(known) == is_noticed


def test_boxes_of_large_images_and_repeated_boxes_are_no_sign(tmp_path: Path) -> None:
    """Every box on the grid lies within 1000 pixels. A box in a question counts, and an equal one in the answer adds
    nothing."""
    rows: list[dict[str, Any]] = [{"boxes": [900, 900, 1000, 1000]}] * 12
    notes = prepare(cohort_of(tmp_path, rows, side=1000), tmp_path / "large").manifest["notes"]
    assert not [note for note in notes if "boxes" in note]
    twice = {"question": "what is in <box>(1,2),(10,20)</box>?", "boxes": [1, 2, 10, 20]}
    for boxed, number in ([twice], 0), ([twice] * 2, 2):
        rows = boxed + [{"boxes": ""}] * 5
        notes = prepare(cohort_of(tmp_path, rows, side=100), tmp_path / "small").manifest["notes"]
        assert [f"none of the {number} boxes" in note for note in notes if "boxes of" in note] == [True] * len(
            boxed[1:]
        )


@pytest.mark.parametrize("file", ["rows.csv", "rows.jsonl"])
def test_a_wrong_column_is_shown_with_its_option_and_the_columns_that_exist(file: str, tmp_path: Path) -> None:
    cells = {"image": "a.png", "question": "where?", "replies": SECRET, "who": "p1"}
    content = f"{','.join(cells)}\n{','.join(cells.values())}\n" if file.endswith("csv") else json.dumps(cells)
    (tmp_path / file).write_text(content)
    cohort = config(tmp_path, file, answer="reply", patient="pat", views={"mri": "mri_file"})
    with pytest.raises(ConfigError) as caught:
        reader_for(cohort).scan()
    assert str(caught.value).splitlines() == [
        f"cohort.params.answer: {file} has no column 'reply' (did you mean 'replies'?)",
        f"cohort.params.patient: {file} has no column 'pat' (known: image, question, replies, who)",
        f"cohort.params.views.mri: {file} has no column 'mri_file' (known: image, question, replies, who)",
    ]
    (tmp_path / file).write_text(f"{SECRET},x\n1,2\n" if file.endswith("csv") else json.dumps({SECRET: 1}))
    with pytest.raises(ConfigError, match="has no column") as caught:
        reader_for(cohort).scan()
    assert SECRET not in str(caught.value), "no column is among those wanted: the first row may hold cells"


def test_a_torn_line_is_named_and_other_separators_do_not_tear_one(tmp_path: Path) -> None:
    line = json.dumps({"image": "a.png", "question": "where\u2028is it?", "answer": "there"}, ensure_ascii=False)
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n{line[:-20]}\n\n", encoding="utf-8")
    with pytest.raises(CohortError, match="line 2 is not JSON; mend line 2 or take it out; each line is one object"):
        reader_for(config(tmp_path, "rows.jsonl")).scan()
    path.write_text(f"{line}\n\n", encoding="utf-8")
    scan = reader_for(config(tmp_path, "rows.jsonl")).scan()
    assert scan.questions is not None and len(scan.questions) == 1
    (tmp_path / "rows.csv").write_text("image,question,answer\na.png,where, is it?,there\n")
    with pytest.raises(CohortError, match=r"fields in line 2, saw 4.*mend this line: a cell that holds a comma"):
        reader_for(config(tmp_path, "rows.csv")).scan()


def test_questions_without_an_answer_are_named_and_shown_for_no_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ["train"] * 3 + ["val", "test"] * 2
    rows: list[dict[str, Any]] = [{"part": part, "answer": box(number)} for number, part in enumerate(parts)]
    rows[1]["answer"] = rows[2]["answer"] = ""
    cohort = cohort_of(tmp_path, [row | {"boxes": ""} for row in rows])
    with pytest.raises(
        CohortError, match=r"folds validate in turn have no answer \(rows 2, 3\)\..*cohort.params.split"
    ):
        prepare(cohort, tmp_path / "cache")
    cohort = cohort.model_copy(update={"params": {**cohort.params, "split": "part"}})
    console = Console(file=io.StringIO(), width=160)
    show(prepare(cohort, tmp_path / "cache"), console)
    lines = [re.findall(r"[\w ]*\w", line) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    table = [[cell.strip() for cell in line] for line in lines if len(line) == 5]
    assert ["modality", "images", "VG", "without an answer", "all"] in table and ["image", "7", "5", "2", "7"] in table
    rows[-1]["answer"] = ""
    cohort_of(tmp_path, [row | {"boxes": ""} for row in rows])
    with pytest.raises(CohortError, match=r"1 of 7 questions in val or test have no answer \(row 7\)\.") as caught:
        prepare(cohort, tmp_path / "cache")
    assert "cohort.params.split" not in str(caught.value), "it was stated"


def test_show_prints_each_note_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = cohort_of(tmp_path, [{"boxes": [1, 2, 10, 20]}] * 6)
    (tmp_path / "cohort.yaml").write_text(json.dumps({"cohort": cohort.model_dump(mode="json")}))
    for _ in range(2):  # the store is new, then known
        main(["show", f"config={tmp_path / 'cohort.yaml'}", f"cache={tmp_path / 'cache'}"])
        assert "".join(capsys.readouterr()).count("none of the 6 boxes") == 1
    main(["prepare", f"config={tmp_path / 'cohort.yaml'}", f"cache={tmp_path / 'cache'}"])
    assert capsys.readouterr().err.count("none of the 6 boxes") == 1


def test_rows_of_conflicts_are_named_and_of_a_view_that_is_missing_the_column_or_the_path(tmp_path: Path) -> None:
    for name in "ab345":
        Image.new("L", (8, 8), 9).save(tmp_path / f"{name}.png")
    more = "".join(f"{number}.png,q,r,p{number},a.png\n" for number in range(3, 6))
    header = "image,question,answer,who,mri_file\n"
    (tmp_path / "rows.csv").write_text(f"{header}a.png,q,r,p1,b.png\nb.png,q,r,p2,a.png\na.png,s,r,p1,{SECRET}.png\n")
    cohort = config(tmp_path, "rows.csv", patient="who", views={"mri": "mri_file"})
    with pytest.raises(CohortError, match=r"1 image name different views \(column 'mri_file'\), in rows 2 and 4;"):
        reader_for(cohort).scan()
    (tmp_path / "rows.csv").write_text(f"{header}a.png,q,r,p1,b.png\nb.png,q,r,p2,{SECRET}.png\n" + more)
    with pytest.raises(UserError, match="row 3, column 'mri_file': no such file") as caught:
        prepare(cohort, tmp_path / "cache")
    assert SECRET not in str(caught.value)
    public = cohort.model_copy(update={"params": {**cohort.params, "credentialed": False}})
    with pytest.raises(UserError, match=f"{SECRET}.png: no such file"):
        prepare(public, tmp_path / "cache")
