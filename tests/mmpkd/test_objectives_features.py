"""Numbers of the feature family, worked by hand."""

import math
from dataclasses import replace

import pytest
import torch

from mmpkd.config import validate
from mmpkd.objectives import OBJECTIVES
from mmpkd.types import TeacherOutput
from tests.mmpkd.objective_fixtures import MIXED, build, outputs


def test_features_is_zero_where_the_projection_equals_the_embedding() -> None:
    cases: list[dict[str, object]] = [{"layer": 1}, {"layer": 1, "distance": "mse"}]
    for params in cases:
        student, _, batch = outputs()
        objective = build("features", params)
        target = objective.projection(student.hidden_BND[1][:, 0])  # type: ignore[operator]
        assert objective(student, TeacherOutput(None, target.detach()), batch).item() == pytest.approx(0, abs=1e-6)


def test_cosine_by_hand() -> None:
    """Projection (1, 0) against an embedding at 60 degrees: 1 - 1/2."""
    params = validate(OBJECTIVES["features"].Params, {"layer": 0})
    objective = OBJECTIVES["features"](params, MIXED, 2, 2)
    with torch.no_grad():
        objective.projection.weight.copy_(torch.eye(2))  # type: ignore[union-attr, operator]
        objective.projection.bias.zero_()  # type: ignore[union-attr, operator]
    student, _, batch = outputs()
    student = replace(student, hidden_BND={0: torch.tensor([[[1.0, 0.0]]])})
    embedding = torch.tensor([[0.5, math.sqrt(3) / 2]])
    assert objective(student, TeacherOutput(None, embedding), batch).item() == pytest.approx(0.5, rel=1e-5)
