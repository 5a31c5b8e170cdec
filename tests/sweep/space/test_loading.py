"""Overrides and references: where a dotted key leads, and what is said when it leads nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmpkd.types import Mistake
from sweep.space.draw import BoundsChooser, draw
from sweep.space.space import Space, load_space

OBJECTIVES = "arms.tabular.objectives"
SPACE = """
cohort: {reader: synthetic, image_size: 48}
optimizer: {lr: {log_uniform: [1e-5, 1e-3]}, batch_size: 16}
epochs: 9
arms:
  tabular:
    teachers: {findings: {kind: tabular, params: {columns: [shape, age]}}}
    objectives:
      one_of:
        soft: {logits: {weight: {log_uniform: [0.05, 20]}}}
        deep: {features: {maybe: {weight: 1, params: {layer: {int: [1, 3]}}}}}
search: {trials: 8}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    return path


def load(file: Path, *overrides: str) -> Space:
    space, mistakes = load_space(str(file), overrides)
    assert mistakes == []
    assert space is not None
    return space


def first(space: Space, arm: str = "tabular", step: int = 0, **labels: str) -> dict[str, Any]:
    chosen = {f"{arm}/{name}": label for name, label in labels.items()}
    return draw(space.arms[arm], BoundsChooser(chosen, step), arm).config


def refused(file: Path, *overrides: str) -> list[Mistake]:
    return load_space(str(file), overrides)[1]


def test_an_override_fixes_a_leaf_below_a_branch_with_or_without_the_words(file: Path):
    for path in ("objectives.soft.logits.weight", "objectives.one_of.soft.logits.weight"):
        space = load(file, f"arms.tabular.{path}=1")
        assert first(space)["objectives"] == {"logits": {"weight": 1}}
    for path in ("objectives.deep.features.params.layer", "objectives.one_of.deep.features.maybe.params.layer"):
        space = load(file, f"arms.tabular.{path}=2")
        deep = {"objectives": "deep", "objectives.deep.features.maybe": "present"}
        assert first(space, **deep)["objectives"] == {"features": {"weight": 1, "params": {"layer": 2}}}


def test_an_override_may_add_fix_or_replace(file: Path):
    space = load(
        file,
        "optimizer.lr={uniform: [1, 2]}",
        "optimizer.weight_decay=0.1",
        "student={depth: 4}",
        "arms.tabular.teachers.findings.params.columns=[age]",
        "arms.none.optimizer.label_smoothing=0.1",
        "epochs=3",
        "trials=5",
        "seed=7",
        "search.early_stopping=off",
    )
    none = first(space, "none", step=1)
    assert none["optimizer"] == {"lr": 2.0, "batch_size": 16, "weight_decay": 0.1, "label_smoothing": 0.1}
    assert none["student"] == {"depth": 4}
    assert first(space)["teachers"] == {"findings": {"kind": "tabular", "params": {"columns": ["age"]}}}
    assert "label_smoothing" not in first(space)["optimizer"]
    assert (none["epochs"], space.search.trials, space.seed, space.search.early_stopping) == (3, 5, 7, None)


def test_a_mapping_merges_but_a_distribution_is_replaced_whole(file: Path):
    space = load(file, "optimizer={batch_size: 8}", "arms.tabular.objectives={logits: {weight: 1}}")
    assert first(space)["optimizer"] == {"lr": 1e-5, "batch_size": 8}
    assert first(space)["objectives"] == {"logits": {"weight": 1}}


def test_an_arm_is_switched_off_by_name_and_a_new_one_given_whole(file: Path):
    assert list(load(file, "arms.none=false").arms) == ["tabular"]
    assert list(load(file, "arms.tabular=false").arms) == ["none"]
    assert list(load(file, "arms.smooth={optimizer: {label_smoothing: 0.1}}").arms) == ["none", "tabular", "smooth"]
    file.write_text("arms: {none: false, a: null}")
    assert list(load(file).arms) == ["a"]


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        ("epochs", "epochs: expected key=value"),
        ("epochs=[1", "epochs: '[1' is not a YAML value: "),
        ("arms.tabluar.optimizer.lr=1", "arms.tabluar: no such arm (did you mean 'tabular'?)"),
        ("arms.tabluar=false", "arms.tabluar: no such arm (did you mean 'tabular'?)"),
        (f"{OBJECTIVES}.sft.logits.weight=1", f"{OBJECTIVES}.sft: no such branch (did you mean 'soft'?)"),
        (f"{OBJECTIVES}.logits.weight=1", f"{OBJECTIVES}.logits: no such branch (known: deep, soft)"),
        ("optimizer.lr.low=1", "optimizer.lr.low: nothing is below optimizer.lr, a log_uniform; override"),
        ("optimizer.batch_size.x=1", "optimizer.batch_size.x: nothing is below optimizer.batch_size, which is 16"),
        ("arms.none=false arms.tabular=false", "arms: every arm is switched off; leave at least one on"),
        ("arms.none=3", "arms.none: an arm is a mapping (or false: switched off), got 3"),
    ],
)
def test_an_override_that_leads_nowhere_is_a_mistake(file: Path, override: str, mistake: str):
    (found,) = refused(file, *override.split() if "arms.none=false" in override else [override])
    assert str(found).startswith(mistake)


def test_an_override_that_arms_shadow_names_what_changes_them(tmp_path: Path):
    """Without it, an override would silently change only the arms that have no value of their own."""
    file = tmp_path / "shadow.yaml"
    arms = {"none": "{}", "soft": "{optimizer: {weight_decay: 0.1}}", "deep": "{optimizer: {weight_decay: 0.3}}"}
    text = SPACE.partition("arms:")[0] + "arms:\n" + "".join(f"  {arm}: {own}\n" for arm, own in arms.items())
    file.write_text(text)
    problem = "would not change arms that set a value of their own (soft, deep); write "
    remedy = "arms.soft.optimizer.weight_decay=0.2 arms.deep.optimizer.weight_decay=0.2"
    _, mistakes = load_space(str(file), ["optimizer.weight_decay=0.2"])
    assert mistakes == [Mistake("optimizer.weight_decay", problem + remedy)]
    assert load_space(str(file), remedy.split())[1] == []
    file.write_text(text.replace("batch_size: 16", "batch_size: 16, weight_decay: 0"))
    assert load_space(str(file), ["optimizer.weight_decay=0.2"])[1] == [], "the shared value is that of the arm none"
    file.write_text(file.read_text().replace("none: {}", "none: {optimizer: {weight_decay: 0}}"))
    assert len(load_space(str(file), ["optimizer.weight_decay=0.2"])[1]) == 1, "every arm has its own"


def test_references_are_resolved_after_overrides(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    file.write_text(
        "cohort: {reader: x, root: '${oc.env:DATA_ROOT}/x'}\noptimizer: {batch_size: '${epochs}'}\nepochs: 4\n"
    )
    (mistake,) = refused(file)
    assert str(mistake) == (
        "cohort.root: the environment variable DATA_ROOT is not set; set it, or add cohort.root=... to the command"
    )
    space = load(file, f"cohort.root={tmp_path}", "epochs=6")
    assert first(space, "none")["cohort"]["root"] == str(tmp_path)
    assert first(space, "none")["optimizer"] == {"batch_size": 6}
    monkeypatch.setenv("DATA_ROOT", "/data")
    assert first(load(file), "none")["cohort"]["root"] == "/data/x"


def test_a_relative_root_is_made_absolute(file: Path):
    assert first(load(file, "cohort.root=some/../data"), "none")["cohort"]["root"] == str(Path("data").absolute())


@pytest.mark.parametrize(
    ("override", "path", "problem"),
    [
        ("student.depth=${nowhere}", "student.depth", "Interpolation key 'nowhere' not found"),
        ("epochs=${optimizer.lr}", "epochs", "a reference must lead to a single fixed value"),
        ("student.model=vit_${optimizer.lr}", "student.model", "a reference inside a text must lead to a single fixed"),
        ("student.depth=${optimizer}", "student.depth", "a reference must lead to a single leaf, this is a mapping"),
        ("student.depth=???", "student.depth", "has no value yet; add student.depth=... to the command"),
        ("optimizer.lr={uniform: ['${nowhere}', 1]}", "optimizer.lr", "Interpolation key 'nowhere' not found"),
    ],
)
def test_a_reference_that_cannot_be_resolved_is_said_once(file: Path, override: str, path: str, problem: str):
    (mistake,) = refused(file, override)
    assert mistake.path == path
    assert mistake.problem.startswith(problem)
