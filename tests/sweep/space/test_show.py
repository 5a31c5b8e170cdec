"""The tree of `show=true`: what is fixed, drawn, or follows another leaf, and what each branch has to vary."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sweep.space.show import tree
from sweep.space.space import load_space

SPACE = """
cohort: {reader: synthetic, image_size: 48}
optimizer: {lr: {log_uniform: [1e-5, 1e-3]}, weight_decay: "${optimizer.lr}", batch_size: 16}
schedule: {final: {choice: [0.1]}}
arms:
  none: {optimizer: {lr: 1e-4}}
  tabular:
    teachers: {findings: {kind: tabular}}
    objectives:
      one_of:
        soft: {logits: {weight: {log_uniform: [0.05, 20]}, params: {temperature: "${optimizer.lr}"}}}
        deep: {features: {maybe: {params: {layer: {int: [1, 3]}, distance: {choice: [cosine, mse]}}}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    return path


def lines(file: Path, *overrides: str) -> list[str]:
    """The tree, line by line, less what draws it."""
    space, mistakes = load_space(str(file), overrides)
    assert space is not None and not mistakes
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(tree(space))
    return [line.lstrip("│├└─ \xa0") for line in console.export_text().splitlines()]


def below(told: list[str], title: str) -> list[str]:
    """What follows the free dimensions' title in the part that a line begins with `title`."""
    part = told[next(index for index, line in enumerate(told) if line.startswith(title)) :]
    start = next(index for index, line in enumerate(part) if index and line.startswith("free dimensions"))
    rest = part[start:]
    end = next((index for index, line in enumerate(rest) if line.startswith("arms.")), len(rest))
    return rest[:end]


def test_a_reference_is_the_same_as_its_leaf_and_no_dimension(file: Path) -> None:
    told = lines(file)
    assert "weight_decay  same as optimizer.lr" in told
    assert "temperature  same as optimizer.lr" in told
    assert "lr  log_uniform 1e-05 to 0.001" in told and "batch_size=16" in told
    assert not any("weight_decay" in line or "temperature" in line for line in below(told, "arms.tabular"))


def test_each_branch_has_its_free_dimensions_by_name(file: Path) -> None:
    told = lines(file)
    assert "arms.tabular  free dimensions: soft 2, deep/absent 1, deep/present 3" in told
    assert below(told, "arms.tabular") == [
        "free dimensions",
        "every branch: optimizer.lr",
        "objectives=soft: objectives.soft.logits.weight",
        "objectives=deep, objectives.deep.features=absent: no others",
        "objectives=deep, objectives.deep.features=present: "
        "objectives.deep.features.params.layer, objectives.deep.features.params.distance",
    ]


def test_an_arm_of_one_branch_lists_what_varies_or_none(file: Path) -> None:
    # lr is fixed there, the choice holds a single value, and what follows lr is as fixed as lr.
    told = lines(file)
    assert "arms.none  free dimensions: 0" in told and below(told, "arms.none") == ["free dimensions", "none"]
    told = lines(file, "arms.none.optimizer.clip_norm={uniform: [0, 1]}", "schedule.final={choice: [0, 0.1]}")
    assert "arms.none  free dimensions: 2" in told
    assert below(told, "arms.none") == ["free dimensions", "optimizer.clip_norm, schedule.final"]


def test_of_many_branches_a_cover_is_listed(file: Path) -> None:
    halves = [f"optimizer.{key}={{maybe: {{choice: [0, 0.1]}}}}" for key in ("clip_norm", "label_smoothing")]
    told = lines(file, *halves)  # 2 x 2 x 3 branches: still all of them
    assert len(below(told, "arms.tabular")) == 1 + 1 + 12
    told = lines(file, *halves, "schedule.warmup={maybe: 0.2}")
    assert "arms.tabular  24 branches" in told
    title, every, *branches = below(told, "arms.tabular")
    assert title == "free dimensions  (a selection of the 24 branches that has each label at least once)"
    assert every == "every branch: optimizer.lr"
    assert len(branches) == 3
    for label in ("objectives=soft", "features=absent", "features=present", "clip_norm=absent", "warmup=present"):
        assert any(label in branch for branch in branches), label


def test_brackets_are_text_not_markup(file: Path) -> None:
    told = lines(file, "student.model={choice: ['[bold]', b]}")
    assert "model  choice [bold] | b" in told
