"""A confirmation of students that answer questions, from the protocol to the verdict, and what differs in it.

Trainings are fake and the students untrained, on a real tiny cohort of questions.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.fit import seeded
from mmpkd.scoring.answers import AnswerScorer, patients_counted
from mmpkd.scoring.stats import patient_weights
from mmpkd.types import ConfigError
from mmpkd.vlm import exported, student
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.model import build
from mmpkd.vlm.student import card_of
from mmpkd.vlm.training.items import Items
from mmpkd.vlm.vocabulary import text_processor
from sweep.picking.candidates import read_candidates
from sweep.storage.layout import SweepFolder
from sweep.verdict.answer import judge
from sweep.verdict.inference import SeedScores
from sweep.verdict.opening.patients import Patients
from sweep.verdict.protocol import Protocol
from sweep.verdict.results.wording import sentence
from sweep.verdict.training.phases import controls_of, shuffled
from tests.mmpkd.vlm.test_vlm_training import SMALL, TEACHER, config_with
from tests.sweep import fake, picked_sweep, swept
from tests.sweep.verdict import confirmed_sweep
from tests.sweep.verdict.confirmed_sweep import confirmed

ANSWER, RECALL = "val/answer", "val/recall50"
GOALS = (ANSWER, RECALL)
SPACE = f"""
cohort:
  reader: synthetic_vqa
  image_size: 32
  params: {{train: 12, val: 16, test: 16, side: 32, labelled: 0.5}}
student: {json.dumps({"kind": "vlm", "vision": SMALL, "decoder": {**SMALL, "mlp": 16}, "max_new_tokens": 2})}
optimizer: {{lr: {{log_uniform: [1e-4, 1e-1]}}}}
epochs: 4
arms:
  none: {{}}
  pseudo:
    distillation: {{teacher: {json.dumps(TEACHER)}, pseudo_labels: {{use: true, margin: {{uniform: [0, 1]}}}}}}
search: {{maximize: [{ANSWER}, {RECALL}], select: {ANSWER}, trials: 4, early_stopping: false}}
"""


def metrics_of(config: TrialConfig, epoch: int) -> dict[str, float]:
    share = epoch / config.epochs * (1 - config.optimizer.lr)
    goals = {ANSWER: 0.3 + 0.4 * share, RECALL: 0.1 * share}
    return goals | {f"{ANSWER}_se": 0.05, f"{RECALL}_se": 0.03}


def write_student(folder: Path, config: TrialConfig, store: Store) -> None:
    """Writes an untrained student of a trial."""
    assert isinstance(config.student, VlmConfig)
    processor = text_processor(config.student, [*store.questions["question"], *store.questions["answer"].dropna()])
    with seeded(config.seed, config.fingerprint()):
        vlm = build(config.student, processor, 32, 1, config.seed, config.fingerprint())
    folder.mkdir(parents=True, exist_ok=True)
    exported.write(folder, vlm, config.student, 32, 1, card_of(config, store, {}))


@pytest.fixture(scope="module")
def done(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of students that answer with its verdict, and what was printed."""
    tmp_path = tmp_path_factory.mktemp("answers")
    cache = tmp_path / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "metrics_of", metrics_of)
        patch.setattr(swept, "SPACE", SPACE)
        patch.setattr(swept, "GOALS", GOALS)
        picked_sweep.run_sweep(tmp_path, "name=fake")
        folder = SweepFolder(tmp_path / "runs" / "fake")
        store = prepare(read_candidates(folder).cohort, cache)
        folder.add_to_plan({"store": store.fingerprint})
        patch.setattr(confirmed_sweep, "write_student", lambda to, config, *_: write_student(to, config, store))
        patch.setattr(confirmed_sweep, "with_entropy", lambda metrics: metrics)
        for words in (["folds=5"], ["external=other.yaml"], ["folds=5", "cohort=other.yaml"]):
            with pytest.raises(ConfigError) as refused:
                confirmed(tmp_path, *words)
            assert [mistake.path for mistake in refused.value.mistakes] == [word.partition("=")[0] for word in words]
        with pytest.raises(ConfigError, match=r"no score of boxes 'val/answer'"):
            confirmed(tmp_path, f"localisation={ANSWER}")
        assert not (folder.path / "confirm").exists()
        (tmp_path / "printed.txt").write_text(confirmed(tmp_path))
    return tmp_path


def test_a_verdict_on_answers_and_boxes(done: Path) -> None:
    folder, printed = done / "runs" / "fake" / "confirm", (done / "printed.txt").read_text()
    content = json.loads((folder / "verdict.json").read_text())
    assert [(answer["goal"], answer["arm"]) for answer in content["answers"]] == [
        (ANSWER, "pseudo"),
        (RECALL, "pseudo"),
    ]
    assert all(answer["sentence"] in printed for answer in content["answers"])
    assert {arm: len(scores["test/answer"]) for arm, scores in content["scores"].items()} == {
        "none": 5,
        "pseudo": 5,
        "pseudo-shuffled": 5,
    }
    assert {"test/answer_frequent", "test/recall50_mean_box"} <= set(content["scores"]["none"])
    assert [each["reference"] for each in content["exploratory"] if each["goal"] == RECALL] == [
        "pseudo-shuffled",
        "none",
        "mean_box",
        "mean_box",
    ]
    patients, page = content["patients"], (folder / "verdict.html").read_text()
    counted = f"counted as {patients['answered']} for the answers and as {patients['with_roi']} for the boxes"
    assert counted in page
    shown = re.sub(r"base64,[^\"]*", "", page)
    assert "What the students answer" in shown and "mean training box" in shown and "test image" in shown
    assert not re.search(r"AUROC|rarer|\bROIs?\b|\bmaps?\b|a region|\bnan\b|\bNone\b", shown)
    assert "is always 'cannot tell'" not in printed or "count as about" in printed
    assert len(content["ledger"]) == 1


def test_the_shuffled_control_is_the_same_training_with_a_shuffled_teacher(done: Path) -> None:
    arms = yaml.safe_load((done / "runs" / "fake" / "confirm" / "train.yaml").read_text())["arms"]
    assert arms["pseudo-shuffled"]["distillation"]["teacher"].pop("control") == "shuffled"
    assert arms["pseudo"]["distillation"]["teacher"].pop("control") is None
    assert arms["pseudo-shuffled"] == arms["pseudo"] and "distillation" not in arms["none"]
    corrected = config_with(3, teacher={**TEACHER, "hints": 0.5}, corrections={"rounds": 1})
    taught = config_with(3, teacher=TEACHER, kl={"weight": 1.0})
    assert controls_of({"none": [config_with(3)], "corrected": [corrected], "kl": [corrected, taught]}) == {
        "kl-shuffled": "kl"
    }
    assert shuffled(config_with(3)) == config_with(3)


def test_kept_scores_hold_numbers_only(done: Path) -> None:
    files = sorted((done / "runs" / "fake" / "confirm" / "scores").glob("test-*.json"))
    assert len(files) == 15
    (folder,) = (path for path in (done / "cache" / "stores").iterdir() if path.is_dir())
    store = Store.open(folder)
    words = {*re.findall(r"\w+", " ".join([*store.questions["question"], *store.questions["answer"].dropna()]).lower())}
    words = {word for word in words if not word.isdigit()} | {*store.patient_ids, *store.sample_ids}
    for file in files:
        kept = {*re.findall(r"[\w-]+", file.read_text().lower())}
        assert not kept & (words - {"answer", "box"}), file


def test_scores_and_replicates_of_answers_by_hand(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A student that says "yes" to all is right where the true answer is yes."""
    monkeypatch.setattr("mmpkd.scoring.replicates.REPLICATES", 30)
    config = config_with(1)
    store = prepare(config.cohort, cache)
    rows = store.rows("test")
    monkeypatch.setattr(Items, "answers", lambda self, vlm, known, *rest: (["yes"] * len(known), [1.0] * len(known)))
    with seeded(0, "test"):
        texts = [*store.questions["question"], *store.questions["answer"].dropna()]
        assert isinstance(config.student, VlmConfig)
        vlm = build(config.student, text_processor(config.student, texts), 32, 1, 0)
    own: Any = student.VlmStudent(vlm, config.student, None, None, None)  # type: ignore[arg-type]
    scores = AnswerScorer(store, rows, GOALS, store.rows("train"), 8).score(own)
    assert set(scores) == {ANSWER, RECALL, f"{ANSWER}_frequent", f"{RECALL}_mean_box"}
    assert (
        scores[RECALL].value == 0 and (scores[RECALL].replicate_R[np.isfinite(scores[RECALL].replicate_R)] == 0).all()
    )
    table = store.questions[store.questions["row"].isin(rows) & (store.questions["task"] == "MII")]
    patient_P = np.unique(store.patient_N[rows])
    weight_RP = patient_weights(patient_P, 30)
    of_modalities, values = [], []
    for _, cell in table.groupby("modality"):
        right_P, size_P = np.zeros((2, len(patient_P)))
        for row, answer in zip(cell["row"], cell["answer"], strict=True):
            place = int(np.flatnonzero(patient_P == store.patient_N[row])[0])
            right_P[place] += answer == "yes"
            size_P[place] += 1
        with np.errstate(invalid="ignore"):
            of_modalities.append((weight_RP @ right_P) / (weight_RP @ size_P))
        values.append(right_P.sum() / size_P.sum())
    # RO and GC have no answer that is, or contains, "yes": two more tasks with 0
    assert scores[ANSWER].value == pytest.approx(np.mean(values) / 3)
    np.testing.assert_allclose(scores[ANSWER].replicate_R, np.mean(of_modalities, axis=0) / 3)
    questions = store.questions
    with monkeypatch.context() as patch:  # of a cohort without questions about places
        patch.setitem(vars(store), "questions", questions[questions["task"] != "VG"])
        wordy = AnswerScorer(store, rows, GOALS, store.rows("train"), 8).score(own)
    assert np.isnan(wordy[RECALL].value) and np.isnan(wordy[RECALL].replicate_R).all()
    assert wordy[ANSWER].value == scores[ANSWER].value and f"{RECALL}_mean_box" not in wordy
    assert patients_counted(store, rows) == {ANSWER[4:]: 1, RECALL[4:]: 1}, "a modality has one patient"


def test_a_claim_of_pointing_has_to_beat_the_mean_box() -> None:
    seeds = tuple(range(5, 10))
    protocol = Protocol(
        sweep="s",
        sweep_id="",
        cohort="c",
        goal=ANSWER,
        localisation=RECALL,
        reference="none",
        arms=("kl",),
        difference=0.05,
        trials=2,
        finalists={"none": (1,), "kl": (2,)},
        choose_seeds=tuple(range(5)),
        seeds=seeds,
        controls={"kl-shuffled": "kl"},
        test_patients=100,
    )
    generator = np.random.default_rng(0)

    def scores(value: float) -> SeedScores:
        value_K = value + 0.001 * np.arange(5)
        return SeedScores(value_K, value_K + 0.01 * generator.standard_normal((200, 5)))

    def outcomes(mean_box: float, frequent: float) -> dict[str, Any]:
        arms = {
            arm: {
                ANSWER: scores(value),
                RECALL: scores(value),
                f"{RECALL}_mean_box": scores(mean_box),
                f"{ANSWER}_frequent": scores(frequent),
            }
            for arm, value in (("none", 0.2), ("kl", 0.6), ("kl-shuffled", 0.2))
        }
        verdict = judge(protocol, arms, Patients(100, 0, 80, 90), {})
        return {answer.key.goal: (answer, sentence(answer, verdict, protocol)) for answer in verdict.answers}

    beaten = outcomes(0.1, 0.1)
    assert [answer.outcome for answer, _ in beaten.values()] == ["better", "better"]
    assert "the students answer better (test/answer" in beaten[ANSWER][1]
    assert "the students point better (test/recall50" in beaten[RECALL][1]
    unbeaten = outcomes(0.7, 0.7)
    assert [answer.outcome for answer, _ in unbeaten.values()] == ["better", "unexplained"]
    reason = "It is not shown to exceed what answers reach by the mean training box without looking at the image"
    assert unbeaten[RECALL][0].reasons[0].startswith(reason)
    assert (
        unbeaten[ANSWER][0].reasons[0].startswith("It is not shown to exceed what answers reach by the most frequent")
    )


def test_few_patients_in_a_modality_cannot_tell() -> None:
    few = Patients(100, 0, 9, 10)
    assert few.too_few(ANSWER) == "" and few.too_few(RECALL).startswith("The patients count as 9, because modalities")
    assert Patients(40, 9, 9).too_few("val/auroc").startswith("The rarer class has 9 patients")
    assert Patients(40, 0, 0, 30).too_few(RECALL) == "No question of these patients counts for this score."
    assert few.in_words([RECALL]) == "counted as 9 for the boxes"
    assert Patients(40, 9, 8).in_words(["val/auroc"]) == "9 of the rarer class"
