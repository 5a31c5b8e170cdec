"""RKD by hand, against torchdistill, and where samples coincide."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmpkd.objectives import OBJECTIVES
from mmpkd.objectives.relational import RelationalParams
from mmpkd.types import Mistake, TeacherOutput
from tests.mmpkd.objective_inputs import TASKS, batch, draw, objective, student

TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # sides 3, 4, 5
EQUILATERAL = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])


def relational(student_BD: Tensor, teacher_BD: Tensor, **params: float) -> Tensor:
    term: Tensor = objective("relational", **params)(student(student_BD), TeacherOutput(None, teacher_BD), batch())
    return term


def test_by_hand() -> None:
    """Distances over their mean: teacher 3/4, 4/4, 5/4, student 1, 1, 1. Huber: (1/32 + 0 + 1/32) / 3 = 1/48.
    Cosines at the corners: teacher 0, 3/5, 4/5, student 1/2. Huber: (1/8 + 1/200 + 9/200) / 3 = 7/120."""
    assert relational(EQUILATERAL, TRIANGLE, distance=1, angle=0).item() == pytest.approx(1 / 48, rel=1e-5)
    assert relational(EQUILATERAL, TRIANGLE, distance=0, angle=1).item() == pytest.approx(7 / 120, rel=1e-5)
    assert relational(EQUILATERAL, TRIANGLE).item() == pytest.approx(1 / 48 + 2 * 7 / 120, rel=1e-5)


def test_beyond_delta_a_difference_counts_linearly() -> None:
    """Distances AB, AC, BC over their mean: teacher 0, 60, 60 over 40, student 9, 1, 8 over 6. Differences 3/2 and
    4/3 count less 1/2; 1/6 counts half its square."""
    teacher_BD = torch.tensor([[0.0, 0.0], [0.0, 0.0], [60.0, 0.0]])
    student_BD = torch.tensor([[0.0, 0.0], [9.0, 0.0], [1.0, 0.0]])
    by_hand = (1 + 5 / 6 + 1 / 72) / 3
    assert relational(student_BD, teacher_BD, distance=1, angle=0).item() == pytest.approx(by_hand, rel=1e-5)


def test_a_rotated_scaled_and_shifted_copy_gives_zero() -> None:
    """Relations do not depend on axes or units, and the widths of both sides may differ."""
    teacher_BD = draw(6, 3)
    turn, _ = torch.linalg.qr(draw(5, 3, seed=1))
    assert relational(7 * teacher_BD @ turn.T + 2, teacher_BD).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("known", [0, 1, 2])
def test_fewer_than_three_rows_have_no_relations(known: int) -> None:
    teacher_BD = draw(4, 2)
    teacher_BD[known:] = math.nan
    student_BD = draw(4, 2, seed=1).requires_grad_()
    term = relational(student_BD, teacher_BD)
    term.backward()
    assert term.item() == 0
    assert student_BD.grad is not None and not student_BD.grad.any()


def test_coinciding_samples_have_a_distance_but_no_angle() -> None:
    """Teacher A, A, B: the corner at B is 0 degrees, the corners at A have none. The student's cosine at B is 4/5, so
    Huber of 1 - 4/5 is 1/50, and the mean runs over that corner alone."""
    teacher_BD = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert relational(TRIANGLE, teacher_BD, distance=0, angle=1).item() == pytest.approx(1 / 50, rel=1e-5)


def test_a_collapsed_student_gets_a_finite_gradient() -> None:
    """Normalising a difference of 0 would divide its gradient by the smallest positive number."""
    student_BD = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0 + 1e-8], [5.0, 5.0]]).requires_grad_()
    relational(student_BD, draw(4, 2)).backward()
    assert student_BD.grad is not None and student_BD.grad.abs().max() < 1e3
    student_BD = torch.ones(4, 2).requires_grad_()
    relational(student_BD, draw(4, 2)).backward()
    assert student_BD.grad is not None and not student_BD.grad.any()


def test_autocast_does_not_reach_the_products() -> None:
    student_BD, teacher_BD = draw(8, 5), draw(8, 5, seed=1)
    expected = relational(student_BD, teacher_BD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relational(student_BD, teacher_BD) == expected


def test_two_weights_of_zero_are_refused() -> None:
    (mistake,) = OBJECTIVES["relational"].check(RelationalParams(distance=0, angle=0), TASKS)
    assert mistake == Mistake("params.angle", "distance and angle are both 0, so the term is 0; raise one of them")
    assert OBJECTIVES["relational"].check(RelationalParams(distance=0), TASKS) == []


def test_agrees_with_torchdistill() -> None:
    """torchdistill, after the authors' code, divides by B^2 and B^3, repeated samples included."""
    from torchdistill.losses import mid_level

    student_BD, teacher_BD, size = draw(9, 4), draw(9, 7, seed=1), 9
    outputs = {"s": {"output": student_BD}}, {"t": {"output": teacher_BD}}
    for distance, angle in ((25.0, 0.0), (0.0, 50.0)):
        theirs = mid_level.RKDLoss("s", "t", distance, angle, "mean")(*outputs)
        distinct = (size - 1) / size if distance else (size - 1) * (size - 2) / size**2
        ours = relational(student_BD, teacher_BD, distance=distance, angle=angle)
        torch.testing.assert_close(ours * distinct, theirs, rtol=1e-4, atol=1e-6)
