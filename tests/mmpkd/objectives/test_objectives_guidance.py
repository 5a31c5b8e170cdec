"""Guidance by hand, and agreement of its heads with what they are made of."""

import pytest
import torch
from torch import nn

from mmpkd.objectives.guidance import Guidance, Guided
from mmpkd.types import TeacherOutput
from tests.mmpkd.objective_fixtures import DIM, MIXED, TEACHER_DIM, build, outputs

NUM_LOGITS = MIXED[-1].columns.stop


def guidance() -> Guidance:
    objective = build("guidance", {})
    assert isinstance(objective, Guidance)
    return objective.eval()


def test_squared_error_by_hand() -> None:
    """A guide that says 1, 2, 3, 4, 5 of everyone: errors of 1 in each of five places, and of 3 in one of them."""
    objective = guidance()
    last = objective.guide[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.arange(1.0, 6.0))
    student, _, batch = outputs(size=3)
    latent_BD = torch.tensor([[0.0, 1, 2, 3, 4], [1, 2, 3, 4, 8], [torch.nan] * 5])
    term = objective(student, TeacherOutput(embedding_BD=latent_BD), batch)
    assert term.item() == pytest.approx((1 + 9 / 5) / 2)


def test_the_bottleneck_is_that_of_the_notebook() -> None:
    with torch.device("meta"):
        objective = Guidance(Guidance.Params(), MIXED, 2048, 2048)
    kinds = [(one.in_features, one.out_features) for one in objective.guide if isinstance(one, nn.Linear)]
    assert kinds == [(2048, 1024), (1024, 512), (512, 512), (512, 1024), (1024, 2048)]
    drops = [one.p for one in objective.guide if isinstance(one, nn.Dropout)]
    assert drops == [0.25] * 4 and isinstance(objective.guide[-1], nn.Linear)


def test_the_superior_head_is_the_teachers_on_what_the_guide_says() -> None:
    objective = guidance()
    teachers = nn.Linear(TEACHER_DIM, NUM_LOGITS)
    objective.inherit(teachers.weight.detach(), teachers.bias.detach())
    embedding_BD = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = teachers(objective.guide(embedding_BD))
        assert torch.equal(objective.head("superior")(embedding_BD), expected)
    assert not list(objective.superior.parameters())  # nothing can train it
    assert torch.equal(objective.state_dict()["superior.weight"], teachers.weight)  # and a checkpoint holds it


def test_the_joint_head_reads_the_students_embedding_first() -> None:
    objective = guidance()
    embedding_BD = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))
    weight_KD, bias_K = objective.joint.weight, objective.joint.bias
    with torch.no_grad():
        guessed_BD = objective.guide(embedding_BD)
        expected = embedding_BD @ weight_KD[:, :DIM].T + guessed_BD @ weight_KD[:, DIM:].T + bias_K
        torch.testing.assert_close(objective.head("joint")(embedding_BD), expected)


@pytest.mark.parametrize("name", Guidance.heads)
def test_a_head_is_built_anew_from_its_sizes(name: str) -> None:
    head = guidance().head(name)
    again = Guided.empty(DIM, head.width, NUM_LOGITS, head.joint).eval()
    again.load_state_dict(head.state_dict())
    embedding_BD = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(embedding_BD), head(embedding_BD)) and head.joint == (name == "joint")
