"""Task loss, schedules and the finite check, by hand."""

import math

import numpy as np
import pytest
import timm
import torch
from sklearn.utils.class_weight import compute_class_weight

from mmpkd.fit import (
    TermLog,
    balanced_weights,
    gradient_shares,
    learning_rate,
    objective_factor,
    optimizer_for,
    seeded,
    task_loss,
)
from mmpkd.types import DivergedError, lay_out

TASKS = lay_out([("stage", "multiclass", ["a", "b", "c"]), ("ill", "binary", ["no", "yes"])])


def test_task_loss_by_hand_is_the_mean_over_tasks_of_known_labels() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, math.log(3)], [5.0, -5.0, 1.0, 0.0]])
    target = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    known = torch.tensor([[True, True, True, True], [False, False, False, False]])
    by_hand = (math.log(3) - math.log(3 / 4)) / 2  # uniform over three classes; sigmoid(ln 3) = 3/4
    assert task_loss(logits, target, known, TASKS).item() == pytest.approx(by_hand, rel=1e-6)


def test_task_loss_matches_torch_where_everything_is_known() -> None:
    g = torch.Generator().manual_seed(0)
    logits, label = torch.randn(10, 3, generator=g), torch.randint(0, 3, (10,), generator=g)
    tasks = TASKS[:1]
    target = torch.nn.functional.one_hot(label, 3).float()
    known = torch.ones(10, 3, dtype=torch.bool)
    for smoothing in (0.0, 0.1):
        ours = task_loss(logits, target, known, tasks, smoothing)
        torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, label, label_smoothing=smoothing))


def test_balanced_weights_agree_with_scikit_learn_and_torch() -> None:
    label = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    ill = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    target = np.hstack([np.eye(3)[label], ill[:, None]]).astype(np.float32)
    known = np.ones((10, 4), bool)
    weights = balanced_weights(target, known, TASKS)
    np.testing.assert_allclose(
        weights[1, :3], compute_class_weight("balanced", classes=np.arange(3), y=label), rtol=1e-6
    )
    np.testing.assert_allclose(weights[:, 3], compute_class_weight("balanced", classes=np.arange(2), y=ill), rtol=1e-6)

    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    ours = task_loss(logits, torch.from_numpy(target), torch.from_numpy(known), TASKS, 0.0, torch.from_numpy(weights))
    softmax = torch.nn.functional.cross_entropy(
        logits[:, :3], torch.from_numpy(label), torch.from_numpy(weights[1, :3])
    )
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, 3], torch.tensor(ill).float(), reduction="none"
    )
    weight = torch.from_numpy(weights[:, 3])[ill]
    torch.testing.assert_close(ours, (softmax + (weight * each).sum() / weight.sum()) / 2)


def test_balanced_weights_ignore_unknown_labels_and_absent_classes() -> None:
    target = np.array([[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], np.float32)
    known = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    by_hand = [[3 / (3 * 1), 3 / (3 * 2), 3 / (3 * 3), 2 / (2 * 1)], [3 / (3 * 2), 3 / (3 * 1), 0, 2 / (2 * 1)]]
    np.testing.assert_allclose(balanced_weights(target, known, TASKS), by_hand, rtol=1e-6)


def test_a_batch_without_known_labels_has_zero_loss_and_gradients() -> None:
    logits = torch.randn(4, 4, requires_grad=True)
    loss = task_loss(logits, torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.bool), TASKS)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0 and logits.grad is not None and (logits.grad == 0).all()


def test_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1, 0.2) for step in range(101)]
    assert rates[:2] == pytest.approx([0.1, 0.2])
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.6)  # half way between 1 and 0.2
    assert rates[100] == pytest.approx(0.2)


def test_objective_schedules() -> None:
    assert [objective_factor("constant", e, 10) for e in (0, 9)] == [1, 1]
    assert objective_factor("warmup", 0, 40) == pytest.approx(1 / 4)
    assert objective_factor("warmup", 3, 40) == 1
    assert objective_factor("cosine", 0, 10) == 1 and objective_factor("cosine", 5, 10) == pytest.approx(0.5)


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    decayed, kept = optimizer_for(model, torch.nn.ModuleDict(), 1e-3, 0.1).param_groups
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert len(kept["params"]) == 3 and kept["weight_decay"] == 0


@pytest.mark.parametrize(
    ("model", "tables"),
    [
        ("vit_small_patch16_rope_mixed_224", {"cls_token", "rope.freqs"}),
        ("beit_base_patch16_224", {"cls_token", *(f"blocks.{i}.attn.relative_position_bias_table" for i in range(2))}),
    ],
)
def test_parameters_without_decay_in_timm_do_not_decay(model: str, tables: set[str]) -> None:
    student = torch.nn.ModuleDict({"vit": timm.create_model(model, embed_dim=32, num_heads=2, depth=2)})
    kept = {id(entry) for entry in optimizer_for(student, torch.nn.ModuleDict(), 1e-3, 0.1).param_groups[1]["params"]}
    result = {
        name.removeprefix("vit.") for name, entry in student.named_parameters() if id(entry) in kept and entry.ndim > 1
    }
    assert result == tables


def test_a_term_that_is_not_finite_is_named_with_its_step() -> None:
    log = TermLog(first_step=100, period=4)
    for step in range(3):
        log.add({"task": torch.tensor(1.0), "logits": torch.tensor(float("nan") if step == 2 else 0.0)})
    with pytest.raises(DivergedError, match="'logits' became nan at step 102"):
        log.means()


def test_means_over_an_epoch_longer_than_the_reading_period() -> None:
    log = TermLog(first_step=0, period=4)
    for value in range(10):
        log.add({"task": torch.tensor(float(value))})
    assert log.means() == {"task": 4.5}


def test_a_term_of_frozen_modules_has_no_gradient_share() -> None:
    weight = torch.ones(4, requires_grad=True)
    shares = gradient_shares({"a": weight.sum(), "still": torch.tensor(3.0)}, [weight])
    assert shares == {"gradient_share/a": 1.0, "gradient_share/still": 0.0}


def test_gradient_shares_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    other = torch.nn.Parameter(torch.tensor(1.0))
    shares = gradient_shares({"a": 3 * weight.sum(), "b": weight.sum() + 0 * other}, [weight, other])
    assert shares == pytest.approx({"gradient_share/a": 0.75, "gradient_share/b": 0.25})


def test_seeded_draws_repeat_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(1, "x"):
        first = torch.rand(3)
    with seeded(1, "x"):
        assert torch.equal(first, torch.rand(3))
    with seeded(1, "y"):
        assert not torch.equal(first, torch.rand(3))
    assert torch.equal(torch.rand(2), expected)
