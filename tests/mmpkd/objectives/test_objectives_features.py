"""Numbers of the feature family, worked by hand."""

import math
from dataclasses import replace

import pytest
import torch

from mmpkd.config import validate
from mmpkd.objectives import OBJECTIVES
from mmpkd.types import Needs, TeacherOutput
from tests.mmpkd.objective_fixtures import MIXED, build, outputs
from tests.mmpkd.objective_inputs import batch, objective, set_identity, student


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


def test_a_hidden_layer_takes_the_embeddings_place() -> None:
    """Projection (1, 0); layer 2 of the teacher stands at 60 degrees, so 1 - 1/2; the embedding, at 0, is not read."""
    term = objective("features", layer=1, teacher_layer=2)
    set_identity(term.projection)
    layers = {0: torch.tensor([[-1.0, 0.0]]), 2: torch.tensor([[0.5, math.sqrt(3) / 2]])}
    teacher = TeacherOutput(embedding_BD=torch.tensor([[1.0, 0.0]]), hidden_BD=layers)
    tokens = student(hidden={1: torch.tensor([[[1.0, 0.0], [9.0, 9.0]]])})
    assert term(tokens, teacher, batch()).item() == pytest.approx(0.5)


def test_needs_are_known_at_planning() -> None:
    assert objective("features", layer=1).needs == Needs(frozenset({1}), frozenset({"embedding"}))
    hidden = Needs(frozenset({1}), frozenset({"hidden"}), teacher_layers=frozenset({2}))
    assert objective("features", layer=1, teacher_layer=2).needs == hidden


def test_samples_without_the_hidden_layer_are_left_out() -> None:
    """The first sample is at 90 degrees (distance 1), the second is silent."""
    term = objective("features", layer=0, teacher_layer=0)
    set_identity(term.projection)
    tokens = student(hidden={0: torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])})
    teacher = TeacherOutput(hidden_BD={0: torch.tensor([[0.0, 1.0], [math.nan, 1.0]])})
    assert term(tokens, teacher, batch()).item() == pytest.approx(1.0)
