"""Teachers that are fitted before the trials of a sweep: which these are, and that all are tried."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sweep.cluster import Reservation
from sweep.plan.plan import Plan, plan
from sweep.space.space import load_space
from sweep.teachers import fit_teachers_first, fixed_teachers
from sweep.types import Places
from tests.sweep.fake import fit_in_a_file

SPACE = """
cohort: {reader: synthetic}
student: {model: vit_tiny_patch16_224, patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}
optimizer: {lr: {log_uniform: [1e-4, 1e-1]}}
epochs: 2
arms:
  none: {}
  fixed:
    teachers: {findings: {kind: tabular}}
    objectives: {one_of: {soft: {logits: {weight: {log_uniform: [0.1, 10]}}}, near: {features: {params: {layer: 1}}}}}
  sampled:
    teachers: {findings: {kind: tabular, params: {seed: {int: [0, 3]}}}}
    objectives: {logits: {}}
  both:
    teachers: {all: {kind: ensemble, params: {members: {a: {kind: tabular}, b: {kind: tabular, params: {seed: 5}}}}}}
    objectives: {logits: {}}
search: {maximize: [val/auroc], trials: 8, early_stopping: false}
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    space, mistakes = load_space(str(path), [])
    assert space is not None and not mistakes
    made = plan(space)
    assert not made.mistakes
    return made


def test_teachers_without_sampled_values_are_fixed(planned: Plan) -> None:
    """A member with the same parameters as another teacher is the same fit, and members come before their ensemble."""
    teachers = fixed_teachers(planned)
    assert list(teachers) == ["fixed/findings", "both/all/b", "both/all"]
    assert [teacher.kind for teacher in teachers.values()] == ["tabular", "tabular", "ensemble"]


@pytest.mark.usefixtures("ray_session")
def test_every_fixed_teacher_is_fitted_once_and_a_failure_is_left_to_the_trials(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # as in a cluster
    console = Console(file=io.StringIO(), width=120)
    places = Places(folder=str(tmp_path), cache="", store="", scratch=None)
    fit_teachers_first(planned, places, Reservation(1, 0), console, fit_in_a_file)
    names = (tmp_path / "fits.txt").read_text().split()
    assert sorted(names) == ["both/all", "both/all/b", "fixed/findings"]
    assert names[-1] == "both/all", "an ensemble needs the outputs of its members"
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Fitting teachers: 0 of 3" in text and "Fitting teachers: 2 of 3" in text
    assert "1 of 3 teachers could not be fitted" in text
