"""Symmetric InfoNCE by hand and against pytorch-metric-learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmpkd.types import TeacherOutput
from tests.mmpkd.objective_inputs import batch, draw, objective, set_identity, student


def contrastive(student_BD: Tensor, teacher_BD: Tensor, patients: list[int], temperature: float = 1.0) -> Tensor:
    """With projections that pass both vectors through."""
    term = objective("contrastive", len(student_BD.T), len(teacher_BD.T), width=3, temperature=temperature)
    set_identity(term.student_projection)
    set_identity(term.teacher_projection)
    value: Tensor = term(student(student_BD), TeacherOutput(None, teacher_BD), batch(patients))
    return value


def test_by_hand() -> None:
    """Three orthogonal partners at temperature 1/2: own score 2, others 0, so ln(1 + 2 e^-2) on both sides; length
    does not count. At temperature 1: ln(1 + 2 / e)."""
    eye = torch.eye(3)
    assert contrastive(5 * eye, eye, [0, 1, 2], 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-5)
    assert contrastive(eye, eye, [0, 1, 2]).item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-5)


def test_the_two_sides_count_alike() -> None:
    """Images x, x; embeddings x, y. The images see scores (1, 0) each: ln(1 + e^-1) and ln(1 + e). The embeddings
    see (1, 1) and (0, 0): ln 2 each."""
    images, embeddings = torch.eye(3)[[0, 0]], torch.eye(3)[:2]
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.e) + 2 * math.log(2)) / 4
    assert contrastive(images, embeddings, [0, 1]).item() == pytest.approx(by_hand, rel=1e-5)


def test_images_of_the_same_patient_are_not_negatives() -> None:
    """The first two images share a patient: each has one negative, the third has two."""
    by_hand = (2 * math.log(1 + 1 / math.e) + math.log(1 + 2 / math.e)) / 3
    assert contrastive(torch.eye(3), torch.eye(3), [7, 7, 8]).item() == pytest.approx(by_hand, rel=1e-5)


def test_a_batch_of_one_patient_gives_zero() -> None:
    student_BD = torch.eye(3).requires_grad_()
    term = contrastive(student_BD, torch.eye(3), [7, 7, 7])
    term.backward()
    assert term.item() == 0 and student_BD.grad is not None and not student_BD.grad.any()


def test_samples_without_an_embedding_are_not_negatives() -> None:
    teacher_BD = torch.eye(3)
    teacher_BD[2] = math.nan
    student_BD = torch.eye(3).requires_grad_()
    term = contrastive(student_BD, teacher_BD, [0, 1, 2])
    term.backward()
    assert term.item() == pytest.approx(math.log(1 + 1 / math.e), rel=1e-5)
    assert student_BD.grad is not None and student_BD.grad[:2].any() and not student_BD.grad[2].any()


def test_a_layer_is_read_in_place_of_the_embedding() -> None:
    """The CLS token of block 1 is what the embedding was above."""
    term = objective("contrastive", 3, 3, width=3, temperature=1.0, layer=1)
    set_identity(term.student_projection)
    set_identity(term.teacher_projection)
    tokens = torch.stack([torch.eye(3), torch.ones(3, 3)], dim=1)
    given = student(torch.zeros(3, 3), hidden={1: tokens})
    value = term(given, TeacherOutput(None, torch.eye(3)), batch([0, 1, 2]))
    assert value.item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-5)
    assert term.needs.student_layers == {1}


def test_autocast_does_not_reach_the_scores() -> None:
    """Small whole numbers pass the projections unrounded in bfloat16 too; their cosines would not."""
    student_BD, teacher_BD = (4 * draw(8, 3)).round() + 0.5, (4 * draw(8, 3, seed=1)).round() + 0.5
    expected = contrastive(student_BD, teacher_BD, list(range(8)), 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive(student_BD, teacher_BD, list(range(8)), 0.07) == expected


@pytest.mark.parametrize("patients", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 2]])
def test_agrees_with_pytorch_metric_learning(patients: list[int]) -> None:
    """Its NTXentLoss, told the pairs, is one direction; the other exchanges the sides."""
    from pytorch_metric_learning import losses

    student_BD, teacher_BD = draw(6, 3), draw(6, 3, seed=1)
    own = torch.arange(6)
    patient = torch.tensor(patients)
    pairs = (own, own, *torch.where(patient[:, None] != patient))
    loss = losses.NTXentLoss(temperature=0.2)
    one = loss(student_BD, indices_tuple=pairs, ref_emb=teacher_BD)
    other = loss(teacher_BD, indices_tuple=pairs, ref_emb=student_BD)
    torch.testing.assert_close(contrastive(student_BD, teacher_BD, patients, 0.2), (one + other) / 2)
