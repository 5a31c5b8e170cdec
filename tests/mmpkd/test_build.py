"""All mistakes of a configuration are reported together, before a device is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mmpkd.build import build, check, goals, single_steps
from mmpkd.cohort import facts as facts_of
from mmpkd.cohort.facts import Facts
from mmpkd.config import CohortConfig, TrialConfig
from mmpkd.objectives import OBJECTIVES
from mmpkd.types import lay_out


@pytest.fixture(scope="module")
def facts(tiny_cohort: CohortConfig) -> Facts:
    return facts_of(tiny_cohort)


def found(config: TrialConfig, facts: Facts, **changes: Any) -> dict[str, str]:
    changed = TrialConfig.model_validate(config.model_dump() | changes)
    return {one.path: one.problem for one in check(changed, facts)}


def test_a_good_configuration_has_no_mistakes(tiny_trial: TrialConfig, facts: Facts) -> None:
    assert found(tiny_trial, facts) == {}
    assert goals(facts) == ("val/auroc", "val/pointing")


def test_all_mistakes_at_once(tiny_trial: TrialConfig, facts: Facts) -> None:
    mistakes = found(
        tiny_trial,
        facts,
        teachers={"findings": {"kind": "tabluar"}, "text": {"kind": "tabular", "params": {"modle": "mlp"}}},
        objectives={
            "logits": {"teacher": "findngs"},
            "features": {"teacher": "text", "params": {"layer": 2}},
            "hint": {"teacher": "text"},
            "nowhere": {"kind": "attention", "teacher": "text"},
            "soft": {"kind": "logits", "params": {"temperature": 0}},
        },
        evaluation={"map": "cls_atention"},
        cohort={**tiny_trial.cohort.model_dump(), "own_numbering": True},
    )
    assert mistakes == {
        "cohort.own_numbering": "only says who the patients of another cohort are; leave it out where a student is "
        "trained",
        "evaluation.map": "unknown map 'cls_atention' (did you mean 'cls_attention' or 'cls_attention_all' or "
        "'gradient_attention'?)",
        "teachers.findings.kind": "unknown teacher 'tabluar' (did you mean 'tabular'?)",
        "teachers.text.params.modle": "unknown key (did you mean 'model'?)",
        "objectives.logits.teacher": "no teacher is named 'findngs' (did you mean 'findings'?)",
        "objectives.features.params.layer": "the student's blocks are 0 to 1, got 2",
        "objectives.nowhere.params.layer": "missing: a block of the student, 0 to 1",
        "objectives.hint.kind": f"unknown objective 'hint' (known: {', '.join(sorted(OBJECTIVES))})",
        "objectives.soft.params.temperature": "input should be greater than 0, got 0",
    }


def test_an_external_cohort_is_refused(tiny_trial: TrialConfig, facts: Facts) -> None:
    (said,) = found(tiny_trial, replace(facts, external=True)).items()
    assert said[0] == "cohort" and "no sample is in part train" in said[1] and "python -m mmpkd.evaluate" in said[1]


def test_a_map_of_one_label_needs_a_logit_that_is_its_own(tiny_trial: TrialConfig, facts: Facts) -> None:
    findings = lay_out([("finding", "multilabel", ("mass", "calc"))])
    one_logit, two = (
        replace(facts, roi_labels=("lesion",)),
        replace(facts, roi_labels=("mass", "edema"), tasks=findings),
    )
    for name, wrong in (("cls_attention", False), ("grad_cam", True)):
        assert found(tiny_trial, one_logit, evaluation={"map": name}) == {}
        mistakes = found(tiny_trial, two, evaluation={"map": name}, objectives={})
        assert ("regions edema (logits: mass, calc)" in mistakes.get("evaluation.map", "")) == wrong


def test_an_objective_needs_a_teacher(tiny_trial: TrialConfig, facts: Facts) -> None:
    assert "has: none" in found(tiny_trial, facts, teachers={}, objectives={"logits": {}})["objectives.logits.teacher"]
    two = {"a": {"kind": "tabular"}, "b": {"kind": "tabular"}}
    assert "has: a, b" in found(tiny_trial, facts, teachers=two, objectives={"logits": {}})["objectives.logits.teacher"]


def test_objectives_that_do_not_exist_for_the_cohorts_tasks(tiny_trial: TrialConfig, facts: Facts) -> None:
    objectives = {
        "dkd": {},
        "logits": {"params": {"standardize": True}},
        "dist": {"params": {"gamma": 0}},
        "none": {"kind": "dkd", "params": {"alpha": 0, "beta": 0}},
    }
    binary = replace(facts, tasks=lay_out([("ill", "binary", ["no", "yes"])]))
    wanted = "needs tasks of three classes or more, one of which is right; the cohort has ill (binary of 2)"
    assert found(tiny_trial, binary, objectives=objectives) == {
        "objectives.dkd": f"{wanted}: use `logits`",
        "objectives.logits.params.standardize": wanted,
        "objectives.dist.params.gamma": "must be above 0: it is the only term for ill (binary of 2)",
        "objectives.none": f"{wanted}: use `logits`",
        "objectives.none.params.beta": "alpha and beta are both 0, so the term is 0; raise one of them",
    }


@pytest.mark.parametrize(
    ("kind", "params", "least"),
    [("dist", {}, 8), ("relational", {}, 3), ("contrastive", {}, 2), ("mutual_information", {}, 2), ("logits", {}, 1)],
)
def test_a_batch_too_small_to_compare_its_samples_is_refused(
    tiny_trial: TrialConfig, facts: Facts, kind: str, params: dict[str, Any], least: int
) -> None:
    for size in range(1, 10):
        mistakes = found(tiny_trial, facts, objectives={kind: {"params": params}}, optimizer={"batch_size": size})
        wanted = f"compares the samples of a batch, {least} or more of them; optimizer.batch_size is {size}: raise it"
        assert mistakes == ({f"objectives.{kind}": f"{wanted}, or drop this term"} if size < least else {})


def test_a_teacher_that_provides_what_is_needed_is_named(tiny_trial: TrialConfig, facts: Facts) -> None:
    two = {"findings": {"kind": "tabular"}, "report": {"kind": "text"}}
    asked = {"features": {"teacher": "findings", "params": {"layer": 1, "teacher_layer": 0}}}
    mistakes = found(tiny_trial, facts, teachers=two, objectives=asked)
    assert mistakes["objectives.features.teacher"].endswith("but embedding, logits; name report")


@pytest.mark.parametrize(
    ("kind", "params", "path", "problem"),
    [
        ("attention", {"layer": 1}, "teacher", "'findings' does not provide map, but embedding, logits; use another"),
        ("features", {"layer": 1, "teacher_layer": 0}, "teacher", "'findings' does not provide hidden"),
        ("contrastive", {"layer": 2}, "params.layer", "the student's blocks are 0 to 1, got 2"),
        ("contrastive", {"temperature": 0}, "params.temperature", "input should be greater than 0, got 0"),
        ("relational", {"distance": 0, "angle": 0}, "params.angle", "distance and angle are both 0"),
    ],
)
def test_what_an_objective_cannot_have(
    tiny_trial: TrialConfig, facts: Facts, kind: str, params: dict[str, Any], path: str, problem: str
) -> None:
    mistakes = found(tiny_trial, facts, objectives={kind: {"params": params}})
    assert list(mistakes) == [f"objectives.{kind}.{path}"] and mistakes[f"objectives.{kind}.{path}"].startswith(problem)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"columns": ["pathology"]}, "forbidden"),
        ({"columns": ["assessment"]}, "list it under `near_label:`"),
        ({"columns": ["scanner"]}, "has no role"),
        ({"columns": ["margn"]}, "did you mean 'margin'"),
        ({"columns": ["patient"]}, "only names things"),
    ],
)
def test_columns_a_teacher_must_not_have(
    tiny_trial: TrialConfig, facts: Facts, params: dict[str, Any], words: str
) -> None:
    teachers = {"findings": {"kind": "tabular", "params": params}}
    assert words in found(tiny_trial, facts, teachers=teachers)["teachers.findings.params.columns"]


def test_a_near_label_column_asked_for_by_name_is_admitted(tiny_trial: TrialConfig, facts: Facts) -> None:
    teachers = {"findings": {"kind": "tabular", "params": {"near_label": ["assessment"]}}}
    assert found(tiny_trial, facts, teachers=teachers) == {}


def test_mistakes_of_the_student_have_its_keys(tiny_trial: TrialConfig, facts: Facts) -> None:
    mistakes = found(tiny_trial, facts, student={"model": "vit_tiny_patch16_224", "patch_size": 7})
    assert set(mistakes) == {"cohort.image_size"}


@pytest.mark.parametrize("name", ["task", "a.b", "items"])
def test_reserved_names_are_refused(tiny_trial: TrialConfig, facts: Facts, name: str) -> None:
    assert (
        "this name is reserved" in found(tiny_trial, facts, objectives={name: {"kind": "logits"}})[f"objectives.{name}"]
    )


def test_the_student_does_not_depend_on_the_objectives(tiny_trial: TrialConfig, facts: Facts) -> None:
    alone, _ = build(tiny_trial.model_copy(update={"objectives": {}}), facts, {})
    taught, objectives = build(tiny_trial, facts, {"findings": 5})
    assert all((a == b).all() for a, b in zip(alone.parameters(), taught.parameters(), strict=True))
    assert set(objectives) == {"logits", "features"}


@pytest.mark.parametrize("name", ["a/b", "x/auroc", "/"])
def test_names_with_a_slash_are_refused(tiny_trial: TrialConfig, facts: Facts, name: str) -> None:
    teacher = {"kind": "tabular"}
    mistakes = found(tiny_trial, facts, teachers={name: teacher}, objectives={"logits": {}})
    problem = "a name cannot contain '/', because scores are named teacher/NAME/auroc; choose another name"
    assert mistakes == {f"teachers.{name}": problem}
    ensemble = {"kind": "ensemble", "params": {"members": {name: teacher, "other": teacher}}}
    mistakes = found(tiny_trial, facts, teachers={"both": ensemble}, objectives={"logits": {}})
    assert list(mistakes) == [f"teachers.both.params.members.{name}"]
    label = f"gradient_share/{name}"
    mistakes = found(tiny_trial, facts, teachers={"one": teacher}, objectives={label: {"kind": "logits"}})
    assert mistakes == {
        f"objectives.{label}": "a label cannot contain '/', because metrics are named loss/LABEL; choose another label"
    }


@pytest.mark.parametrize("batch_size", [32, 150, 151, 4096])
def test_a_batch_with_the_whole_cohort_gives_a_warning(tiny_trial: TrialConfig, facts: Facts, batch_size: int) -> None:
    few = replace(facts, num_samples=151)
    optimizer = tiny_trial.optimizer.model_copy(update={"batch_size": batch_size})
    told = single_steps(tiny_trial.model_copy(update={"optimizer": optimizer, "epochs": 7}), few)
    assert len(told) == (batch_size >= 151)
    assert all("holds all 151 samples" in one and "7 epochs are 7 steps" in one for one in told)
