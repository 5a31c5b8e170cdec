"""Every objective meets one contract; each has a number worked by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmpkd.config import ObjectiveConfig, validate
from mmpkd.objectives import OBJECTIVES, Objective
from mmpkd.types import Batch, StudentOutput, Task, TeacherOutput, lay_out

DIM, BATCH = 6, 8
TASKS = lay_out([("stage", "multiclass", ["a", "b", "c"]), ("ill", "binary", ["no", "yes"])])
PARAMS = {
    "logits": [{"temperature": 1.0}, {"temperature": 4.0}],
    "features": [{"layer": 1}, {"layer": 0, "distance": "mse"}],
}
CASES = [(kind, params) for kind, cases in PARAMS.items() for params in cases]


def build(kind: str, params: dict[str, object], tasks: tuple[Task, ...] = TASKS) -> Objective:
    torch.manual_seed(0)
    return OBJECTIVES[kind](validate(OBJECTIVES[kind].Params, params), tasks, DIM, DIM)


def outputs(
    requires_grad: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[StudentOutput, TeacherOutput, Batch]:
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int, grad: bool = False) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype).requires_grad_(grad)

    student = StudentOutput(
        logits_BK=draw(BATCH, 4, grad=requires_grad),
        embedding_BD=draw(BATCH, DIM),
        hidden_BND={layer: draw(BATCH, 5, DIM, grad=requires_grad) for layer in (0, 1)},
        query_attention_BAN={},
        grid=(2, 2),
        num_prefix=1,
    )
    teacher = TeacherOutput(draw(BATCH, 4, grad=requires_grad), draw(BATCH, DIM, grad=requires_grad))
    target = torch.zeros(BATCH, 4)
    batch = Batch(
        tuple("abcdefgh"),
        torch.arange(BATCH),
        torch.rand(BATCH, 1, 4, 4),
        target,
        torch.ones_like(target) > 0,
        torch.arange(BATCH),
    )
    return student, teacher, batch


def reordered(
    student: StudentOutput, teacher: TeacherOutput, batch: Batch, order: Tensor
) -> tuple[StudentOutput, TeacherOutput, Batch]:
    hidden = {layer: tokens[order] for layer, tokens in student.hidden_BND.items()}
    assert teacher.logits_BK is not None and teacher.embedding_BD is not None
    return (
        replace(student, logits_BK=student.logits_BK[order], hidden_BND=hidden),
        TeacherOutput(teacher.logits_BK[order], teacher.embedding_BD[order]),
        replace(batch, target_BK=batch.target_BK[order], known_BK=batch.known_BK[order]),
    )


def test_every_objective_has_a_case_here() -> None:
    assert set(PARAMS) == set(OBJECTIVES), "give your objective its parameters in PARAMS, above"


@pytest.mark.parametrize(("kind", "params"), CASES)
class TestContract:
    def test_finite_scalar_above_zero(self, kind: str, params: dict[str, object]) -> None:
        term = build(kind, params)(*outputs())
        assert term.shape == () and term.isfinite() and term > 0

    def test_gradient_reaches_student_and_own_parameters_but_no_teacher_and_no_unnamed_layer(
        self, kind: str, params: dict[str, object]
    ) -> None:
        objective = build(kind, params)
        student, teacher, batch = outputs(requires_grad=True)
        objective(student, teacher, batch).backward()
        for field in (teacher.logits_BK, teacher.embedding_BD):
            assert field is not None and field.requires_grad and field.grad is None
        for layer, tokens in student.hidden_BND.items():
            assert (tokens.grad is not None) == (layer in objective.needs.student_layers)
        if not objective.needs.student_layers:
            assert student.logits_BK.grad is not None and student.logits_BK.grad.abs().sum() > 0
        for parameter in objective.parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0

    def test_batch_order_does_not_matter(self, kind: str, params: dict[str, object]) -> None:
        objective, given = build(kind, params), outputs()
        order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(objective(*given), objective(*reordered(*given, order)))

    def test_rows_the_teacher_is_silent_about_are_left_out(self, kind: str, params: dict[str, object]) -> None:
        objective = build(kind, params)
        student, teacher, batch = outputs(requires_grad=True)
        assert teacher.logits_BK is not None and teacher.embedding_BD is not None
        silent = TeacherOutput(teacher.logits_BK.detach().clone(), teacher.embedding_BD.detach().clone())
        silent.logits_BK[3:], silent.embedding_BD[3:] = math.nan, math.nan  # type: ignore[index]
        term = objective(student, silent, batch)
        torch.testing.assert_close(term, objective(*reordered(student, teacher, batch, torch.arange(3))))
        term.backward()
        for tensor in (student.logits_BK, *student.hidden_BND.values()):
            assert tensor.grad is None or tensor.grad.isfinite().all()

    def test_bfloat16_agrees_within_two_percent(self, kind: str, params: dict[str, object]) -> None:
        full = build(kind, params)(*outputs())
        half = build(kind, params).to(torch.bfloat16)(*outputs(dtype=torch.bfloat16))
        torch.testing.assert_close(half.float(), full, rtol=0.02, atol=0.005)

    def test_labels_play_no_part(self, kind: str, params: dict[str, object]) -> None:
        student, teacher, batch = outputs()
        unknown = replace(batch, known_BK=~batch.known_BK)
        assert build(kind, params)(student, teacher, unknown) == build(kind, params)(student, teacher, batch)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_logits_is_zero_where_student_equals_teacher(temperature: float) -> None:
    student, _, batch = outputs()
    term = build("logits", {"temperature": temperature})(student, TeacherOutput(student.logits_BK), batch)
    assert term.item() == pytest.approx(0, abs=1e-6)


def test_features_is_zero_where_the_projection_equals_the_embedding() -> None:
    for params in ({"layer": 1}, {"layer": 1, "distance": "mse"}):
        student, _, batch = outputs()
        objective = build("features", params)
        target = objective.projection(student.hidden_BND[1][:, 0])  # type: ignore[operator]
        assert objective(student, TeacherOutput(None, target.detach()), batch).item() == pytest.approx(0, abs=1e-6)


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


def test_cosine_by_hand() -> None:
    """Projection (1, 0) against an embedding at 60 degrees: 1 - 1/2."""
    params = validate(OBJECTIVES["features"].Params, {"layer": 0})
    objective = OBJECTIVES["features"](params, TASKS, 2, 2)
    with torch.no_grad():
        objective.projection.weight.copy_(torch.eye(2))  # type: ignore[union-attr, operator]
        objective.projection.bias.zero_()  # type: ignore[union-attr, operator]
    student, _, batch = outputs()
    student = replace(student, hidden_BND={0: torch.tensor([[[1.0, 0.0]]])})
    embedding = torch.tensor([[0.5, math.sqrt(3) / 2]])
    assert objective(student, TeacherOutput(None, embedding), batch).item() == pytest.approx(0.5, rel=1e-5)


def test_objective_config_weight_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        ObjectiveConfig(weight=-1)
