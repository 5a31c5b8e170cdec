"""Training in stages, with guidance: each stage trains its modules, can be resumed, and is shared once finished."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmpkd import checkpoint
from mmpkd.build import check
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import EvaluationConfig, TrialConfig
from mmpkd.export import student_file
from mmpkd.machine.checksums import fingerprint
from mmpkd.scoring.validation import Evaluator
from mmpkd.teachers.fitted import fit_teachers
from mmpkd.train import train
from mmpkd.training import stages
from mmpkd.training.step import epoch_inputs
from mmpkd.types import CohortError, ConfigError, DivergedError
from tests.mmpkd.runs import begun
from tests.mmpkd.teacher_fixtures import EXAMPLES, IMAGE

ALONE = {"name": "alone", "train": ["student"], "epochs": 2}
GUESS = {"name": "guess", "train": ["guidance.guide"], "objectives": ["guidance"], "epochs": 1}
THROUGH = {"name": "through", "train": ["guidance.guide"], "answer": "guidance.superior"}
BESIDE = {"name": "beside", "train": ["guidance.joint"], "answer": "guidance.joint"}


def staged(trial: TrialConfig, *chosen: dict[str, Any], **changes: Any) -> TrialConfig:
    content = trial.model_dump() | {
        "teachers": {"scan": {"kind": "image", "params": IMAGE}},
        "objectives": {"guidance": {}},
        "stages": chosen,
        "epochs": 2,
    }
    return TrialConfig.model_validate(content | changes)


@pytest.fixture(scope="module")
def beside(tiny_trial: TrialConfig) -> TrialConfig:
    return staged(tiny_trial, ALONE, GUESS, BESIDE)


@pytest.fixture(scope="module")
def whole(
    beside: TrialConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[checkpoint.Progress, Path]:
    """An uninterrupted run: the checkpoint of each epoch, by its place."""
    folder, copies = tmp_path_factory.mktemp("whole"), {}
    write = checkpoint.write

    def copied(folder: Path, state: Mapping[str, Any]) -> Path:
        path, place = write(folder, state), checkpoint.Progress(*state["place"])
        copies[place._replace(seconds=0.0)] = Path(shutil.copy(path, folder / f"{place.stage}-{place.epoch}.pt"))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", copied)
        train(beside.model_copy(update={"checkpoint_seconds": 0.0}), cache, folder)
    return copies


def states(path: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.read(path)
    return state["student"] | state["objectives"]


def changed(one: Path, other: Path) -> set[str]:
    """Heads of the names of all tensors that differ between two checkpoints."""
    ours, theirs = states(one), states(other)
    return {".".join(name.split(".")[:2]) for name in ours if not torch.equal(ours[name], theirs[name])}


def test_each_stage_trains_its_own_modules_alone(whole: dict[checkpoint.Progress, Path]) -> None:
    alone, guess, first, last = (whole[checkpoint.Progress(*place)] for place in ((0, 2), (1, 1), (2, 1), (2, 2)))
    assert changed(whole[checkpoint.Progress(0, 1)], alone) == {"model.patch_embed", "model.cls_token"} | {
        f"model.{name}" for name in ("pos_embed", "blocks", "norm", "head")
    }
    assert changed(alone, guess) == {"guidance.guide"}
    assert changed(guess, first) == changed(first, last) == {"guidance.joint"}


def test_the_end_of_each_stage_is_saved(
    beside: TrialConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, write = list[tuple[int, int]](), checkpoint.write
    monkeypatch.setattr(
        checkpoint, "write", lambda folder, state: places.append(state["place"][:2]) or write(folder, state)
    )
    (tmp_path / "teachers").symlink_to(cache / "teachers")  # but no finished stage
    train(beside, tmp_path, tmp_path / "run", store=prepare(beside.cohort, cache))
    assert places == [(0, 2), (1, 1), (2, 2)]


def test_the_first_stage_is_a_training_without_stages(
    whole: dict[checkpoint.Progress, Path], tiny_trial: TrialConfig, cache: Path, tmp_path: Path
) -> None:
    plain = staged(tiny_trial, objectives={}, teachers={})
    train(plain, cache, tmp_path)
    ours, theirs = (
        checkpoint.read(path)["student"] for path in (whole[checkpoint.Progress(0, 2)], tmp_path / "last.pt")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("place", [(0, 1), (0, 2), (1, 1), (2, 1)])
def test_resumed_in_any_stage_equals_uninterrupted(
    place: tuple[int, int], whole: dict[checkpoint.Progress, Path], beside: TrialConfig, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "teachers").symlink_to(cache / "teachers")  # but no finished stage
    reported: list[int] = []
    store = prepare(beside.cohort, cache)
    resumed = train(
        beside, tmp_path, tmp_path, whole[checkpoint.Progress(*place)], lambda one: reported.append(one.epoch), store
    )
    last = whole[checkpoint.Progress(2, 2)]
    assert not changed(tmp_path / "last.pt", last)
    assert [one.metrics for one in resumed] == [one.metrics for one in checkpoint.history(last)]
    assert reported == ([2] if place[0] == 2 else [1, 2])
    assert len(checkpoint.history(whole[checkpoint.Progress(*place)])) == (place[1] if place[0] == 2 else 0)


def test_a_finished_stage_is_not_trained_again(
    beside: TrialConfig,
    tiny_trial: TrialConfig,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another last stage begins from the same two stages, and ends as it does without them."""
    through = staged(tiny_trial, ALONE, GUESS, THROUGH, evaluation={"map": "rollout"})
    for shared_too in ("teachers", "stores"):
        (cache / shared_too).mkdir(exist_ok=True)
        (tmp_path / shared_too).symlink_to(cache / shared_too)
    fresh = train(through, tmp_path)
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines() if "stage" in line] == [
        "stage alone ended with epoch 2",
        "stage guess ended with epoch 1",
    ]
    train(beside, cache)
    trained: list[int] = []
    step = stages.Run.wake
    monkeypatch.setattr(stages.Run, "wake", lambda self: (trained.append(self.index), step(self))[1])
    shared = train(through, cache)
    assert trained == [2, 2]
    assert [(one.terms, one.metrics) for one in shared] == [(one.terms, one.metrics) for one in fresh]


def test_the_address_of_a_stage_depends_on_what_precedes_it(beside: TrialConfig, cache: Path, tmp_path: Path) -> None:
    store = prepare(beside.cohort, cache)
    outputs = fit_teachers(beside, store, cache)

    def addresses(**changes: Any) -> list[Path]:
        return stages.addresses(TrialConfig.model_validate(beside.model_dump() | changes), store, outputs, cache)

    base = addresses()
    later = {"stages": [ALONE, GUESS, THROUGH], "epochs": 5, "evaluation": {"map": "rollout"}}
    assert addresses(**later) == base
    assert addresses(stages=[ALONE, GUESS | {"epochs": 2}, BESIDE])[0] == base[0]
    assert addresses(stages=[ALONE, GUESS | {"epochs": 2}, BESIDE])[1] != base[1]
    heavier = addresses(objectives={"guidance": {"weight": 2.0}})  # the first stage does not hear of it
    assert heavier[0] == base[0] and heavier[1] != base[1]
    for other in ({"seed": 1}, {"optimizer": {"lr": 1e-3}}, {"threads": 2}):
        assert not set(addresses(**other)) & set(base)
    one_by_one = {"guess": addresses()[1]}
    outputs = {"scan": replace(outputs["scan"], address="other answers")}  # type: ignore[type-var]
    assert addresses()[0] == base[0], "the first stage uses no teacher"
    one_by_one["after other answers"] = addresses()[1]
    outputs, store.fingerprint = fit_teachers(beside, Store.open(store.path), cache), "other labels"
    assert not set(addresses()) & {*base, *one_by_one.values()} and len(set(one_by_one.values())) == 2
    store = Store.open(store.path)
    for content in (b"some", b"others"):  # under one name
        (weights := tmp_path / "w.npz").write_bytes(content)
        student = beside.student.model_dump() | {"pretrained": True, "weights": weights}
        base = {*base, *(new := addresses(student=student))}
        assert len(new) == 2
    assert len(base) == 6


def test_weights_that_are_not_finite_are_not_saved(beside: TrialConfig, cache: Path, tmp_path: Path) -> None:
    run = begun(beside, cache)
    with torch.no_grad():
        next(run.student.parameters()).fill_(torch.nan)
    with pytest.raises(DivergedError, match="stage 'alone' ended with weights that are not finite"):
        stages.keep(tmp_path / "stage.pt", run.stages[:1], run.student, run.objectives)
    assert not list(tmp_path.iterdir())


def test_a_damaged_finished_stage_is_named(beside: TrialConfig, cache: Path, tmp_path: Path) -> None:
    run, path = begun(beside, cache), tmp_path / "stage.pt"
    for content in (b"words", {"a": 1}, [], {"student": {"model.cls_token": torch.zeros(2)}}):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ConfigError, match=r"stage\.pt: does not hold this finished stage .*; delete the file"):
            stages.recall([path], run.student, run.objectives)


def test_frozen_modules_have_no_dropout_and_no_gradient(beside: TrialConfig, cache: Path) -> None:
    run = begun(beside, cache)
    for index, awake in enumerate(("student", "guide", "joint")):
        run.enter(index)
        run.wake()
        parts: dict[str, torch.nn.Module] = {
            "student": run.student,
            **dict(run.objectives["guidance"].named_children()),
        }
        assert {name for name, part in parts.items() if part.training} == {awake}
        learning = {name for name, part in parts.items() if any(one.requires_grad for one in part.parameters())}
        assert learning == {awake}
        held = {id(one) for group in run.optimizer.param_groups for one in group["params"]}
        assert held == {id(one) for one in parts[awake].parameters()}


# --- the logits that are scored ---


@pytest.mark.parametrize("last", [THROUGH, BESIDE], ids=["superior", "joint"])
def test_a_guided_student_needs_no_superior_image(
    last: dict[str, Any], tiny_trial: TrialConfig, cache: Path, tmp_path: Path
) -> None:
    config = staged(tiny_trial, ALONE, GUESS, last)
    history = train(config, cache, tmp_path / "run")
    store = prepare(config.cohort, cache)
    copy = Path(shutil.copytree(store.path, tmp_path / "clinic"))
    (copy / "views" / "superior.npy").unlink()
    clinic = Store.open(copy)
    with pytest.raises(CohortError, match="the further image 'superior' has been deleted"):
        clinic.view("superior")
    student = student_file.read(tmp_path / "run").student
    rows, cpu = clinic.rows("val"), torch.device("cpu")
    found = Evaluator(clinic, rows, EvaluationConfig(), student.grid, cpu, clinic.rows("train"))(student)
    assert found == {name: history[-1].metrics[name] for name in found}
    evaluator = Evaluator(clinic, rows, EvaluationConfig(), student.grid, cpu)
    card = student_file.read(tmp_path / "run").card
    (task,), known = card.tasks, (evaluator.target_NK, evaluator.known_NK)
    calibrated = student_file.fit_temperature(evaluator.predict(student)[0], *known, task)
    assert card.temperature[task.name] == pytest.approx(calibrated), "from the logits of the head"
    head = fit_teachers(config, store, cache)["scan"].head
    assert head is not None and student.head is not None
    ships = student.head.state_dict()
    assert torch.equal(ships["classifier.weight"], head[0]) == (last is THROUGH)
    assert "guide.0.weight" in ships


def test_a_reference_reads_what_it_names_and_is_not_exported(
    tiny_trial: TrialConfig, cache: Path, tmp_path: Path
) -> None:
    nothing: dict[str, Any] = {
        "objectives": {},
        "teachers": {},
        "augmentation": {"shift": 0.0, "flip_horizontal": False},
    }
    both = staged(tiny_trial, **nothing, student=tiny_trial.student.model_dump() | {"reads": ["superior", "image"]})
    run = begun(both, cache)
    batch, _ = next(map(run.samples.batch, epoch_inputs(run, 0)))
    rows = batch.rows_B.numpy()
    for channel, pixels in enumerate((run.store.view("superior"), run.store.image_NCHW)):
        assert np.array_equal((batch.image_BCHW[:, channel] * 255).round().numpy(), pixels[rows, 0])
    assert len(train(both, cache, tmp_path)) == 2 and not (tmp_path / student_file.NAME).exists()
    assert both.fingerprint() != staged(tiny_trial, **nothing).fingerprint()


# --- what is refused when the plan is made ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stages": [ALONE, GUESS | {"train": ["guidance.guid"]}, BESIDE]},
            "stages.1.train: no module that can learn is called 'guidance.guid' (did you mean 'guidance.guide'",
        ),
        (
            {"stages": [ALONE, THROUGH | {"train": ["guidance.superior"]}]},
            "stages.1.train: no module that can learn is called 'guidance.superior'",
        ),
        (
            {"stages": [ALONE, GUESS | {"objectives": ["guidence"]}, BESIDE]},
            "stages.1.objectives: there is no objective 'guidence' (did you mean 'guidance'?)",
        ),
        (
            {"stages": [ALONE, GUESS, BESIDE | {"answer": "joint"}]},
            "stages.2.answer: 'joint' has no logits (known: guidance.joint, guidance.superior, student)",
        ),
        ({"stages": [ALONE, ALONE, BESIDE]}, "stages.1.name: another stage is called 'alone'"),
        ({"stages": [ALONE, GUESS, BESIDE | {"epochs": 3}]}, "stages.2.epochs: the last stage has the"),
        ({"stages": [ALONE | {"epochs": None}, GUESS, BESIDE]}, "stages.0.epochs: missing"),
        (
            {"stages": [ALONE, GUESS]},
            "stages.1.epochs: the last stage has the",
        ),
        (
            {"stages": [ALONE, GUESS | {"epochs": None}]},
            "stages.1.train: the last stage trains nothing behind the logits of student",
        ),
        (
            {"stages": [ALONE, GUESS, THROUGH | {"answer": "guidance.joint"}]},
            "stages.2.answer: guidance.joint passes through guidance.joint, which no stage trains",
        ),
        (
            {"stages": [ALONE, GUESS | {"train": ["guidance"]}, THROUGH | {"answer": "guidance.joint"}]},
            "stages.2.answer: guidance.joint passes through guidance.joint, which no stage trains",
        ),
        (
            {"stages": [ALONE, BESIDE]},
            "stages.1.answer: guidance.joint passes through guidance.guide, which no stage trains",
        ),
        (
            {"stages": [GUESS, BESIDE]},
            "stages.1.answer: guidance.joint passes through student, which no stage trains",
        ),
        (
            {"stages": [ALONE, GUESS | {"train": ["guidance.joint"]}, THROUGH]},
            "stages.1.train: no term of this stage passes through guidance.joint",
        ),
        (
            {"stages": [ALONE, GUESS | {"objectives": ["task"]}, THROUGH]},
            "stages.1.objectives: task affects no module that this stage trains",
        ),
        (
            {"objectives": {"guidance": {"weight": 0}}},
            "stages.1.objectives: there is no objective 'guidance' (its weight is 0)",
        ),
        (
            {"teachers": {"findings": {"kind": "tabular"}}},
            "objectives.guidance.teacher: 'findings' does not provide head",
        ),
        ({"teachers": {}}, "objectives.guidance.teacher: needs a teacher"),
        ({"objectives": {"guidance": {}, "logits": {}}}, "objectives.logits: no stage uses it"),
        ({"objectives": {"student": {"kind": "guidance"}}}, "objectives.student: this name is reserved"),
        ({"student": {"reads": ["superier"]}}, "student.reads: the cohort has no image 'superier'"),
        (
            {"student": {"reads": ["superior"]}, "teachers": {"scan": EXAMPLES["fused"]}, "objectives": {"logits": {}}},
            "student.reads: teacher 'scan' sees the view of the student",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], said: str, beside: TrialConfig, cache: Path) -> None:
    if "student" in changes:
        changes = changes | {"student": beside.student.model_dump() | changes["student"]}
    config = TrialConfig.model_validate(beside.model_dump() | changes)
    found = [str(one) for one in check(config, prepare(config.cohort, cache).facts)]
    assert any(one.startswith(said) for one in found), found


def test_terms_that_affect_no_module_are_refused(beside: TrialConfig, cache: Path) -> None:
    """Whether a term reads logits is not known before; features reads none, so the joint head learns nothing."""
    content = beside.model_dump() | {
        "objectives": {"guidance": {}, "features": {"params": {"layer": 1}}},
        "stages": [ALONE, GUESS, BESIDE | {"objectives": ["features"]}],
    }
    with pytest.raises(ConfigError, match=r"stages\.2\.objectives: no term \(features\) depends on what the stage"):
        train(TrialConfig.model_validate(content), cache)


def test_a_sound_training_in_stages_is_not_refused(beside: TrialConfig, cache: Path) -> None:
    facts = prepare(beside.cohort, cache).facts
    for chosen in ([ALONE, GUESS, BESIDE], [ALONE, GUESS, THROUGH | {"epochs": 1}, BESIDE], [ALONE, GUESS, THROUGH]):
        assert not check(TrialConfig.model_validate(beside.model_dump() | {"stages": chosen}), facts)
    assert not check(TrialConfig.model_validate(beside.model_dump() | {"stages": ()}), facts)


def test_configurations_without_stages_keep_their_fingerprint(tiny_trial: TrialConfig) -> None:
    before = tiny_trial.model_dump(mode="json", exclude={"cohort": {"root"}, "stages": True, "student": {"reads"}})
    assert tiny_trial.fingerprint() == fingerprint(before)
    assert staged(tiny_trial, ALONE, GUESS, BESIDE).fingerprint() != staged(tiny_trial).fingerprint()
