"""Numbers of the logit family, worked by hand and by others' code."""

import math
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor

from mmpkd.config import validate
from mmpkd.objectives import OBJECTIVES
from mmpkd.types import Task, TeacherOutput, lay_out
from tests.mmpkd.objective_fixtures import MIXED, SOFTMAX, build, outputs

(BINARY,) = lay_out([("ill", "binary", ["no", "yes"])])
(TWO,) = lay_out([("two", "multiclass", ["a", "b"])])
(THREE,) = lay_out([("three", "multiclass", ["a", "b", "c"])])
(SIGNS,) = lay_out([("signs", "multilabel", ["x", "y"])])
Params = dict[str, object]


def term(
    kind: str, params: Params, task: Task, student_BK: Tensor, teacher_BK: Tensor, target_B: Tensor | None = None
) -> Tensor:
    """The objective on these logits alone; without a target no label is known."""
    output, _, batch = outputs((task,), size=len(student_BK))
    batch = replace(batch, known_BK=torch.full_like(batch.known_BK, target_B is not None))
    if target_B is not None:
        batch = replace(batch, target_BK=torch.eye(task.num_logits)[target_B])
    objective = build(kind, params, (task,))
    value = objective(replace(output, logits_BK=student_BK), TeacherOutput(teacher_BK), batch)
    assert isinstance(value, Tensor)
    return value


def drawn(size: int, num_logits: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and class targets."""
    g = torch.Generator().manual_seed(seed)
    student_BK = (2 * torch.randn(size, num_logits, generator=g)).requires_grad_()
    return student_BK, 2 * torch.randn(size, num_logits, generator=g), torch.randint(num_logits, (size,), generator=g)


@pytest.mark.parametrize(
    ("kind", "params", "tasks"),
    [
        *[("logits", {"temperature": temperature}, MIXED) for temperature in (0.5, 1.0, 7.0)],
        ("logits", {"standardize": True}, SOFTMAX),
        ("dkd", {}, SOFTMAX),
        ("dist", {}, SOFTMAX),
        ("dist", {}, MIXED),
    ],
)
@pytest.mark.parametrize("scale", [1, 30])  # 30: a teacher that is sure of itself
def test_zero_where_student_equals_teacher(kind: str, params: Params, tasks: tuple[Task, ...], scale: int) -> None:
    student, _, batch = outputs(tasks)
    logits_BK = (scale * student.logits_BK).requires_grad_()
    value = build(kind, params, tasks)(replace(student, logits_BK=logits_BK), TeacherOutput(logits_BK.detach()), batch)
    value.backward()
    assert value.item() == pytest.approx(0, abs=2e-5) and logits_BK.grad is not None
    assert logits_BK.grad.abs().max() < 1e-3


def one_sample(student: list[float], teacher: list[float], task: Task, temperature: float) -> float:
    params: Params = {"temperature": temperature}
    return term("logits", params, task, torch.tensor([student]), torch.tensor([teacher])).item()


def test_softmax_form_by_hand() -> None:
    """Teacher (2/3, 1/3) at T=1 from logits (ln 2, 0); student uniform: KL = 2/3 ln(4/3) + 1/3 ln(2/3)."""
    by_hand = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert one_sample([0.0, 0.0], [math.log(2), 0.0], TWO, 1.0) == pytest.approx(by_hand, rel=1e-5)
    # At T=2 the logits (2 ln 2, 0) soften to the same distribution, and the term carries T^2 = 4.
    assert one_sample([0.0, 0.0], [2 * math.log(2), 0.0], TWO, 2.0) == pytest.approx(4 * by_hand, rel=1e-5)


def test_bernoulli_form_by_hand() -> None:
    """Teacher 3/4 from logit ln 3, student 1/2: KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    by_hand = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert one_sample([0.0], [math.log(3)], BINARY, 1.0) == pytest.approx(by_hand, rel=1e-5)


def test_large_temperature_tends_to_logit_regression() -> None:
    """T^2 KL of Bernoullis tends to (s - t)^2 / 8, so the scale stays bounded (methods.md C1)."""
    assert one_sample([1.0], [3.0], BINARY, 30.0) == pytest.approx((1.0 - 3.0) ** 2 / 8, rel=1e-2)


def test_standardised_by_hand() -> None:
    """(0, 1, 2) and (4, 2, 0) have z-scores (-1, 0, 1) and (1, 0, -1), whose powers of two, at T = 1 / ln 2, are
    1 : 2 : 4 and 4 : 2 : 1. KL = 1/7 ln(1/4) + 4/7 ln 4 = 6/7 ln 2, and T^2 = 1 / ln^2 2.
    """
    params: Params = {"standardize": True, "temperature": 1 / math.log(2)}
    value = term("logits", params, THREE, torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([[0.0, 1.0, 2.0]]))
    assert value.item() == pytest.approx(6 / 7 / math.log(2), rel=1e-5)


def test_standardised_does_not_see_scale_and_shift() -> None:
    student_BK, teacher_BK, _ = drawn(8, 3)
    params: Params = {"standardize": True}
    moved = term("logits", params, THREE, 5 * student_BK - 3, teacher_BK / 2 + 1)
    torch.testing.assert_close(moved, term("logits", params, THREE, student_BK, teacher_BK), rtol=1e-4, atol=1e-5)


def test_standardised_student_without_an_opinion_has_a_gradient() -> None:
    """A head that starts at zero gives every class the same logit: its standard deviation is 0."""
    student_BK = torch.zeros(2, 3, requires_grad=True)
    term("logits", {"standardize": True}, THREE, student_BK, drawn(2, 3)[1]).backward()
    assert student_BK.grad is not None and student_BK.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dkd_by_hand(temperature: float) -> None:
    """Of the right class teacher 1/2, student 1/5: TCKD = 1/2 ln(5/2) + 1/2 ln(5/8) = ln(5/4). Of the others teacher
    (1/2, 1/2), student (3/4, 1/4): NCKD = 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3). T softens T-fold logits to these.
    """
    student_BK = temperature * torch.tensor([[0.0, math.log(3), 0.0]])
    teacher_BK = temperature * torch.tensor([[math.log(2), 0.0, 0.0]])
    params: Params = {"alpha": 2, "beta": 3, "temperature": temperature}
    by_hand = temperature**2 * (2 * math.log(5 / 4) + 3 / 2 * math.log(4 / 3))
    value = term("dkd", params, THREE, student_BK, teacher_BK, torch.tensor([0]))
    assert value.item() == pytest.approx(by_hand, rel=1e-5)


def test_dkd_by_scipy() -> None:
    """The two divergences from probabilities in double precision, as the paper defines them."""
    student_BK, teacher_BK, target_B = drawn(32, 5)
    task = lay_out([("five", "multiclass", "abcde")])[0]
    q, p = (np.exp(x.detach().double().numpy() / 3) for x in (student_BK, teacher_BK))
    q, p = q / q.sum(1, keepdims=True), p / p.sum(1, keepdims=True)
    tckd, nckd = [], []
    for q_C, p_C, target in zip(q, p, target_B.tolist(), strict=True):
        tckd.append(rel_entr(p_C[target], q_C[target]) + rel_entr(1 - p_C[target], 1 - q_C[target]))
        q_others, p_others = np.delete(q_C, target), np.delete(p_C, target)
        nckd.append(rel_entr(p_others / p_others.sum(), q_others / q_others.sum()).sum())
    for alpha, beta in ((1, 0), (0, 1), (0.5, 8)):
        params: Params = {"alpha": alpha, "beta": beta, "temperature": 3}
        value = term("dkd", params, task, student_BK, teacher_BK, target_B).item()
        assert value == pytest.approx(9 * (alpha * np.mean(tckd) + beta * np.mean(nckd)), rel=1e-4)


def test_dkd_leaves_out_samples_of_unknown_label_task_by_task() -> None:
    student, teacher, batch = outputs(SOFTMAX)
    known_BK = batch.known_BK.clone()
    known_BK[:12, SOFTMAX[0].columns] = False
    known_BK[:, SOFTMAX[1].columns] = False
    known_BK[:4, SOFTMAX[1].columns] = True
    value = build("dkd", {}, SOFTMAX)(student, teacher, replace(batch, known_BK=known_BK))
    assert teacher.logits_BK is not None
    alone = []
    for task, rows in zip(SOFTMAX, (slice(12, 16), slice(0, 4)), strict=True):
        student_BK, teacher_BK, target_BK = (
            x[rows, task.columns] for x in (student.logits_BK, teacher.logits_BK, batch.target_BK)
        )
        (first,) = lay_out([(task.name, task.kind, task.labels)])
        alone.append(term("dkd", {}, first, student_BK, teacher_BK, target_BK.argmax(dim=1)))
    torch.testing.assert_close(value, (alone[0] + alone[1]) / 2)


def test_dkd_of_a_student_that_is_surely_wrong_is_finite() -> None:
    """log(1 - p) from probabilities would be minus infinity."""
    student_BK = torch.tensor([[90.0, 0.0, -90.0], [90.0, 0.0, -90.0]], requires_grad=True)
    value = term("dkd", {"temperature": 1}, THREE, student_BK, -student_BK.detach(), torch.tensor([2, 0]))
    value.backward()
    assert value.isfinite() and student_BK.grad is not None and student_BK.grad.isfinite().all()


def test_dist_over_classes_by_hand() -> None:
    """Probabilities (3, 2, 1) / 6 and (2, 3, 1) / 6 about their mean: (1, 0, -1) and (0, 1, -1), Pearson 1/2."""
    logits = torch.tensor([[3.0, 2.0, 1.0], [2.0, 3.0, 1.0]]).log()
    assert term("dist", {"beta": 3, "gamma": 0}, THREE, logits[:1], logits[1:]).item() == pytest.approx(1.5, rel=1e-5)
    # One sample is too few for gamma's term, whose weight therefore changes nothing.
    assert term("dist", {"beta": 3}, THREE, logits[:1], logits[1:]).item() == pytest.approx(1.5, rel=1e-5)


@pytest.mark.parametrize(("size", "by_hand"), [(8, 1.0), (7, 0.0)])
def test_dist_over_the_batch_by_hand(size: int, by_hand: float) -> None:
    """Logits of +1 and -1, four each, agree in six of eight: Pearson (6 - 2) / 8, gamma 2. Seven are too few."""
    student_BK = torch.tensor([[1.0, 1, 1, 1, -1, -1, -1, -1]]).T[:size]
    teacher_BK = torch.tensor([[1.0, 1, 1, -1, 1, -1, -1, -1]]).T[:size]
    assert term("dist", {"gamma": 2}, BINARY, student_BK, teacher_BK).item() == pytest.approx(by_hand, rel=1e-5)


def test_dist_of_two_classes_is_over_the_batch_alone() -> None:
    """Over two classes the correlation is a sign, and beta would only add a step without a gradient."""
    student_BK, teacher_BK, _ = drawn(16, 2)
    assert term("dist", {"beta": 5}, TWO, student_BK, teacher_BK) == term(
        "dist", {"beta": 0}, TWO, student_BK, teacher_BK
    )


def test_dist_sees_an_improbable_class() -> None:
    """Of probability about 1e-11, yet its correlation is that of any class: 1 with itself, -1 with its mirror."""
    common_BK = torch.zeros(8, 2)
    rare_B1 = torch.linspace(-26, -25, 8)[:, None]
    one, mirrored = (torch.cat([common_BK, rare_BC], dim=1) for rare_BC in (rare_B1, rare_B1.flip(0)))
    assert term("dist", {"beta": 0}, THREE, one, one).item() == pytest.approx(0, abs=1e-5)
    assert term("dist", {"beta": 0}, THREE, one, mirrored).item() > 1.9


@pytest.mark.parametrize("constant", ["student", "teacher"])
def test_dist_leaves_out_a_label_that_does_not_vary(constant: str) -> None:
    """0.1 is no binary fraction: the mean of thirteen of them differs from it by rounding."""
    student_BK, teacher_BK, _ = drawn(13, 2)
    one = term("dist", {}, BINARY, student_BK[:, :1], teacher_BK[:, :1])
    flat_BK = torch.where(torch.tensor([False, True]), 0.1, student_BK if constant == "student" else teacher_BK)
    both = (flat_BK, teacher_BK) if constant == "student" else (student_BK, flat_BK)
    torch.testing.assert_close(term("dist", {}, SIGNS, *both), one)


@pytest.mark.parametrize(("kind", "params"), [("dkd", {}), ("logits", {"standardize": True}), ("dist", {"gamma": 0})])
def test_every_unfit_task_is_refused_by_name(kind: str, params: Params) -> None:
    """By hand: all but the stage with its three classes."""
    tasks = lay_out([(task.name, task.kind, task.labels) for task in (*MIXED, TWO)])
    (mistake,) = OBJECTIVES[kind].check(validate(OBJECTIVES[kind].Params, params), tasks)
    assert mistake.problem.count("ill (binary of 2), signs (multilabel of 3), two (multiclass of 2)") == 1
    assert "stage" not in mistake.problem


@pytest.fixture(scope="module")
def others() -> ModuleType:
    """An independent library of these terms; DKD it has not."""
    from torchdistill.losses import mid_level as module

    assert isinstance(module, ModuleType)
    return module


def by_others(loss: torch.nn.Module, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    value = loss({".": {"output": student_BK}}, {".": {"output": teacher_BK}})
    assert isinstance(value, Tensor)
    return value


PLACES = (".", "output", ".", "output")  # of the logits in what by_others gives


def same(own: Tensor, theirs: Tensor, student_BK: Tensor) -> None:
    """Value and gradient agree."""
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-6)
    gradients = (torch.autograd.grad(value, student_BK)[0] for value in (own, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("standardize", "loss"), [(False, "KDLoss"), (True, "LogitStdKDLoss")])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_agrees_with_torchdistill(others: ModuleType, standardize: bool, loss: str, temperature: float) -> None:
    """Theirs leaves out T^2 where it has no hard labels."""
    student_BK, teacher_BK, _ = drawn(16, 3)
    own = term("logits", {"temperature": temperature, "standardize": standardize}, THREE, student_BK, teacher_BK)
    theirs = by_others(getattr(others, loss)(*PLACES, temperature=temperature, alpha=0), student_BK, teacher_BK)
    same(own, temperature**2 * theirs, student_BK)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_agrees_with_torchdistills_kd(others: ModuleType, temperature: float) -> None:
    """KD = TCKD + (1 - p_y) NCKD (the paper's equation 6), sample by sample with p_y of the teacher."""
    student_BK, teacher_BK, target_B = drawn(16, 3)
    theirs = others.KDLoss(*PLACES, temperature=temperature, alpha=0)
    for index, target in enumerate(target_B.tolist()):
        student_1K, teacher_1K = student_BK[index : index + 1], teacher_BK[index : index + 1]
        rest = 1 - (teacher_1K / temperature).softmax(dim=1)[0, target].item()
        params: Params = {"alpha": 1, "beta": rest, "temperature": temperature}
        own = term("dkd", params, THREE, student_1K, teacher_1K, target_B[index : index + 1])
        same(own, temperature**2 * by_others(theirs, student_1K, teacher_1K), student_BK)


def test_dist_agrees_with_torchdistill(others: ModuleType) -> None:
    student_BK, teacher_BK, _ = drawn(16, 3)
    own = term("dist", {"beta": 0.7, "gamma": 1.9}, THREE, student_BK, teacher_BK)
    same(own, by_others(others.DISTLoss(*PLACES, beta=0.7, gamma=1.9), student_BK, teacher_BK), student_BK)
