"""The readers of questions: the exact forms of Med-GRIT-270k, users' tables, and what is wrong with either."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from rich.console import Console

from mmpkd.build import goals
from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.check import check
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.show import show
from mmpkd.config import CohortConfig
from mmpkd.types import UserError
from tests.mmpkd.cohort.question_trees import TAG, TRAIN, box, write_med_grit

SECRET = "Mrs Miller"


def config(root: Path, reader: str = "med_grit", **params: Any) -> CohortConfig:
    return CohortConfig(reader=reader, root=root, image_size=24, params=params)


def test_the_forms_of_the_authors_are_read_stored_shown_and_checked(tmp_path: Path) -> None:
    write_med_grit(tmp_path / "tree")
    store = prepare(config(tmp_path / "tree"), tmp_path / "cache")
    items = store.questions.set_index(["sample", "task"])
    assert len(items) == 4 * 10 and store.facts.questions is not None and len(store.facts.questions.modalities) == 8
    for sample, number, part in (("ct_00--set8--case--x_0008", 0, "test"), ("mr_00--set1--case--x_0001", 1, "fold")):
        assert items.loc[(sample, "VG"), "question"] == "Where is the liver?"
        assert items.loc[(sample, "VG"), "answer"] == f"the liver{box(number)}"
        assert items.loc[(sample, "RO"), ["question", "answer"]].tolist() == [f"What is in {box(number)}?", "liver"]
        assert items.loc[(sample, "GC"), "answer"].startswith("The region")
        assert items.loc[(sample, "MII"), "answer"] == "The liver and the spleen."
        assert store.split_N[items.loc[(sample, "VG"), "row"]].startswith(part)
    console = Console(file=io.StringIO(), width=160)
    show(store, console)
    check(config(tmp_path / "tree"), tmp_path / "cache", 2, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "without an answer" in output and "dermoscopy" in output and "complete" in output and "liver" not in output


def test_volumes_are_grouped_if_that_is_wanted(tmp_path: Path) -> None:
    files = write_med_grit(tmp_path, num_train=3, num_test=1)
    twin = files[TRAIN][0] | {"id": files["Test_VG.json"][0]["id"].replace("x_0003", "x_0009")}
    (tmp_path / TRAIN).write_text(json.dumps([*files[TRAIN], twin]))
    (tmp_path / "images" / f"{twin['id']}.png").write_bytes(b"")
    volumes = reader_for(config(tmp_path, patient="volume")).scan()
    assert twin["id"] not in volumes.samples.index and volumes.samples["patient"].iloc[0].endswith("--case")
    assert any("4 of" in note and "volumes that are in a test file" in note for note in volumes.notes)
    images = reader_for(config(tmp_path)).scan()
    assert twin["id"] in images.samples.index and not images.notes


Entry = dict[str, Any]


def turn(entry: Entry, at: int, **changes: Any) -> None:
    entry["conversations"][at].update(changes)


def swap(entry: Entry) -> None:
    entry["conversations"].reverse()


HOSTILE: dict[str, tuple[Callable[[Entry], Any], str]] = {  # what happens to the first training dialogue; the note
    "box beyond": (lambda e: turn(e, 1, value="<box>(10,10),(1001,20)</box>"), "1 of .* leaves the grid"),
    "box below zero": (lambda e: turn(e, 1, value="<box>(-1,10),(30,20)</box>"), "1 of .* leaves the grid"),
    "corners swapped": (lambda e: turn(e, 1, value="<box>(300,10),(10,20)</box>"), "1 of .* second corner"),
    "empty box": (lambda e: turn(e, 1, value="<box>(10,10),(10,20)</box>"), "1 of .* second corner"),
    "torn end": (lambda e: turn(e, 1, value=f"{SECRET} <box>(10,10),(30,2"), "1 of .* torn box in the answer"),
    "torn start": (lambda e: turn(e, 2, value="What is (10,10),(30,20)</box>?"), "1 of .* torn box in the question"),
    "three numbers": (lambda e: turn(e, 1, value="<box>(10,10),(30)</box>"), "1 of .* torn box"),
    "decimals": (lambda e: turn(e, 1, value="<box>(.1,.1),(.3,.3)</box>"), "1 of .* torn box"),
    "other order": (swap, "4 of .* do not alternate"),
    "odd turn": (lambda e: e["conversations"].pop(), "4 of .* do not alternate"),
    "role unknown": (lambda e: turn(e, 0, **{"from": "system"}), "4 of .* do not alternate"),
    "pair of three": (lambda e: e.update(conversations=[["a", "b", SECRET]]), "1 of .* do not alternate"),
    "no turns": (lambda e: e.update(conversations=[]), "1 of .* without turns"),
    "turns are text": (lambda e: e.update(conversations=SECRET), "1 of .* without turns"),
    "empty answer": (lambda e: turn(e, 1, value="  "), "1 of .* an empty answer"),
    "answer is a number": (lambda e: turn(e, 1, value=3), "4 of .* do not alternate"),
    "only the image": (lambda e: turn(e, 0, value=TAG.format("x")), "1 of .* an empty question"),
    "id is a number": (lambda e: e.update(id=17), "4 of .* an id that is no text"),
    "path outside": (lambda e: e.update(id="ct_/../../" + SECRET), "4 of .* no file name"),
    "unknown modality": (lambda e: e.update(id=f"{SECRET}_1"), r"4 of 40 .* none of the mod.*ct_, .* \(row 1 of"),
    "no id": (lambda e: e.pop("id"), "4 of .* without id"),
    "asked twice": (lambda e: e["conversations"].extend(e["conversations"][:2]), "1 of .* asked about the same image"),
    "in a test file": (lambda e: e.update(id="ct_00--set8--case--x_0008"), r"4 of .* in a test .*\(row 1 of"),
    "no image tag": (lambda e: turn(e, 0, value="Where is it?"), "dialogues without an image tag.*: 1"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("med_grit") / "tree"
    write_med_grit(root)
    return root


@pytest.mark.parametrize(("harm", "note"), HOSTILE.values(), ids=HOSTILE)
def test_odd_dialogues_are_left_out_and_counted(tree: Path, harm: Any, note: str, tmp_path: Path) -> None:
    content = json.loads((tree / TRAIN).read_text())
    before = sum(len(entry["conversations"]) // 2 for entry in content) + 4 * 2
    harm(content[0])
    for link in ("images", *(f"Test_{task}.json" for task in ("VG", "RO", "GC", "MII"))):
        (tmp_path / link).symlink_to(tree / link)
    (tmp_path / TRAIN).parent.mkdir()
    (tmp_path / TRAIN).write_text("\ufeff" + json.dumps(content), encoding="utf-8")  # a byte order mark is no harm
    scan = reader_for(config(tmp_path)).scan()
    assert len(scan.notes) == 1 and re.search(note, scan.notes[0]), scan.notes
    assert SECRET not in " ".join(scan.notes) and scan.questions is not None
    lost = 0 if "without an image tag" in note or "asked" in note else before - len(scan.questions)
    assert lost in (0, 1, 4) and (lost > 0) == ("left out" in scan.notes[0] and "asked" not in note)


REFUSED = {
    "not JSON": ("Test_VG.json", '[{"id": "Mrs Miller",', r"Test_VG.json is not JSON: .* in line 1"),
    "an object": ("Test_VG.json", '{"Mrs Miller": 1}', "a list of dialogues is wanted, got an object"),
    "not UTF-8": (TRAIN, b"\xff\xfe\x00", r"is not JSON \(UnicodeDecodeError\)"),
    "missing": (TRAIN, None, "no Processed_Train.json in .*cohort.params.train"),
    "image missing": ("images/ct_00--set0--case--x_0000.png", None, r"1 of 10 samples cannot be used .*no such file"),
}


@pytest.mark.parametrize(("file", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_broken_files_are_refused(file: str, content: str | bytes | None, message: str, tmp_path: Path) -> None:
    write_med_grit(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="(?s)" + message) as caught:
        facts(config(tmp_path))
    assert SECRET not in str(caught.value) and "liver" not in str(caught.value)


def write_rows(root: Path, rows: list[dict[str, Any]], is_table: bool = False) -> CohortConfig:
    (root / "images").mkdir(exist_ok=True)
    for number in range(4):
        Image.new("L", (20, 20), 40 * number).save(root / "images" / f"{number}.png")
    if is_table:
        import pandas as pd

        pd.DataFrame(rows).to_csv(root / "rows.csv", index=False)
    else:
        (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = "rows.csv" if is_table else "rows.jsonl"
    return config(root, "vqa", file=file, image_root="images", split="part", boxes="boxes", patient="who")


def rows_of(**changes: Any) -> list[dict[str, Any]]:
    parts = ("train", "train", "val", "test")
    rows = [
        {"image": f"{n}.png", "question": "where?", "answer": "there", "boxes": "", "who": f"p{n}", "part": part}
        for n, part in enumerate(parts)
    ]
    rows[0] |= changes
    return rows


@pytest.mark.parametrize("is_table", [False, True])
def test_a_table_of_questions_is_read(tmp_path: Path, is_table: bool) -> None:
    listed: Any = "[[0, 10, 500, 600], [1, 2, 3, 4]]" if is_table else [[0, 10, 500, 600], [1, 2, 3, 4]]
    rows = rows_of(boxes=listed)
    rows[1]["answer"] = ""
    cohort = write_rows(tmp_path, rows, is_table)
    scan = reader_for(cohort).scan()
    questions = scan.questions
    assert questions is not None
    assert questions["answer"].iloc[0] == "there <box>(0,10),(500,600)</box><box>(1,2),(3,4)</box>"
    assert questions["answer"].isna().tolist() == [False, True, False, False]
    assert questions["task"].tolist() == ["MII"] * 4 and set(questions["modality"]) == {"image"}
    known = facts(cohort).questions
    assert known is not None and (known.num_items, known.num_unanswered) == (4, 1)


def test_words_beside_a_box_are_scored_and_boxes_alone_make_the_goal_of_pointing(tmp_path: Path) -> None:
    """An answer in words keeps its goal if a box stands beside it; a cohort of boxes alone has none of words."""
    rows = rows_of()
    for number, row in enumerate(rows):
        row |= {"answer": "", "boxes": [0, 0, 500 + number, 600]}
    known = facts(write_rows(tmp_path, rows))
    assert known.questions is not None and known.questions.tasks == ("VG",) and goals(known) == ("val/recall50",)
    rows[0]["answer"] = "a dark lesion"
    known = facts(write_rows(tmp_path, rows))
    assert known.questions is not None and known.questions.tasks == ("MII", "VG")
    assert goals(known) == ("val/answer", "val/recall50")
    in_question = rows_of(question="what is in <box>(0,0),(500,600)</box>?")
    assert goals(facts(write_rows(tmp_path, in_question))) == ("val/answer",)


def test_boxes_in_pixels_are_noticed_and_boxes_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 20 x 20 pixels. On the grid, boxes within 20 of 1000 would be half a pixel wide."""
    rows = [row | {"question": f"where is {i}?", "boxes": [5, 5, 10 + i, 20]} for row in rows_of() for i in range(3)]
    assert any(
        "none of the 12 boxes" in note for note in prepare(write_rows(tmp_path, rows), tmp_path).manifest["notes"]
    )
    rows[0]["boxes"] = [250, 500, 750, 1000]
    store = prepare(write_rows(tmp_path, rows), tmp_path)
    assert any("11 of the 12 boxes" in note for note in store.manifest["notes"])
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    show(store, Console(quiet=True))
    extents = [patch.get_extents() for patch in figures[0].axes[0].patches if isinstance(patch, Rectangle)]
    inverse = figures[0].axes[0].transData.inverted()
    corners = [inverse.transform(extent.get_points()).round(6).tolist() for extent in extents]
    assert len(extents) == 3 and [[5.5, 23.5], [17.5, 11.5]] in [sorted(corner) for corner in corners]


def test_a_teachers_image_is_stored_beside_the_students(tmp_path: Path) -> None:
    rows = [row | {"better": f"images/{3 - n}.png"} for n, row in enumerate(rows_of())]
    cohort = write_rows(tmp_path, rows)
    cohort = cohort.model_copy(update={"params": {**cohort.params, "views": {"mri": "better"}}})
    store = prepare(cohort, tmp_path)
    assert store.facts.views == ("mri",)
    grey = [int(image[0, 12, 12]) for image in store.view("mri")]
    assert grey == [120 - int(image[0, 12, 12]) for image in store.image_NCHW] and len(set(grey)) == 4
    for harm, message in (
        ({"better": ""}, r"mri \(column 'better'\), in line 1"),
        (
            {"better": "images/9.png"},
            "row 1, column 'better': no such file",
        ),
    ):
        write_rows(tmp_path, [rows[0] | harm, *rows[1:]])
        with pytest.raises(UserError, match=message):
            prepare(cohort, tmp_path)
    write_rows(tmp_path, [*rows, rows[0] | {"question": "who?", "better": "images/0.png"}])
    with pytest.raises(UserError, match=r"1 image name different views \(column 'better'\), in rows 1 and 5"):
        prepare(cohort, tmp_path)


@pytest.mark.parametrize(
    ("cell", "message"),
    [("[0.1, 0.2, 0.5, 0.6]", "boxes in fractions of the image"), ("1 2 30 40", "not of the form")],
)
def test_a_column_of_boxes_in_another_form_is_refused(cell: str, message: str, tmp_path: Path) -> None:
    rows = [row | {"boxes": cell} for row in rows_of()]
    with pytest.raises(UserError, match=rf"(?s)not one of 4 cells .*1000 x pixel / side.*{message}.*rows 1, 2, 3, 4\)"):
        reader_for(write_rows(tmp_path, rows)).scan()


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "brackets": ({"answer": "at [1, 2, 30, 40]"}, "1 of 4 questions hold four numbers in brackets"),
    "no image": ({"image": ""}, "1 of 4 questions: without an image"),
    "no question": ({"question": None}, "an empty question"),
    "torn": ({"answer": f"{SECRET} <box>(1,2)"}, "torn box in the answer"),
    "beyond": ({"boxes": [1, 2, 3000, 4]}, "leaves the grid"),
    "words for boxes": ({"boxes": SECRET}, "not of the form"),
    "part": ({"part": SECRET}, r"not train, val or test \(column 'part'\), in line 1;"),
    "patient": ({"who": ""}, r"without a patient \(column 'who'\), in line 1;"),
    "outside": ({"image": f"../../{SECRET}.png"}, "(?s)row 1: .*(leads out|no such file)"),
    "missing": ({"image": f"{SECRET}.png"}, "(?s)1 of 4 samples cannot be used.*row 1: no such file"),
    "two patients": ({"image": "1.png"}, r"name different patients \(column 'who'\), in rows 1 and 2;"),
    "unanswered": (
        {"image": "2.png", "part": "val", "who": "p2", "question": "who?", "answer": ""},
        r"answer \(row 1\)\.",
    ),
}


@pytest.mark.parametrize(("changes", "message"), ROWS.values(), ids=ROWS)
def test_odd_rows_are_counted_or_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    cohort = write_rows(tmp_path, rows_of(**changes))
    try:
        facts(cohort)
        texts = "\n".join(reader_for(cohort).scan().notes)
    except UserError as error:
        texts = str(error)
    assert re.search(message, texts), texts
    assert SECRET not in texts


@pytest.mark.parametrize(
    ("content", "message"),
    [("{'a': 1}", "line 1 is not JSON"), ('["Mrs Miller"]', "line 1 is not an object"), ("", "no row"),
     ('{"image": "a.png"}', "params.answer: rows.jsonl has no column 'answer' .known: image")],
)  # fmt: skip
def test_files_that_are_no_jsonl_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        facts(config(tmp_path, "vqa", file="rows.jsonl"))
    assert SECRET not in str(caught.value)
    with pytest.raises(UserError, match=r"must be a file under cohort.root"):
        facts(config(tmp_path, "vqa", file="../rows.jsonl"))
