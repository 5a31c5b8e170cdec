"""Trainings of a tiny student that answers: alone, resumed, and with everything that a teacher offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmpkd import checkpoint
from mmpkd.build import check
from mmpkd.cohort import facts
from mmpkd.config import TrialConfig, validate
from mmpkd.train import train
from mmpkd.types import ConfigError, EpochReport, TeacherError
from mmpkd.vlm import exported
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.model import check as model_check
from mmpkd.vlm.training import losses
from mmpkd.vlm.training.learner import Learner
from mmpkd.vlm.training.losses import Logits
from mmpkd.vlm.training.run import VlmRun
from mmpkd.vlm.training.targets import Targets, corrections, is_wrong, rounds_begin

SMALL = {"depth": 1, "width": 16, "heads": 2}
TEACHER = {"vision": SMALL, "decoder": {**SMALL, "mlp": 16}, "reads": ["superior"], "max_new_tokens": 3, "epochs": 1}


def config_with(epochs: int = 3, **distillation: Any) -> TrialConfig:
    content = {
        "cohort": {
            "reader": "synthetic_vqa",
            "image_size": 32,
            "params": {"train": 12, "val": 8, "test": 8, "side": 32, "labelled": 0.5},
        },
        "student": {"kind": "vlm", "vision": SMALL, "decoder": {**SMALL, "mlp": 16}, "max_new_tokens": 3},
        "optimizer": {"lr": 1e-3, "batch_size": 16},
        "epochs": epochs,
        "checkpoint_seconds": 0,
        "distillation": distillation,
    }
    return TrialConfig.model_validate(content)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "distillation",
    [
        {},
        {
            "teacher": {**TEACHER, "hints": 0.5},
            "kl": {"weight": 0.5},
            "pseudo_labels": {"use": True, "curriculum": 0.5},
            "corrections": {"rounds": 1, "answers": 2},
        },
    ],
    ids=["labels alone", "all of ClinKD"],
)
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, distillation: dict[str, Any]) -> None:
    config, cache = config_with(4, **distillation), tmp_path / "cache"
    whole = train(config, cache, tmp_path / "whole")

    def interrupt(report: EpochReport) -> None:
        if report.epoch == 3:  # after the round of correction
            raise Interrupted

    with pytest.raises(Interrupted):
        train(config, cache, tmp_path / "part", report=interrupt)
    resumed = train(config, cache, tmp_path / "part", tmp_path / "part" / checkpoint.NAME)
    assert [report.terms for report in resumed] == [report.terms for report in whole]
    for mine, theirs in zip(resumed, whole, strict=True):
        assert mine.metrics == pytest.approx(theirs.metrics, nan_ok=True, abs=0)
    assert {"val/answer", "val/recall50", "val/answer_se"} <= set(whole[0].metrics)
    assert ("kl" in whole[0].terms) == bool(distillation)
    first, _ = exported.read(tmp_path / "whole" / exported.NAME)
    second, _ = exported.read(tmp_path / "part" / exported.NAME)
    weights = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(one_weight, other) for one_weight, other in weights)


def test_an_interrupted_teacher_goes_on_and_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with(1, teacher={**TEACHER, "epochs": 3, "hints": 0.5}, kl={"weight": 1.0})
    whole = run_of(config, tmp_path / "whole").teacher
    learn, begun = Learner.epoch, list[int]()

    def epoch(self: Learner, number: int, *rest: Any, **more: Any) -> Any:
        begun.append(number)
        if begun == [0, 1]:
            raise Interrupted
        return learn(self, number, *rest, **more)

    monkeypatch.setattr(Learner, "epoch", epoch)
    with pytest.raises(Interrupted):
        run_of(config, tmp_path / "part")
    (unfinished,) = (tmp_path / "part" / "cache" / "teachers").glob("*.training")
    content = (unfinished / checkpoint.NAME).read_bytes()
    (unfinished / checkpoint.NAME).write_bytes(content[:-9])
    with pytest.raises(TeacherError, match=r"distillation.teacher: .*last.pt: is not a readable .* delete it"):
        run_of(config, tmp_path / "part")
    (unfinished / checkpoint.NAME).write_bytes(content)
    resumed = run_of(config, tmp_path / "part").teacher
    assert begun == [0, 1, 1, 2] and not unfinished.exists()
    assert whole is not None and resumed is not None and resumed.address == whole.address
    weights = zip(whole.vlm.state_dict().values(), resumed.vlm.state_dict().values(), strict=True)
    assert all(torch.equal(each, other) for each, other in weights)


def test_cached_logits_of_all_words_equal_those_at_each_step(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kl = {"weight": 1.0, "temperature": 2.0}
    online, cached = (train(config_with(1, teacher=TEACHER, kl=kl | more), cache) for more in ({}, {"top_k": 10_000}))
    assert online[0].terms["kl"] == pytest.approx(cached[0].terms["kl"], rel=1e-5)
    cut = train(config_with(1, teacher=TEACHER, kl=kl | {"top_k": 2}), cache)
    assert cut[0].terms["kl"] != pytest.approx(online[0].terms["kl"], rel=1e-3)


def test_a_teacher_never_learns_from_unanswered_items_and_a_shuffled_one_sees_other_images(tmp_path: Path) -> None:
    pseudo = {"use": True}
    run = run_of(config_with(teacher=TEACHER, pseudo_labels=pseudo), tmp_path)
    shuffled = run_of(config_with(teacher={**TEACHER, "control": "shuffled"}, pseudo_labels=pseudo), tmp_path)
    assert run.teacher is not None and shuffled.teacher is not None
    assert run.teacher.folder == shuffled.teacher.folder, "the shuffled teacher is the same model"
    answered = set(run.items.answered)
    assert 0 < len(answered) < len(run.items)
    targets = run.targets.at(0)
    assert set(targets) == set(range(len(run.items))), "each unanswered item has an answer of the teacher"
    table = run.items.table
    assert all(targets[item] == table["answer"].iloc[item] for item in answered)
    shown = shuffled.teacher.items._shown_N
    assert shown is not None
    rows = run.store.rows("train", 0)
    assert sorted(shown[rows]) == sorted(rows)
    assert (run.store.patient_N[shown[rows]] != run.store.patient_N[rows]).mean() > 0.8


def run_of(config: TrialConfig, tmp_path: Path) -> VlmRun:
    from mmpkd.cohort.prepare import prepare

    return VlmRun(config, prepare(config.cohort, tmp_path / "cache"), tmp_path / "cache")


def test_the_divergence_by_hand() -> None:
    """Two words: the teacher has (0.8, 0.2), the student (0.5, 0.5): 0.8 ln 1.6 + 0.2 ln 0.4 = 0.1927."""
    teacher = Logits(torch.tensor([[0.8, 0.2, 1e-9]]).log())
    student = torch.zeros(1, 2)
    assert losses.token_kl(student, teacher, 1.0).item() == pytest.approx(0.19274, abs=1e-5)
    # At temperature 0.5 the teacher has (16/17, 1/17): 16/17 ln(32/17) + 1/17 ln(2/17) = 0.4694.
    assert losses.token_kl(student, teacher, 0.5).item() == pytest.approx(0.46942, abs=1e-4)
    assert losses.mixed(torch.tensor(2.0), torch.tensor(0.5), 0.5).item() == pytest.approx((0.25 + 2.0) / 1.5)


def test_answers_of_the_teacher_enter_by_their_margins() -> None:
    import pandas as pd

    rule = config_with(pseudo_labels={"use": True, "margin": 0.2, "curriculum": 0.5}).distillation.pseudo_labels
    answers = pd.Series(["yes", None, None, None])
    pseudo = {1: ("low", 0.1), 2: ("middle", 0.5), 3: ("high", 0.9)}
    targets = Targets(answers, pseudo, rule, epochs=4)
    assert targets.at(0) == {0: "yes", 3: "high"}
    assert targets.at(1) == targets.at(3) == {0: "yes", 2: "middle", 3: "high"}


def test_wrong_answers_get_the_best_of_the_teachers() -> None:
    rule = config_with(corrections={"rounds": 1, "answers": 2}).distillation.corrections
    assert rounds_begin(9, 2) == [3, 6]
    true = {0: "<box>(0,0),(100,100)</box>", 1: "a round lesion", 2: "<box>(0,0),(100,100)</box>"}
    answers = {0: "<box>(0,0),(50,100)</box>", 1: "a round lesion", 2: "<box>(0,0),(60,100)</box>"}
    assert [is_wrong(answers[item], true[item], rule) for item in true] == [True, False, False]  # IoU 0.5 is wrong
    draws = {0: ["nothing"], 1: ["<box>(0,0),(90,100)</box>"]}
    corrected = corrections(true, answers, rule, lambda wrong, draw: draws[draw])
    assert corrected == {0: (draws[1][0], 1)}

    import pandas as pd

    targets, resumed = (Targets(pd.Series(true), {}, config_with().distillation.pseudo_labels, 4) for _ in range(2))
    targets.correct(corrected, epoch=2)
    state = targets.get_extra_state()
    assert state == {"epoch": 2, "draws": {0: 1}}, "a checkpoint holds no text"
    resumed.set_extra_state(state)
    resumed.recover(lambda places, epoch, draw: [f"{epoch} {draw}" for _ in places])
    assert resumed.at(3) == {**true, 0: "2 1"} and targets.at(3) == {**true, 0: draws[1][0]}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"teachers": {"a": {"kind": "tabular"}}}, "teachers"),
        ({"distillation": {"kl": {"weight": 1}}}, "distillation.teacher"),
        ({"distillation": {"kl": {"weight": 1}, "teacher": {"box_steps": 9}}}, "distillation.teacher.box_steps"),
        ({"distillation": {"corrections": {"rounds": 1}, "teacher": {}}}, "distillation.teacher.hints"),
        ({"distillation": {"kl": {"weight": 1}, "teacher": {"reads": ["supperior"]}}}, "distillation.teacher.reads"),
        ({"augmentation": {"shift": 0.3}}, "augmentation"),
        ({"evaluation": {"map": "rollout"}}, "evaluation.map"),
        ({"execution": "compile"}, "execution"),
        (
            {"distillation": {"corrections": {"rounds": 1}, "teacher": {"hints": 0.5, "control": "shuffled"}}},
            "distillation.teacher.control",
        ),
        ({"student": {"kind": "vlm", "model": "/nowhere"}}, "student.model"),
        ({"student": {"depth": 2}}, "student.kind"),
    ],
)
def test_mistakes_are_named_by_their_paths(changes: dict[str, Any], path: str) -> None:
    config = TrialConfig.model_validate(config_with().model_dump() | changes)
    assert path in [mistake.path for mistake in check(config, facts(config.cohort))]


def test_a_classifying_student_has_no_distillation(tiny_trial: TrialConfig) -> None:
    config = TrialConfig.model_validate(tiny_trial.model_dump() | {"distillation": {"kl": {"weight": 1}}})
    (mistake,) = check(config, facts(config.cohort))
    assert mistake.path == "distillation"


@pytest.mark.parametrize(
    ("student", "path", "problem"),
    [
        ({"kind": "vlm", "depth": 2}, "student.depth", "belongs to a student that classifies"),
        ({"vision": {"patch_size": 4}}, "student.vision", "write student.kind=vlm"),
    ],
)
def test_a_key_of_the_other_kind_of_student_is_named_as_such(student: dict[str, Any], path: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(TrialConfig, config_with().model_dump(mode="json") | {"student": student})
    (mistake,) = caught.value.mistakes
    assert mistake.path == path and problem in mistake.problem


def test_a_misspelt_family_is_suggested() -> None:
    (mistake,) = model_check(VlmConfig(model="qwen3vl"), 32)
    assert "did you mean 'qwen3_vl'" in mistake.problem
