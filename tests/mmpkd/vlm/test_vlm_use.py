"""What a person does with a student that answers: ask it, score it, export it; and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration

from mmpkd import evaluate, predict
from mmpkd.build import check
from mmpkd.cohort import facts
from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.export.__main__ import main as export
from mmpkd.frames import Letterbox
from mmpkd.prediction.answering import ANSWERED, ASKED, Answer, Answerer
from mmpkd.train import train
from mmpkd.types import ConfigError
from mmpkd.vlm import exported, student
from mmpkd.vlm.boxes import Box
from mmpkd.vlm.model import Answers, Vlm
from mmpkd.vlm.rows import restored
from mmpkd.vlm.scores import text
from mmpkd.vlm.scores.goals import all_scores, own_scores
from mmpkd.vlm.scores.yardsticks import yardsticks
from mmpkd.vlm.training.items import Items
from tests.mmpkd.exported_students import BINARY, write_student
from tests.mmpkd.vlm.test_vlm_training import config_with

STEPS_OF_A_QUARTER = "<box>(0,0),(12,12)</box>"  # on the grid of 24 steps; the upper left quarter of a square image


@pytest.fixture(scope="module")
def config() -> TrialConfig:
    return config_with(1)


@pytest.fixture(scope="module")
def folder(config: TrialConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student that was trained for one epoch."""
    trained = tmp_path_factory.mktemp("trained")
    train(config, cache, trained)
    return trained


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images: a square one and one of twice the width."""
    (tmp_path / "images").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (40, 80), np.uint8)
    Image.fromarray(values[:, :40]).save(tmp_path / "images" / "a.png")
    Image.fromarray(values).save(tmp_path / "images" / "b.png")
    return tmp_path / "images"


@pytest.fixture
def answers_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(self: Vlm, rows: Any, most: int) -> Answers:
        return Answers([STEPS_OF_A_QUARTER] * len(rows.input_ids_BL), [0.25] * len(rows.input_ids_BL))

    monkeypatch.setattr(Vlm, "answer", answer)


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open() as opened:
        return list(csv.DictReader(opened))


def test_a_question_about_images_becomes_answers_with_boxes_in_pixels(
    folder: Path, images: Path, tmp_path: Path, answers_quarter: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    predict.main([f"model={folder}", f"images={images}", "question=where is the zebra?", f"out={out}"])
    first, second = table_of(out / "answers.csv")
    assert first["answer"] == "<box>(0,0),(500,500)</box>" and first["boxes"] == "0 0 20 20"
    # The wide image fills the middle half of its square; what lies above it in the square is cut off.
    assert second["answer"] == "<box>(0,0),(500,500)</box>" and second["boxes"] == "0 0 40 20"
    assert first["margin"] == "0.250000" and "not learnt" in first["warning"]
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["a.png", "b.png"]
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "a.png: <box>(0,0),(500,500)</box>"
    assert "2 of 2 questions hold words that the student has not learnt, such as zebra; ask as" in printed.err


def test_a_file_of_questions_asks_each_about_its_own_image(
    folder: Path, images: Path, tmp_path: Path, answers_quarter: None
) -> None:
    file, out = tmp_path / "q.jsonl", tmp_path / "out"
    rows = [("b.png", "where is the lesion?"), ("b.png", "describe the image"), ("a.png", "is the lesion columnar?")]
    file.write_text("\n".join(json.dumps({"image": image, "question": question}) for image, question in rows))
    predict.main([f"model={folder}", f"images={images}", f"questions={file}", f"out={out}"])
    answered = [(row["image"], row["question"]) for row in table_of(out / "answers.csv")]
    assert answered == [rows[2], rows[0], rows[1]]
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["a.png", "b.1.png", "b.2.png"]
    file.write_text("\n".join(json.dumps({"image": image, "question": "<box>(1,2"}) for image in ("a.png", "c.png")))
    with pytest.raises(ConfigError, match="rows 1, 2 have a torn box in the question; mend or delete"):
        predict.main([f"model={folder}", f"images={images}", f"questions={file}", f"out={tmp_path / 'new'}"])
    file.write_text(json.dumps({"image": "c.png", "question": "why?"}))
    with pytest.raises(ConfigError, match="row 1 has an image that images= does not hold"):
        predict.main([f"model={folder}", f"images={images}", f"questions={file}", f"out={tmp_path / 'new'}"])


def test_answers_of_restricted_data_are_not_printed(
    folder: Path,
    images: Path,
    tmp_path: Path,
    answers_quarter: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = student.read(folder)
    card = student.VlmCard(**{**vars(known.card), "credentialed": True})
    monkeypatch.setattr(student, "read", lambda path: student.VlmStudent(**{**vars(known), "card": card}))
    out = tmp_path / "out"
    predict.main([f"model={folder}", f"images={images / 'a.png'}", "question=where is Anna?", f"out={out}"])
    printed = capsys.readouterr()
    assert printed.out == f"1 answer: {out / 'answers.csv'}, overlays: {out / 'overlays'}\n"
    assert "hold words that the student has not learnt; ask as" in printed.err and "Anna" not in printed.err


def test_a_picture_shows_the_boxes_of_answer_and_question_where_they_are() -> None:
    image = np.zeros((500, 1000), np.uint8)
    answer = Answer("what is <box>(500,0),(900,800)</box>?", "<box>(100,200),(300,600)</box>", 0.5, image)
    assert answer.boxes == [Box(100.0, 100.0, 300.0, 300.0)]
    pixels = np.asarray(answer.picture())[:500, :1000]
    solid, dashed = ((pixels == colour).all(axis=2) for colour in (ANSWERED, ASKED))
    rows, columns = np.nonzero(solid)
    edges = [rows.min(), rows.max(), columns.min(), columns.max()]
    assert edges == pytest.approx([100, 300, 100, 300], abs=3)
    assert solid[200, 99:102].any() and not solid[200, 150:250].any()
    shares = [dashed[200:380, 895:906].any(axis=1).mean(), solid[110:290, 95:106].any(axis=1).mean()]
    assert shares[0] == pytest.approx(0.5, abs=0.1) and shares[1] == 1


def test_a_question_and_a_student_must_fit(folder: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'(?s)question: missing: .* question="where is the lesion\?"'):
        predict.main([f"model={folder}", f"images={images}"])
    with pytest.raises(ConfigError, match="question: has a torn box"):
        predict.main([f"model={folder}", f"images={images}", "question=what is <box>(1,2)?"])
    classifying = write_student(tmp_path / "classifying", BINARY)
    with pytest.raises(
        ConfigError, match=rf"answers no question; leave it out:\n +\S+ -m mmpkd.predict model={classifying}"
    ):
        predict.main([f"model={classifying}", f"images={images}", "question=where?"])
    with pytest.raises(ConfigError, match="write transformers"):
        export([f"model={folder}", "to=onnx", f"out={tmp_path / 'onnx'}"])
    with pytest.raises(ConfigError, match="transformers is not for a student that classifies; write timm or onnx"):
        export([f"model={classifying}", "to=transformers"])


@pytest.mark.parametrize("name", ["a.png", "b.png"])
def test_the_code_of_an_exported_folder_answers_as_predict_does(
    name: str,
    folder: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its own answer is the same. An answer with a box, given in its place, has the box at the same pixels, rounded."""
    out, question = tmp_path / "transformers", "where is the lesion? T2-weighted"
    export([f"model={folder}", "to=transformers", f"out={out}"])
    model = Answerer(folder)
    monkeypatch.setattr("sys.argv", ["answer.py", str(out), str(images / name), question])
    code = (out / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[0] == model(images / name, question)[0].text
    steps, tokens = "<box>(6,9),(18,14)</box>", model.vlm.processor.tokens

    def generate(self: object, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([[*tokens.encode(steps), tokens.end]])], dim=1)

    monkeypatch.setattr(Qwen3VLForConditionalGeneration, "generate", generate)
    exec(code, {})
    given, box = capsys.readouterr().out.splitlines()
    height, width = np.asarray(Image.open(images / name)).shape
    (expected,) = Answer(
        question, restored(steps, Letterbox(height, width, 32), 24), 0.0, np.zeros((height, width))
    ).boxes
    assert given == steps and json.loads(box) == pytest.approx(list(expected), abs=0.51)


def test_a_teacher_is_no_student(folder: Path, tmp_path: Path) -> None:
    vlm, content = exported.read(folder / exported.NAME)
    path = exported.write(tmp_path, vlm, config_with(1).student, content["image_size"], 1, {})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="it is a teacher, or of an earlier version"):
        student.read(path)


@pytest.fixture
def cohort_file(config: TrialConfig, tmp_path: Path) -> Path:
    path = tmp_path / "cohort.yaml"
    path.write_text(yaml.safe_dump({"cohort": config.cohort.model_dump(mode="json")}))
    return path


def test_scores_agree_with_those_of_a_training(
    folder: Path, config: TrialConfig, cache: Path, cohort_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second answer is right, and every third of the others is a box at another place."""

    def answers(self: Items, vlm: Vlm, chosen: Sequence[int], *rest: Any) -> tuple[list[str], list[float]]:
        truth = self.table["answer"].tolist()
        texts = [
            truth[item] if item % 2 else ["no", "a lesion", "<box>(0,0),(99,99)</box>"][item % 3] for item in chosen
        ]
        return texts, [0.5] * len(texts)

    monkeypatch.setattr(Items, "answers", answers)
    evaluate.main([f"model={folder}", f"config={cohort_file}", f"cache={cache}", f"out={tmp_path / 'out'}"])
    (out,) = (tmp_path / "out").iterdir()
    store = prepare(config.cohort, cache)
    known = student.read(folder)
    items = Items(store, store.rows("val", 0), known.config, known.vlm.processor)
    scored = items.scored(answers(items, known.vlm, range(len(items)))[0])
    wanted = all_scores(scored)
    train_items = Items(store, store.rows("train", 0), known.config, known.vlm.processor).table
    wanted |= yardsticks(train_items[train_items["answer"].notna()], scored)
    tasks = pd.read_csv(out / "tasks.csv").set_index("task")
    for name in ("answer", "recall50", "answer_frequent", "recall50_mean_box", "precision50_matched", "unparsable"):
        assert tasks.loc["all", name] == pytest.approx(wanted[name]), name
    for task in ("GC", "MII", "RO"):
        for name in ("containment", "exact_match", "rouge_l", "meteor", "bleu2", "mbmr"):
            assert tasks.loc[task, name] == pytest.approx(wanted[f"{task}/{name}"]), f"{task}/{name}"
    assert tasks.loc["all", "answer_low"] < wanted["answer"] < tasks.loc["all", "answer_high"]
    modalities = pd.read_csv(out / "modalities.csv").set_index(["task", "modality"])
    assert all(
        row["recall50"] == pytest.approx(wanted[f"VG/recall50/{modality}"])
        for (task, modality), row in modalities.iterrows()
        if task == "VG"
    )
    rows = pd.read_csv(out / "answers.csv")
    assert len(rows) == len(items) and rows.loc[rows["task"] == "VG", "score"].isna().all()
    assert json.loads((out / "evaluation.json").read_text())["fitted_on_these_patients"]


def test_student_and_cohort_are_of_one_kind(
    folder: Path, cache: Path, cohort_file: Path, tiny_trial: TrialConfig, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.yaml"
    labels.write_text(yaml.safe_dump({"cohort": tiny_trial.cohort.model_dump(mode="json")}))
    with pytest.raises(ConfigError, match="cohort: has no questions, and the student answers questions"):
        evaluate.main([f"model={folder}", f"config={labels}", f"cache={cache}"])
    with pytest.raises(ConfigError, match="groups: has no effect for a student that answers"):
        evaluate.main([f"model={folder}", f"config={cohort_file}", f"cache={cache}", "groups=sex"])
    classifying = write_student(tmp_path / "classifying", BINARY)
    with pytest.raises(ConfigError, match="holds questions, and the student classifies"):
        evaluate.main([f"model={classifying}", f"config={cohort_file}", f"cache={cache}"])


def test_a_missing_library_is_a_mistake_before_the_training(
    config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "LIBRARIES", ("no_such_library",))
    (mistake,) = check(config, facts(config.cohort))
    assert mistake.path == "student.kind" and "need no_such_library" in mistake.problem


def test_the_rule_of_a_task_is_that_of_the_cohort() -> None:
    rows = [("MII", "ct", f"p{number}", "yes", "yes") for number in range(4)]
    part = pd.DataFrame(rows, columns=["task", "modality", "patient", "answer", "response"])
    cohort = pd.concat([part, part.assign(answer="a round lesion on the left"), part.assign(answer=np.nan)])
    assert own_scores(part) == {"MII": "containment"} and own_scores(cohort) == {"MII": "rouge_l"}
    said_more = part.assign(response="yes, it is")
    assert all_scores(said_more)["answer"] == 1
    assert all_scores(said_more, judged=own_scores(cohort))["answer"] == pytest.approx(0.5)  # precision 1/3, recall 1
