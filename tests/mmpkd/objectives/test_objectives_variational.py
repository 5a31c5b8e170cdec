"""VID by hand, against torchdistill; and its variance, which trains."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmpkd.fit import optimizer_for, parameters_of
from mmpkd.objectives.variational import FLOOR
from mmpkd.types import TeacherOutput
from tests.mmpkd.objective_inputs import batch, draw, objective, set_identity, student


def test_by_hand() -> None:
    """Embedding (3, 1) is (1, -1) after the layer norm. The mean (1, 1) misses by 0 and 2; at variance 5 that is
    (0 + 4/5)/2 over two dimensions, 1/5; and ln(5 / 1e-5) / 2 in both. At variance 1: 1 and ln(1e5) / 2."""
    term = objective("variational")
    set_identity(term.mean)
    given = student(torch.ones(1, 2)), TeacherOutput(None, torch.tensor([[3.0, 1.0]])), batch()
    assert term(*given).item() == pytest.approx(1 / 5 + math.log(5e5) / 2, rel=1e-5)
    with torch.no_grad():
        term.rho.fill_(math.log(math.e - 1) / 100)
    assert term(*given).item() == pytest.approx(1 + math.log(1e5) / 2, rel=1e-4)


def test_never_below_zero() -> None:
    """The least there can be: no error at the least variance."""
    term = objective("variational")
    set_identity(term.mean)
    with torch.no_grad():
        term.rho.fill_(-10)
    match = F.layer_norm(torch.tensor([[3.0, 1.0]]), (2,))
    assert term(student(match), TeacherOutput(None, torch.tensor([[3.0, 1.0]])), batch()).item() == 0


def test_the_variance_is_among_what_the_optimiser_trains_and_does_not_decay() -> None:
    term = objective("variational", 3, 4)
    torch.testing.assert_close(term.variance(), torch.full((4,), 5.0))
    optimizer = optimizer_for(nn.Module(), nn.ModuleDict({"vid": term}), lr=1e-3, weight_decay=0.1)
    assert any(parameter is term.rho for parameter in parameters_of(optimizer))
    (group,) = (group for group in optimizer.param_groups if any(one is term.rho for one in group["params"]))
    assert group["weight_decay"] == 0
    term(student(draw(5, 3)), TeacherOutput(None, draw(5, 4)), batch()).backward()
    assert term.rho.grad is not None and term.rho.grad.all()


def test_at_a_transformers_learning_rate_the_variance_finds_the_noise() -> None:
    """Two dimensions follow the student's vector, two are noise. After 500 steps at 3e-4 the noise has the variance
    it leaves, about 1, and what can be known has far less; the authors' own form would still stand near 5."""
    generator = torch.Generator().manual_seed(0)
    term = objective("variational", 2, 4)
    optimizer = optimizer_for(nn.Module(), nn.ModuleDict({"vid": term}), lr=3e-4, weight_decay=0.0)
    with torch.no_grad():
        term.mean.weight.copy_(torch.eye(4)[:, :2])
    for _ in range(500):
        known_BD, noise_BD = (torch.randn(32, 2, generator=generator) for _ in range(2))
        optimizer.zero_grad()
        term(student(known_BD), TeacherOutput(None, torch.cat([known_BD, noise_BD], dim=1)), batch()).backward()
        optimizer.step()
    known, noise = term.variance()[:2], term.variance()[2:]
    assert (known < 0.6).all() and ((noise > 0.7) & (noise < 1.5)).all()


def test_agrees_with_torchdistill() -> None:
    """Same mean, same variances, the normalised embedding: the authors' value, which is ours less the constant."""
    from torchdistill.losses import mid_level
    from torchdistill.models import wrapper

    regressor = wrapper.Regressor4VID(3, 3, 4, eps=1e-5, init_pred_var=5.0)
    term = objective("variational", 3, 4)
    torch.testing.assert_close(term.variance(), F.softplus(regressor.soft_plus_param.float()) + regressor.eps)
    student_BD, teacher_BD = draw(6, 3), draw(6, 4, seed=1)
    with torch.no_grad():
        term.rho.copy_(draw(4, seed=2) / 100)
        regressor.soft_plus_param.copy_(draw(4, seed=2))
        regressor.regressor = nn.Sequential(term.mean, nn.Unflatten(1, (4, 1, 1)))
    pair = {"student": {"io": "output", "path": "s"}, "teacher": {"io": "output", "path": "t"}}
    target = F.layer_norm(teacher_BD, (4,))[:, :, None, None]
    theirs = mid_level.VIDLoss({"pair": pair})({"s": {"output": regressor(student_BD)}}, {"t": {"output": target}})
    ours = term(student(student_BD), TeacherOutput(None, teacher_BD), batch())
    torch.testing.assert_close(ours + math.log(FLOOR) / 2, theirs.float(), rtol=1e-5, atol=1e-5)
