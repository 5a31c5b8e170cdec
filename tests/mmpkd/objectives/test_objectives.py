"""The contract of every objective. Numbers worked by hand are in the files of the families."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmpkd.config import ObjectiveConfig, validate
from mmpkd.objectives import OBJECTIVES
from mmpkd.types import Task
from tests.mmpkd.objective_fixtures import BATCH, MIXED, SOFTMAX, build, changed, outputs, silenced, take, tensors_of
from tests.mmpkd.waiting import Waits, fake_gpu

# The contract is tried on each of these tasks that the objective's `check` accepts, one at the least.
TASKS = {"mixed": MIXED, "softmax": SOFTMAX}
PARAMS: dict[str, list[dict[str, object]]] = {
    "logits": [{"temperature": 1.0}, {"temperature": 4.0}, {"standardize": True}],
    "dkd": [{}, {"alpha": 0, "beta": 1, "temperature": 1}],
    "dist": [{}, {"beta": 0}],
    "features": [{"layer": 1}, {"layer": 0, "distance": "mse"}, {"layer": 1, "teacher_layer": 2}],
    "relational": [{}, {"layer": 1, "angle": 0.0}, {"distance": 0.0}],
    "attention": [{"layer": 1}, {"layer": 0, "form": "query_l2"}, {"layer": 2, "form": "activation"}],
    "contrastive": [{}, {"layer": 1, "temperature": 1.0}],
    "mutual_information": [{}, {"layer": 1}],
    "variational": [{}, {"layer": 1}],
    "guidance": [{"dropout": 0.0}],
}
READS_LABELS = {"dkd"}  # 0 where no label is known; the others do not change


def wrong(kind: str, params: dict[str, object], tasks: tuple[Task, ...]) -> list[str]:
    return [str(one) for one in OBJECTIVES[kind].check(validate(OBJECTIVES[kind].Params, params), tasks)]


CASES = [
    pytest.param(kind, params, tasks, id=f"{kind}-{number}-{name}")
    for kind, cases in PARAMS.items()
    for number, params in enumerate(cases)
    for name, tasks in TASKS.items()
    if not wrong(kind, params, tasks)
]


def test_every_objective_has_a_case_here() -> None:
    assert set(PARAMS) == set(OBJECTIVES), "give your objective its parameters in PARAMS, above"
    for kind, cases in PARAMS.items():
        for params in cases:
            assert not all(wrong(kind, params, tasks) for tasks in TASKS.values()), f"{kind} {params} accepts no tasks"


@pytest.mark.parametrize(("kind", "params", "tasks"), CASES)
class TestContract:
    def test_finite_scalar_above_zero(self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]) -> None:
        term = build(kind, params, tasks)(*outputs(tasks))
        assert term.shape == () and term.isfinite() and term > 0

    def test_a_cuda_graph_can_hold_it(self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]) -> None:
        objective, given = build(kind, params, tasks), outputs(tasks, requires_grad=True)
        with Waits() as waits:
            objective(*given).backward()
        assert waits.names == []
        with fake_gpu() as move, Waits() as waits:
            weights = {name: move(value) for name, value in objective.state_dict().items()}
            moved = tuple(changed(output, move) for output in given)
            term = torch.func.functional_call(objective, weights, moved)
        assert waits.names == [] and term.device.type == "cuda"

    def test_gradient_reaches_the_named_layers_and_own_parameters_but_no_other_and_no_teacher(
        self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]
    ) -> None:
        objective = build(kind, params, tasks)
        student, teacher, batch = outputs(tasks, requires_grad=True)
        objective(student, teacher, batch).backward()
        assert {name for name, tensor in tensors_of(teacher).items() if tensor.grad is not None} == set()
        reached = {name for name, x in tensors_of(student).items() if x.grad is not None and x.grad.abs().sum() > 0}
        named = {f"hidden_BND.{block}" for block in objective.needs.student_layers}
        named |= {f"query_attention_BAN.{block}" for block in objective.needs.student_attention}
        assert reached - {"logits_BK", "embedding_BD"} == named and reached
        for name, parameter in objective.named_parameters():
            own = name.partition(".")[0] not in objective.heads  # those learn from their answers alone
            assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == own

    def test_batch_order_does_not_matter(self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]) -> None:
        objective, given = build(kind, params, tasks), outputs(tasks)
        order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(objective(*given), objective(*take(given, order)))

    def test_samples_the_teacher_is_silent_about_are_left_out(
        self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]
    ) -> None:
        objective = build(kind, params, tasks)
        student, teacher, batch = outputs(tasks, requires_grad=True)
        silent_B = torch.arange(BATCH) % 4 == 1
        term = objective(student, silenced(teacher, silent_B), batch)
        heard = (~silent_B).nonzero()[:, 0]
        torch.testing.assert_close(term, objective(*take((student, teacher, batch), heard)))
        term.backward()
        for name, gradient in gradients(tensors_of(student)).items():
            assert gradient.isfinite().all() and not gradient[silent_B].any(), name

    @pytest.mark.parametrize("known", [0, 1])
    def test_a_teacher_with_little_to_say_breaks_nothing(
        self, kind: str, params: dict[str, object], tasks: tuple[Task, ...], known: int
    ) -> None:
        objective = build(kind, params, tasks)
        student, teacher, batch = outputs(tasks, requires_grad=True)
        term = objective(student, silenced(teacher, torch.arange(BATCH) >= known), batch)
        term.backward()
        assert term.isfinite() and (known or term == 0)
        found = gradients(tensors_of(student)) | gradients(dict(objective.named_parameters()))
        assert all(gradient.isfinite().all() for gradient in found.values())
        assert known or not any(gradient.any() for gradient in found.values())

    @pytest.mark.parametrize(("size", "patients"), [(1, 1), (2, 1), (2, 2), (3, 3), (7, 1)])
    def test_the_last_batch_may_be_small_or_of_one_patient(
        self, kind: str, params: dict[str, object], tasks: tuple[Task, ...], size: int, patients: int
    ) -> None:
        objective = build(kind, params, tasks)
        student, teacher, batch = outputs(tasks, requires_grad=True, size=size)
        term = objective(student, teacher, replace(batch, patient_B=batch.patient_B % patients))
        term.backward()
        assert term.isfinite() and term >= 0
        found = gradients(tensors_of(student)) | gradients(dict(objective.named_parameters()))
        assert all(gradient.isfinite().all() for gradient in found.values())
        assert size >= objective.min_batch or term == 0 or kind == "dist"  # whose other part compares classes

    def test_the_least_batch_teaches(self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]) -> None:
        objective = build(kind, params, tasks)
        assert objective(*outputs(tasks, size=objective.min_batch)) > 0

    def test_equal_samples_break_nothing(self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]) -> None:
        objective = build(kind, params, tasks)
        student, teacher, batch = outputs(tasks, requires_grad=True)
        term = objective(*take((student, teacher, batch), torch.zeros(8, dtype=torch.int64)))
        term.backward()
        found = gradients(tensors_of(student)) | gradients(dict(objective.named_parameters()))
        assert term.isfinite() and all(gradient.isfinite().all() for gradient in found.values())

    def test_bfloat16_agrees_within_two_percent(
        self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]
    ) -> None:
        full = build(kind, params, tasks)(*outputs(tasks))
        with torch.autocast("cpu", dtype=torch.bfloat16):  # as in training: parameters stay float32
            half = build(kind, params, tasks)(*outputs(tasks, dtype=torch.bfloat16))
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, rtol=0.02, atol=0.005)

    def test_what_stands_under_an_unknown_label_plays_no_part(
        self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]
    ) -> None:
        student, teacher, batch = outputs(tasks)
        known_BK = batch.known_BK.clone()
        known_BK[::3] = False
        blank = replace(batch, known_BK=known_BK, target_BK=batch.target_BK * known_BK)
        false = replace(batch, known_BK=known_BK, target_BK=torch.where(known_BK, batch.target_BK, 1.0))
        objective = build(kind, params, tasks)
        assert objective(student, teacher, blank) == objective(student, teacher, false)

    def test_no_label_known(self, kind: str, params: dict[str, object], tasks: tuple[Task, ...]) -> None:
        student, teacher, batch = outputs(tasks, requires_grad=True)
        unknown = replace(batch, known_BK=~batch.known_BK, target_BK=torch.zeros_like(batch.target_BK))
        term = build(kind, params, tasks)(student, teacher, unknown)
        assert term == (0 if kind in READS_LABELS else build(kind, params, tasks)(student, teacher, batch))
        term.backward()
        assert all(gradient.isfinite().all() for gradient in gradients(tensors_of(student)).values())


def gradients(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}


def test_objective_config_weight_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        ObjectiveConfig(weight=-1)
