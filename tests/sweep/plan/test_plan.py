"""The plan: every branch checked, every mistake once, under the path of the space file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mmpkd.cohort.facts import Column, Facts
from mmpkd.config import CohortConfig
from mmpkd.types import CohortError, ConfigError, lay_out
from sweep.plan import checks
from sweep.plan import plan as planning
from sweep.plan.plan import Plan, plan
from sweep.plan.show import render
from sweep.space.loading import shipped
from sweep.space.space import load_space
from tests.conftest import real_data
from tests.mmpkd.cohort import derm7pt_trees, mimic_trees, question_trees, radpath_trees
from tests.mmpkd.cohort.cbis_trees import write_some
from tests.mmpkd.vlm.model_folders import write_tiny_model

SPACE = """
cohort: {reader: x, image_size: 32}
student: {model: vit_tiny_patch16_224, patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}
optimizer: {lr: {log_uniform: [1e-5, 1e-3]}}
epochs: 9
arms:
  tabular:
    teachers: {findings: {kind: tabular, params: {columns: [shape]}}}
    objectives:
      one_of:
        soft: {logits: {weight: {log_uniform: [0.05, 20]}}}
        deep: {features: {weight: {maybe: {uniform: [1, 2]}}, params: {layer: {int: [0, 1]}}}}
search: {trials: 8}
"""


def facts_of(config: CohortConfig, roi_labels: tuple[str, ...] = ("lesion",)) -> Facts:
    return Facts(
        tasks=lay_out([("malignant", "binary", ("no", "yes"))]),
        columns={"shape": Column("shape", "descriptor"), "verdict": Column("verdict", "forbidden")},
        unlisted=("scanner",),
        channels=1,
        image_size=config.image_size,
        roi_labels=roi_labels,
        views=(),
        sections={},
        credentialed=False,
        num_samples=40,
    )


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checks, "read_facts", facts_of)
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    return path


def planned(file: Path, *overrides: str) -> Plan:
    space, mistakes = load_space(str(file), overrides)
    assert space is not None
    return plan(space, mistakes)


def mistakes(file: Path, *overrides: str) -> list[str]:
    return [str(mistake) for mistake in planned(file, *overrides).mistakes]


def test_a_sound_space_is_counted_branch_by_branch(file: Path):
    found = planned(file)
    assert found.mistakes == () and found.warnings == ()
    assert found.goals == ("val/auroc", "val/pointing")
    assert [(one.arm, list(one.labels.values()), len(one.free), one.checked) for one in found.branches] == [
        ("none", [], 1, 2),
        ("tabular", ["soft"], 2, 2),
        ("tabular", ["deep", "absent"], 2, 2),
        ("tabular", ["deep", "present"], 3, 2),
    ]
    assert found.checked == 8
    assert found.example is not None and found.example.epochs == 9


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        (
            "arms.tabular.objectives.deep.features.params.layer={int: [1, 5]}",
            "arms.tabular.objectives.deep.features.params.layer: the student's blocks are 0 to 1, got 5",
        ),
        (  # both bounds, in two branches: said once
            "arms.tabular.objectives.deep.features.params.layer={int: [3, 5]}",
            "arms.tabular.objectives.deep.features.params.layer: the student's blocks are 0 to 1, got 3",
        ),
        (
            "arms.tabular.objectives.soft.logits.params.temprature=2",
            "arms.tabular.objectives.soft.logits.params.temprature: unknown key (did you mean 'temperature'?)",
        ),
        (
            "arms.tabular.objectives.soft.logits.wieght=2",
            "arms.tabular.objectives.soft.logits.wieght: unknown key (did you mean 'weight'?)",
        ),
        (
            "arms.tabular.objectives.soft.logits.teacher=text",
            "arms.tabular.objectives.soft.logits.teacher: no teacher is named 'text' (known: findings)",
        ),
        (
            "arms.tabular.teachers.findings.kind=tabuler",
            "arms.tabular.teachers.findings.kind: unknown teacher 'tabuler'",
        ),
        (
            "arms.tabular.teachers.findings.params.columns=[verdict]",
            "arms.tabular.teachers.findings.params.columns: column 'verdict' is forbidden",
        ),
        (
            "arms.tabular.teachers.findings.params.columns=[scanner]",
            "arms.tabular.teachers.findings.params.columns: column 'scanner' has no role",
        ),
        ("student.dpeth=2", "student.dpeth: unknown key (did you mean 'depth'?)"),
        (
            "student.model=vit_tinny_patch16_224",
            "student.model: timm has no model 'vit_tinny_patch16_224' (did you mean",
        ),
        ("optimizer.lr={uniform: [-1, 1]}", "optimizer.lr: input should be greater than 0, got -1.0"),
        ("cohort.raeder=x", "cohort.raeder: unknown key (did you mean 'reader'?)"),
        ("epochs=0", "epochs: input should be greater than 0, got 0"),
        ("evaluation.map=attention", "evaluation.map: unknown map 'attention'"),
        ("trials=1", "search.trials: 1 for 2 arms; each arm needs at least one"),
        ("optimizer.lr={loguniform: [1e-5, 1e-3]}", "optimizer.lr: input should be a valid number"),
    ],
)
def test_a_mistake_in_many_branches_is_said_once_under_the_path_that_mends_it(file: Path, override: str, mistake: str):
    found = mistakes(file, override)
    assert len(found) == 1, found
    assert found[0].startswith(mistake)


def test_a_word_nearly_spelt_is_hinted_at(file: Path):
    assert mistakes(file, "optimizer.lr={loguniform: [1e-5, 1e-3]}")[0].endswith("(did you mean 'log_uniform'?)")
    (found,) = mistakes(file, "arms.tabular.objectives={oneof: {logits: {weight: 1}}}")
    assert found == (
        "arms.tabular.objectives.oneof.logits: unknown key (known: kind, params, schedule, teacher, weight)"
        " (did you mean 'one_of'?)"
    )


def test_mistakes_of_space_and_plan_are_shown_together_and_none_twice(file: Path):
    found = mistakes(
        file,
        "optimizer.lr={log_uniform: [1e-3, 1e-5]}",
        "arms.tabular.objectives.deep.features.params.layer=7",
        "arms.tabular.objectives.soft.logits.weight={uniform: [-1]}",
        "student.pretraind=true",
        "search.trails=3",
    )
    assert [line.partition(":")[0] for line in found] == [
        "search.trails",
        "optimizer.lr",
        "arms.tabular.objectives.soft.logits.weight",
        "student.pretraind",
    ]
    found = mistakes(file, "optimizer.lr={log_uniform: [0, 1]}", "arms.tabular.objectives.deep.features.params.layer=7")
    assert [line.partition(":")[0] for line in found] == [
        "optimizer.lr",
        "arms.tabular.objectives.deep.features.params.layer",
    ]


def test_a_misspelt_key_does_not_hide_mistakes_elsewhere(file: Path):
    layer = "arms.tabular.objectives.deep.features.params.layer"
    found = mistakes(
        file, "optimizer.weight_dcay=1", f"{layer}=7", "arms.tabular.teachers.findings.params.columns=[verdict]"
    )
    assert [line.partition(":")[0] for line in found] == [
        "optimizer.weight_dcay",
        "arms.tabular.teachers.findings.params.columns",
        layer,
    ]
    both = "arms.tabular.objectives={logits: {techer: findings}, features: {params: {layer: 7}}}"
    assert [line.partition(":")[0] for line in mistakes(file, both, "arms.tabular.teachers.second.kind=tabular")] == [
        "arms.tabular.objectives.logits.techer",  # and not that logits, now without a teacher, needs one
        "arms.tabular.objectives.features.teacher",
        "arms.tabular.objectives.features.params.layer",
    ]


def test_a_cohort_that_cannot_be_read_does_not_hide_the_rest(file: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(config: CohortConfig) -> Facts:
        raise ConfigError.at("cohort.root", "no such folder: /nowhere")

    layer = "arms.tabular.objectives.deep.features.params.layer"
    monkeypatch.setattr(checks, "read_facts", missing)
    assert [line.partition(":")[0] for line in mistakes(file, f"{layer}=7")] == ["cohort.root", layer]

    def broken(config: CohortConfig) -> Facts:
        raise CohortError("the table has no column 'id'")

    monkeypatch.setattr(checks, "read_facts", broken)
    assert mistakes(file) == ["cohort: the table has no column 'id'"]
    assert planned(file).facts is None


def test_a_misspelt_key_of_a_reader_of_questions_is_one_mistake() -> None:
    """A cohort that cannot be read is not said to lack questions."""
    assert mistakes("vqa_demo", "cohort.params.vall=24") == ["cohort.params.vall: unknown key (did you mean 'val'?)"]


def test_a_cohort_is_read_once_and_not_at_all_where_the_space_says_it_is_broken(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setattr(checks, "read_facts", lambda config: asked.append(config) or facts_of(config))
    planned(file)
    assert len(asked) == 1
    assert mistakes(file, "cohort.root=${oc.env:SURELY_NOT_SET}") == [
        "cohort.root: the environment variable SURELY_NOT_SET is not set; set it, or add cohort.root=... to the command"
    ]
    assert len(asked) == 1
    file.write_text("epochs: 3\n")
    assert mistakes(file) == ["cohort: missing"]
    file.write_text("cohort: {image_size: 32}\n")
    assert mistakes(file) == ["cohort.reader: missing"]


def test_goals_follow_the_cohort_or_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch):
    assert planned(file, "search.maximize=[val/auroc, val/mass]").goals == ("val/auroc", "val/mass")
    monkeypatch.setattr(checks, "read_facts", lambda config: facts_of(config, roi_labels=()))
    assert planned(file).goals == ("val/auroc",)
    assert mistakes(file, "search.maximize=[val/auroc, val/pointing]") == [
        "search.maximize: val/pointing needs ROIs and the cohort has none; it can score val/auroc"
    ]
    assert mistakes(file, "search.select=val/pointing") == [
        "search.select: val/pointing is not among the goals of this cohort: val/auroc; "
        "name the goal by which the best trial is chosen: search.select=val/auroc"
    ]


def test_patients_can_be_a_goal_where_one_has_several_images(file: Path, monkeypatch: pytest.MonkeyPatch):
    goals = "search.maximize=[val/auroc_patient, val/pointing]"
    assert mistakes(file, goals, "search.select=val/auroc_patient") == [
        "search.maximize: val/auroc_patient needs several images of a patient and the cohort has none; it can score "
        "val/auroc and val/pointing and val/mass and val/pixel_ap"
    ]
    several = lambda config: replace(facts_of(config), several_images=True)  # noqa: E731
    monkeypatch.setattr(checks, "read_facts", several)
    assert planned(file).goals == ("val/auroc", "val/pointing")  # unasked, images stay what is maximised
    found = planned(file, goals, "search.select=val/auroc_patient")
    assert found.goals == ("val/auroc_patient", "val/pointing") and not found.mistakes
    assert mistakes(file, "search.select=val/auroc_patient") == [
        "search.select: val/auroc_patient is not among the goals of this cohort: val/auroc, val/pointing; "
        "name them: search.maximize=[val/auroc_patient, val/pointing]"
    ]
    assert "did you mean 'val/auroc_patient'" in mistakes(file, "search.select=val/auroc_patents")[0]


def test_what_is_odd_is_a_warning(file: Path, monkeypatch: pytest.MonkeyPatch):
    assert planned(file, "epochs=3", "search.early_stopping.grace=3").warnings == (
        "search.early_stopping never acts: its grace of 3 epochs is not below epochs=3",
    )
    monkeypatch.setattr(planning, "MOST_BRANCHES", 2)
    found = planned(file)
    assert found.warnings == (
        "arm tabular has 3 branches: not every combination is checked, but each label at least once",
    )
    assert {label for one in found.branches for label in one.labels.values()} == {"soft", "deep", "absent", "present"}


def test_an_arm_with_nothing_to_sample_wants_one_trial(file: Path):
    (mistake,) = mistakes(file, "optimizer.lr=1e-4")
    assert mistake.startswith("arms.none: has nothing to sample, so all its trials would be the same: give a leaf")
    assert planned(file, "optimizer.lr=1e-4", "trials=2").trials == 2


def test_the_plan_is_shown_and_written(file: Path):
    found = planned(file, "optimizer.lr=1e-4", "trials=2")
    console = Console(width=120, record=True, quiet=False, file=(file.parent / "console").open("w"))
    console.print(render(found))
    text = console.export_text()
    for part in (
        "Plan of mine",
        "objectives: deep",
        "weight.maybe: present",
        "2 trials",
    ):
        assert part in text
    content = json.loads(json.dumps(found.as_json()))
    assert content["checked"] == found.checked
    assert content["branches"][1] == {
        "arm": "tabular",
        "labels": {"tabular/objectives": "soft"},
        "free": ["tabular/objectives.soft.logits.weight"],
        "checked": 2,
    }


TREES = {
    "med_grit": question_trees.write_med_grit,
    "derm7pt": lambda root: derm7pt_trees.write_tree(root, derm7pt_trees.made_up()),
    "mimic": mimic_trees.write_tree,
    "radpath": radpath_trees.write_tree,
}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_space_plans_without_a_mistake(name: str, tmp_path: Path):
    generated = name in ("demo", "all_objectives", "guidance", "vqa_demo")
    folder = real_data("breast_lesions_usg") if name == "breast" else tmp_path
    overrides = [] if generated else [f"cohort.root={folder}"]
    if name == "med_grit":
        overrides += [f"student.model={write_tiny_model(tmp_path / 'model')}"]
    else:
        overrides += [] if generated or name == "breast" else ["student.pretrained=false"]
    if name == "cbis":
        write_some(tmp_path, "classic")
    elif name in TREES:
        TREES[name](tmp_path)
    space, found = load_space(name, overrides)
    assert space is not None
    result = plan(space, found)
    assert result.mistakes == ()
    of_a_few_samples = ("has no output for", "holds all")  # without a report; fewer than a batch
    assert [one for one in result.warnings if not any(map(one.__contains__, of_a_few_samples))] == []
    with_rois = generated or name in ("breast", "cbis", "med_grit")
    has_questions = name in ("vqa_demo", "med_grit")
    with_places = ("val/answer", "val/recall50") if has_questions else ("val/auroc", "val/pointing")
    assert result.goals == (with_places if with_rois else ("val/auroc",))
