"""Numbers of the logit family, worked by hand."""

import math
from dataclasses import replace

import pytest
import torch

from mmpkd.types import Task, TeacherOutput, lay_out
from tests.mmpkd.objective_fixtures import build, outputs


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_logits_is_zero_where_student_equals_teacher(temperature: float) -> None:
    student, _, batch = outputs()
    term = build("logits", {"temperature": temperature})(student, TeacherOutput(student.logits_BK), batch)
    assert term.item() == pytest.approx(0, abs=1e-6)


def one_sample(student: list[float], teacher: list[float], task: Task, temperature: float) -> float:
    output, _, batch = outputs()
    output = replace(output, logits_BK=torch.tensor([student]))
    term = build("logits", {"temperature": temperature}, (task,))(output, TeacherOutput(torch.tensor([teacher])), batch)
    return float(term.item())


def test_softmax_form_by_hand() -> None:
    """Teacher (2/3, 1/3) at T=1 from logits (ln 2, 0); student uniform: KL = 2/3 ln(4/3) + 1/3 ln(2/3)."""
    (task,) = lay_out([("two", "multiclass", ["a", "b"])])
    by_hand = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert one_sample([0.0, 0.0], [math.log(2), 0.0], task, 1.0) == pytest.approx(by_hand, rel=1e-5)
    # At T=2 the logits (2 ln 2, 0) soften to the same distribution, and the term carries T^2 = 4.
    assert one_sample([0.0, 0.0], [2 * math.log(2), 0.0], task, 2.0) == pytest.approx(4 * by_hand, rel=1e-5)


def test_bernoulli_form_by_hand() -> None:
    """Teacher 3/4 from logit ln 3, student 1/2: KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    (task,) = lay_out([("ill", "binary", ["no", "yes"])])
    by_hand = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert one_sample([0.0], [math.log(3)], task, 1.0) == pytest.approx(by_hand, rel=1e-5)


def test_large_temperature_tends_to_logit_regression() -> None:
    """T^2 KL of Bernoullis tends to (s - t)^2 / 8, so the scale stays bounded (methods.md C1)."""
    (task,) = lay_out([("ill", "binary", ["no", "yes"])])
    assert one_sample([1.0], [3.0], task, 30.0) == pytest.approx((1.0 - 3.0) ** 2 / 8, rel=1e-2)
