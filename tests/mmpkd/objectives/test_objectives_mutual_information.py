"""The Jensen-Shannon estimate by hand, and where the true divergence is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn.functional import binary_cross_entropy_with_logits

from mmpkd.types import TeacherOutput
from tests.mmpkd.objective_inputs import batch, draw, objective, set_identity, student


def test_by_hand() -> None:
    """A critic of one unit that adds: T = s + t. With s = 0, ln 3 and t = ln 2, 0 the true pairs score ln 2 and ln 3:
    ln(1 + 1/2) and ln(1 + 1/3), mean ln(2) / 2. The mixed score 0 and ln 6: ln 2 and ln 7, mean ln(14) / 2."""
    term = objective("mutual_information", 1, 1, width=1)
    for layer in (term.student_half, term.teacher_half, term.score):
        set_identity(layer)
    given = student(torch.tensor([[0.0], [math.log(3)]]))
    teacher = TeacherOutput(None, torch.tensor([[math.log(2)], [0.0]]))
    assert term(given, teacher, batch([0, 1])).item() == pytest.approx(math.log(28) / 2, rel=1e-5)


def test_an_uninformative_critic_gives_two_ln_two() -> None:
    term = objective("mutual_information", 3, 4)
    with torch.no_grad():
        term.score.weight.zero_()
        term.score.bias.zero_()
    value = term(student(draw(5, 3)), TeacherOutput(None, draw(5, 4)), batch(list(range(5))))
    assert value.item() == pytest.approx(2 * math.log(2))


def test_the_best_critic_reaches_the_divergence() -> None:
    """16 patients, half with s = t = +1, half with s = t = -1. True pairs always agree, mixed pairs in 112 cases of
    240; a critic can tell no more than that. scipy has the square root of the divergence."""
    sign_BD = torch.tensor([1.0, -1.0]).repeat(8)[:, None]
    term = objective("mutual_information", 1, 1, width=16)
    given = student(sign_BD), TeacherOutput(None, sign_BD), batch(list(range(16)))
    optimizer = torch.optim.Adam(term.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        term(*given).backward()
        optimizer.step()
    least = 2 * math.log(2) - 2 * jensenshannon([1, 0], [112 / 240, 128 / 240]) ** 2
    assert least - 1e-5 < term(*given).item() < least + 0.02


def test_images_of_one_patient_are_neither_true_nor_mixed_pairs() -> None:
    """Two of three images share a patient, so four mixed pairs are left. The critic gives the scores."""
    term = objective("mutual_information", 3, 4)
    student_BD, teacher_BD = draw(3, 3), draw(3, 4, seed=1)
    score_BB = term.score(
        torch.relu(torch.stack([term.student_half(s) + term.teacher_half(teacher_BD) for s in student_BD]))
    )[:, :, 0].detach()
    mixed = torch.stack([score_BB[0, 2], score_BB[1, 2], score_BB[2, 0], score_BB[2, 1]])
    true_loss = binary_cross_entropy_with_logits(score_BB.diagonal(), torch.ones(3))
    mixed_loss = binary_cross_entropy_with_logits(mixed, torch.zeros(4))
    value = term(student(student_BD), TeacherOutput(None, teacher_BD), batch([4, 4, 5]))
    torch.testing.assert_close(value, true_loss + mixed_loss)


@pytest.mark.parametrize("patients", [[3, 3, 3], [0, 1, 1]])
def test_without_a_mixed_pair_there_is_nothing_to_learn(patients: list[int]) -> None:
    """One patient, or two of whom one has no embedding. With true pairs alone, the critic would learn a constant."""
    teacher_BD = draw(3, 4)
    if patients[0] != patients[1]:
        teacher_BD[0] = math.nan
    student_BD = draw(3, 3).requires_grad_()
    term = objective("mutual_information", 3, 4)
    value = term(student(student_BD), TeacherOutput(None, teacher_BD), batch(patients))
    value.backward()
    assert value.item() == 0
    for tensor in (student_BD, *term.parameters()):
        assert tensor.grad is not None and not tensor.grad.any()
