"""Training on a GPU: the ways of running steps agree, no step waits for the device, and what cannot be recorded runs.

`python -m pytest -m gpu` runs these tests where there is a GPU. They are skipped elsewhere, as in CI.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpkd import checkpoint
from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.images import Images
from mmpkd.machine.recording import WARM_UP_CALLS, Recorder
from mmpkd.objectives import OBJECTIVES
from mmpkd.scoring.validation import Evaluator
from mmpkd.train import train
from mmpkd.training.epoch import train_epoch
from mmpkd.training.execution import Stepper
from mmpkd.training.stages import Run
from mmpkd.training.step import epoch_inputs
from tests.mmpkd.runs import begun

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SAME = 1e-3  # relative difference of losses and outputs: kernels add in another order, in bfloat16
# Differences of weights after four epochs, as a share of how far they have moved. On a CPU, in float32, repeating the
# same draws of drop path in each step makes 0.14, leaving drop path out 0.21, other draws 0.34, stale images 0.55.
RECORDED = 0.04
COMPILED = 0.1  # compiled blocks keep fewer roundings to bfloat16
NETWORK = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TEACHERS: dict[str, dict[str, Any]] = {
    "scan": {"kind": "image", "params": {"view": "superior", "network": NETWORK, "epochs": 1}},
}
PARAMS: dict[str, dict[str, Any]] = {"features": {"layer": 1}, "attention": {"layer": 1}}


def changed(config: TrialConfig, **changes: Any) -> TrialConfig:
    return TrialConfig.model_validate(config.model_dump() | changes)


def weights_after(config: TrialConfig, cache: Path, epochs: int = 4) -> torch.Tensor:
    run = begun(config, cache, "cuda")
    for epoch in range(epochs):
        train_epoch(run, epoch)
    return torch.cat([parameter.detach().flatten() for parameter in run.student.parameters()])


def difference(config: TrialConfig, other: TrialConfig, cache: Path) -> float:
    """Returns how far apart two trainings end, as a share of how far the other one has moved."""
    ours, theirs, initial = weights_after(config, cache), weights_after(other, cache), weights_after(other, cache, 0)
    return float((ours - theirs).norm() / (theirs - initial).norm())


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.1])
@pytest.mark.parametrize(("execution", "limit"), [("graph", RECORDED), ("compile", COMPILED)])
def test_all_ways_of_running_steps_agree(
    tiny_trial: TrialConfig, cache: Path, execution: str, limit: float, drop_path_rate: float
) -> None:
    """A graph repeats the draws of drop path as they would have been drawn, and compiled blocks draw the same."""
    eager = changed(tiny_trial, execution="eager", student={**NETWORK, "drop_path_rate": drop_path_rate})
    assert difference(changed(eager, execution=execution), eager, cache) < limit
    other = changed(eager, student={**NETWORK, "drop_path_rate": 0.1 - drop_path_rate})
    assert difference(other, eager, cache) > limit


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_every_objective_can_be_recorded(
    tiny_trial: TrialConfig, cache: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    objectives = {kind: {"params": PARAMS.get(kind, {})}}
    config = changed(tiny_trial, teachers=TEACHERS, objectives=objectives, execution="graph")
    run = begun(config, cache, "cuda")
    for epoch in (1, 2):  # in the first, whole batches run before any is recorded
        train_epoch(run, epoch)
    assert isinstance(run.step, Stepper) and run.step._recorder is not None
    assert len(run.step._recorder._recordings) == 2, "whole batches, and the last one"
    assert difference(config, changed(config, execution="eager"), cache) < RECORDED
    assert "one after another" not in capsys.readouterr().err


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("execution", ["eager", "graph"])
def test_no_step_waits_for_the_gpu(tiny_trial: TrialConfig, cache: Path, execution: str, resident: bool) -> None:
    augmentation = {"rotation": 10, "scale": [0.9, 1.1], "brightness": 0.1, "contrast": 0.1}
    run = begun(changed(tiny_trial, execution=execution, augmentation=augmentation), cache, "cuda")
    run.samples.images = Images(run.store, run.rows, ("image",), run.device, resident)
    step = Stepper(run)
    run.wake()
    for epoch in range(2):  # libraries choose kernels, and steps are recorded
        for inputs in epoch_inputs(run, epoch):
            step(inputs)
    with no_waiting():
        for inputs in epoch_inputs(run, 2):
            step(inputs)


def test_fetched_images_are_those_of_the_store(tiny_trial: TrialConfig, cache: Path) -> None:
    store, device = prepare(tiny_trial.cohort, cache), torch.device("cuda")
    rows, order = store.rows("train"), torch.arange(59, -1, -1)
    kept, fetched = (Images(store, rows, ("image",), device, resident).batches(order, 7) for resident in (True, False))
    for batch, other in zip(kept, fetched, strict=True):
        assert torch.equal(batch, other)


def test_recorded_validation_gives_the_same_outputs(tiny_trial: TrialConfig, cache: Path) -> None:
    run = begun(tiny_trial, cache, "cuda")
    val, grid = run.store.rows("val"), run.student.grid
    config = tiny_trial.evaluation.model_copy(update={"batch_size": 8})
    evaluators = [Evaluator(run.store, val, config, grid, run.device, record=record) for record in (False, True)]
    for epoch in range(3):
        train_epoch(run, epoch)
        plain, recorded = (evaluator.predict(run.answerer) for evaluator in evaluators)
        assert recorded[0] == pytest.approx(plain[0], rel=SAME, abs=SAME)
        assert torch.allclose(recorded[1], plain[1], rtol=SAME)


def test_what_cannot_be_recorded_runs_and_says_so(
    tiny_trial: TrialConfig, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(changed(tiny_trial, execution="graph"), cache, "cuda")
    run.student.register_forward_pre_hook(lambda _, inputs: inputs[0].sum().item() and None)
    for epoch in range(2):
        terms, _ = train_epoch(run, epoch)
    assert capsys.readouterr().err.count("operations run one after another") == 1
    assert all(torch.tensor(value).isfinite() for value in terms.values())
    torch.cuda.empty_cache()  # torch refuses this while it believes that a recording goes on
    other = begun(run.config, cache, "cuda")
    for epoch in range(2):
        train_epoch(other, epoch)
    assert isinstance(other.step, Stepper) and other.step._recorder is not None and other.step._recorder._recordings


def test_a_recorded_training_goes_on_after_the_recording_of_something_else_has_failed(
    tiny_trial: TrialConfig, cache: Path
) -> None:
    """Its drop path draws from the generator, which the failure leaves unusable."""
    eager, run = weights_after(changed(tiny_trial, execution="eager"), cache), begun(tiny_trial, cache, "cuda")
    waiting = Recorder(lambda inputs: [inputs[0] * inputs[0].sum().item()], run.device, "something else")
    for epoch in range(4):
        train_epoch(run, epoch)
        if epoch == 1:
            for _ in range(WARM_UP_CALLS + 1):
                waiting([torch.ones(2, device=run.device)])
    weights = torch.cat([parameter.detach().flatten() for parameter in run.student.parameters()])
    initial = weights_after(tiny_trial, cache, 0)
    assert float((weights - eager).norm() / (eager - initial).norm()) < RECORDED


def test_each_stage_is_recorded_with_the_modules_that_it_trains(tiny_trial: TrialConfig, cache: Path) -> None:
    stages = [
        {"name": "student", "epochs": 2, "train": ["student"], "objectives": ["task"]},
        {"name": "guide", "epochs": 2, "train": ["guidance.guide"], "objectives": ["guidance"]},
        {"name": "joint", "train": ["guidance.joint"], "objectives": ["task"], "answer": "guidance.joint"},
    ]
    config = changed(tiny_trial, teachers=TEACHERS, objectives={"guidance": {}}, stages=stages)
    moved: dict[str, list[list[torch.Tensor]]] = {"eager": [], "graph": []}
    for execution, steps in moved.items():
        run = begun(changed(config, execution=execution), cache, "cuda")
        for index in range(len(stages)):
            run.enter(index)
            begin = [parameter.detach().clone() for parameter in run_parameters(run)]
            for epoch in range(2):
                train_epoch(run, epoch)
            ends = zip(begin, run_parameters(run), strict=True)
            steps.append([(end.detach() - start).flatten() for start, end in ends])
    for ours, theirs in zip(moved["graph"], moved["eager"], strict=True):
        assert [bool(each.any()) for each in ours] == [bool(each.any()) for each in theirs], "the same ones learn"
        assert float((torch.cat(ours) - torch.cat(theirs)).norm() / torch.cat(theirs).norm()) < RECORDED


def run_parameters(run: Run) -> list[torch.nn.Parameter]:
    return [*run.student.parameters(), *run.objectives.parameters()]


def test_a_teacher_of_the_view_is_named_and_runs(
    tiny_trial: TrialConfig, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = {
        "both": {
            "kind": "fused",
            "params": {"view": "superior", "patch_size": 8, "dim": 16, "depth": 1, "heads": 2, "epochs": 1},
        }
    }
    run = begun(changed(tiny_trial, teachers=teachers, objectives={"logits": {}}, execution="graph"), cache, "cuda")
    train_epoch(run, 0)
    assert "teacher 'both', which runs at each step" in capsys.readouterr().err


def test_a_resumed_training_goes_on_as_if_uninterrupted(tiny_trial: TrialConfig, cache: Path, tmp_path: Path) -> None:
    config = changed(tiny_trial, checkpoint_seconds=0, epochs=4)
    whole = train(config, cache, tmp_path / "whole")

    def stop(report: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, cache, tmp_path / "part", report=stop)
    resumed = train(config, cache, tmp_path / "part", tmp_path / "part" / checkpoint.NAME)
    for report, wanted in zip(resumed, whole, strict=True):
        assert report.terms == pytest.approx(wanted.terms, rel=SAME)


def test_a_checkpoint_of_a_gpu_is_continued_on_a_cpu(
    tiny_trial: TrialConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(tiny_trial, checkpoint_seconds=0)
    train(config, cache, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert len(train(config, cache, tmp_path, tmp_path / checkpoint.NAME)) == config.epochs
