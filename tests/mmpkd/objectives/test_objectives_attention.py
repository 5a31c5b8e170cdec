"""Attention transfer by hand, on other grids, against torchdistill, and on a real student."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmpkd.config import StudentConfig
from mmpkd.objectives import OBJECTIVES
from mmpkd.objectives.attention import AttentionParams
from mmpkd.student import build_student
from mmpkd.types import Needs, StudentOutput, TeacherOutput
from tests.mmpkd.objective_inputs import TASKS, batch, draw, objective, student


def attention(given: StudentOutput, map_Bhw: Tensor, **params: object) -> float:
    term = objective("attention", layer=0, **params)
    return float(term(given, TeacherOutput(map_Bhw=map_Bhw), batch()).item())


def row(*heads: list[float], grid: tuple[int, int] = (1, 2), num_prefix: int = 1) -> StudentOutput:
    """The CLS token's attention of one image."""
    return student(attention={0: torch.tensor([heads])}, grid=grid, num_prefix=num_prefix)


LEFT = torch.tensor([[[1.0, 0.0]]])


def test_activation_by_hand() -> None:
    """Squares of two patches, mean over channels: (6 + 0)/2 = 3 and (4 + 4)/2 = 4, normalised (0.6, 0.8); the
    prefix token is not read. Against (1, 0): 0.4^2 + 0.8^2. Against (4, 3)/7, normalised (0.8, 0.6): 2 x 0.2^2.
    To the first power of (3, 3), (-4, 4): 3 and 4 again."""
    tokens = torch.tensor([[[9.0, 9.0], [math.sqrt(6), 0.0], [2.0, -2.0]]])
    given = student(hidden={0: tokens})
    assert attention(given, LEFT, form="activation") == pytest.approx(0.8)
    assert attention(given, torch.tensor([[[4 / 7, 3 / 7]]]), form="activation") == pytest.approx(0.08)
    given = student(hidden={0: torch.tensor([[[9.0, 9.0], [3.0, 3.0], [-4.0, 4.0]]])})
    assert attention(given, LEFT, form="activation", power=1) == pytest.approx(0.8)


def test_query_by_hand() -> None:
    """Heads (0.5, 0.1) and (0.1, 0.7) over the patches: mean (0.3, 0.4), renormalised (3/7, 4/7), as the CLS token
    and a register hold the rest. Against (1, 0): KL = ln(7/3); L2 of (0.6, 0.8): 0.4^2 + 0.8^2."""
    given = row([0.2, 0.2, 0.5, 0.1], [0.1, 0.1, 0.1, 0.7], num_prefix=2)
    assert attention(given, LEFT) == pytest.approx(math.log(7 / 3), rel=1e-5)
    assert attention(given, LEFT, form="query_l2") == pytest.approx(0.8)


@pytest.mark.parametrize("form", ["query_kl", "query_l2"])
def test_equal_maps_give_zero(form: str) -> None:
    assert attention(row([0.5, 0.2, 0.3]), torch.tensor([[[0.4, 0.6]]]), form=form) == pytest.approx(0, abs=1e-6)


def test_a_coarser_map_is_interpolated() -> None:
    """(1, 0) on four columns is 1, 3/4, 1/4, 0, which renormalised is 1/2, 3/8, 1/8, 0."""
    given = row([0.2, 0.4, 0.3, 0.1, 0.0], grid=(1, 4))
    assert attention(given, LEFT) == pytest.approx(0, abs=1e-6)


def test_a_finer_map_is_averaged_over_all_its_cells() -> None:
    """Eight columns onto two: a triangle four columns to either side of columns 2 and 6. Column 0 falls to the left
    alone, where two bilinear samples would miss it; column 2 is 3/8 and 28/8 columns away: 7/8 and 1/8."""
    columns = torch.eye(8)[:, None]
    assert attention(row([0.0, 0.5, 0.5]), columns[:1]) == pytest.approx(math.log(2), rel=1e-5)
    by_hand = 7 / 8 * math.log(7 / 4) + 1 / 8 * math.log(1 / 4)
    assert attention(row([0.0, 0.5, 0.5]), columns[2:3]) == pytest.approx(by_hand, rel=1e-5)


def test_missing_maps_are_left_out_and_get_no_gradient() -> None:
    row_BAN = torch.tensor([[[0.2, 0.4, 0.4]], [[0.2, 0.7, 0.1]]]).requires_grad_()
    map_Bhw = torch.tensor([[[1.0, 0.0]], [[math.nan, math.nan]]])
    term = objective("attention", layer=0)(student(attention={0: row_BAN}), TeacherOutput(map_Bhw=map_Bhw), batch())
    assert term.item() == pytest.approx(math.log(2), rel=1e-5)
    term.backward()
    assert row_BAN.grad is not None and row_BAN.grad[0].any() and not row_BAN.grad[1].any()


def test_attention_of_exactly_zero_does_not_end_the_training() -> None:
    row_BAN = torch.tensor([[[0.5, 0.0, 0.5]]]).requires_grad_()
    term = objective("attention", layer=0)(student(attention={0: row_BAN}), TeacherOutput(map_Bhw=LEFT), batch())
    term.backward()
    assert row_BAN.grad is not None and term.isfinite() and row_BAN.grad.isfinite().all()


def test_needs_are_known_at_planning() -> None:
    block, field = frozenset({0}), frozenset({"map"})
    assert objective("attention", layer=0, form="activation").needs == Needs(student_layers=block, teacher=field)
    assert objective("attention", layer=0).needs == Needs(student_attention=block, teacher=field)


def test_a_power_without_activations_is_refused() -> None:
    check = OBJECTIVES["attention"].check
    (mistake,) = check(AttentionParams(layer=0, form="query_l2", power=2), TASKS)
    assert str(mistake) == "params.power: only form: activation has a power, got form: query_l2; leave it out"
    assert check(AttentionParams(layer=0, form="query_l2"), TASKS) == []
    assert check(AttentionParams(layer=0, form="activation", power=2), TASKS) == []


def test_a_student_with_registers_learns_to_look_where_the_teacher_looks() -> None:
    """Nothing but this term, on one batch: the mass of the CLS row comes to lie in the quarter the teacher names."""
    config = StudentConfig(
        model="vit_small_patch14_reg4_dinov2", pretrained=False, patch_size=8, embed_dim=24, depth=2, num_heads=2
    )
    torch.manual_seed(0)
    vit = build_student(config, 32, 1, 1)
    image_BCHW, map_Bhw = torch.rand(4, 1, 32, 32), torch.zeros(4, 2, 2)
    map_Bhw[:, 0, 1] = 1
    term = objective("attention", 24, layer=1)
    quarter = torch.zeros(4, 4, dtype=torch.bool)
    quarter[:2, 2:] = True
    optimizer = torch.optim.AdamW(vit.parameters(), lr=3e-3)
    masses = []
    for _ in range(40):
        output = vit(image_BCHW, attention_layers=[1])
        row_BP = output.query_attention_BAN[1].mean(dim=1)[:, vit.model.num_prefix_tokens :]
        masses.append((row_BP[:, quarter.flatten()].sum() / row_BP.sum()).item())
        optimizer.zero_grad()
        term(output, TeacherOutput(map_Bhw=map_Bhw), batch()).backward()
        optimizer.step()
    assert masses[0] == pytest.approx(0.25, abs=0.05) and masses[-1] > 0.5


def test_agrees_with_torchdistill() -> None:
    """torchdistill's `code` mode, after the authors' code, is the mean over patches of what is summed here. Its
    teacher's map is made from a feature map: one channel, the root of ours, gives the same."""
    from torchdistill.losses import mid_level

    tokens, map_Bhw = draw(5, 1 + 12, 6), draw(5, 3, 4, seed=1).flatten(1).softmax(1).view(5, 3, 4)
    feature_map = tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 4))
    pair = {"student": {"io": "output", "path": "s"}, "teacher": {"io": "output", "path": "t"}}
    theirs = mid_level.ATLoss({"pair": pair})(
        {"s": {"output": feature_map}}, {"t": {"output": map_Bhw.sqrt()[:, None]}}
    )
    ours = attention(student(hidden={0: tokens}, grid=(3, 4)), map_Bhw, form="activation")
    assert ours == pytest.approx(12 * theirs.item(), rel=1e-5)
