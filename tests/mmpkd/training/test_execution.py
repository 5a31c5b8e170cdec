"""How steps run: what a CUDA graph needs of a step, and the ways of running it."""

from __future__ import annotations

import weakref
from copy import copy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmpkd.augment import draw_views
from mmpkd.config import TrialConfig
from mmpkd.fit import task_loss
from mmpkd.training.batches import StepInputs
from mmpkd.training.epoch import train_epoch
from mmpkd.training.execution import Stepper, obstacle_to_recording
from mmpkd.training.stages import Run
from mmpkd.training.step import epoch_inputs, take_step
from tests.mmpkd.runs import begun
from tests.mmpkd.waiting import Waits, fake_gpu

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "shifted": {},
    "all": {"flip_vertical": True, "rotation": 10, "scale": [0.9, 1.1], "brightness": 0.1, "contrast": 0.1},
}
LABELS: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 16, "clip_norm": 0.0},
    "weighed": {"batch_size": 16, "label_smoothing": 0.1, "class_weights": "balanced"},
}


@pytest.fixture(params=[(views, labels) for views in AUGMENTATIONS for labels in LABELS], ids="-".join)
def run(request: pytest.FixtureRequest, tiny_trial: TrialConfig, cache: Path) -> Run:
    views, labels = request.param
    changes = {"augmentation": AUGMENTATIONS[views], "optimizer": LABELS[labels]}
    return begun(TrialConfig.model_validate(tiny_trial.model_dump() | changes), cache)


def test_a_step_reads_no_value_on_the_host(run: Run) -> None:
    inputs = next(epoch_inputs(run, 0))
    run.wake()
    take_step(run, inputs)  # creates the state of the optimiser
    with Waits() as waits:
        take_step(run, inputs)
    assert waits.names == []


def test_what_reads_a_value_is_noticed(run: Run) -> None:
    values = torch.arange(4.0)
    with Waits() as waits:
        assert values.sum().item() == 6
        values[values > 1]
    assert waits.names == ["aten::_local_scalar_dense", "aten::index.Tensor"]
    with fake_gpu() as move, Waits() as waits:
        move(values)[torch.tensor([0, 1])]
        values.to("cuda")
    assert waits.names == ["aten::index.Tensor", "aten::_to_copy"]


def test_batch_student_and_task_loss_stay_on_the_device(run: Run) -> None:
    given, samples = next(epoch_inputs(run, 0)), copy(run.samples)
    tasks, smoothing = run.store.facts.tasks, run.config.optimizer.label_smoothing
    run.wake()
    with fake_gpu() as move, Waits() as waits:
        for name, value in vars(samples).items():
            if isinstance(value, torch.Tensor):
                setattr(samples, name, move(value))
        inputs = StepInputs(move(given.image_BCHW), move(given.position_B), given.draws.each(move))
        batch, view = samples.batch(inputs)
        tensors = {
            name: move(value) for name, value in chain(run.student.named_parameters(), run.student.named_buffers())
        }
        output = torch.func.functional_call(run.student, tensors, (batch.image_BCHW, [1], [0]))
        labels = batch.target_BK, batch.known_BK
        loss = task_loss(output.logits_BK, *labels, tasks, smoothing, move(torch.ones(2, 3)))
        teacher = run.teachers["findings"]
        outputs = replace(teacher, arrays={name: move(values) for name, values in teacher.arrays.items()})
        logits_BK = outputs.at(batch.rows_B, batch.image_BCHW, view).logits_BK
    assert waits.names == []
    assert {loss.device.type, batch.image_BCHW.device.type, logits_BK.device.type} == {"cuda"}


def test_draws_of_an_epoch_are_those_of_its_batches(run: Run) -> None:
    """An epoch is drawn at once, and its views are those that each batch used to draw for itself."""
    generator, config = torch.Generator().manual_seed(3), run.config.augmentation
    each = [draw_views(count, 32, config, generator) for count in (16, 16, 16, 12)]
    order, views = torch.Generator().manual_seed(1), torch.Generator().manual_seed(3)
    inputs = list(run.samples.inputs(16, order, views))
    assert torch.equal(torch.cat([each.position_B for each in inputs]).sort()[0], torch.arange(60))
    for step, view in zip(inputs, each, strict=True):
        for drawn, wanted in zip(step.draws.view(32), view, strict=True):
            assert (drawn is None and wanted is None) or torch.equal(drawn, wanted)


def test_a_wish_that_cannot_be_met_is_announced(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert obstacle_to_recording(run) == "a CUDA graph needs a GPU"
    Stepper(run)
    assert capsys.readouterr().err == ""
    run.config = run.config.model_copy(update={"execution": "graph"})
    Stepper(run)(next(epoch_inputs(run, 0)))
    assert capsys.readouterr().err == "a CUDA graph needs a GPU, so operations run one after another\n"


def test_a_stage_frees_the_recorded_steps_of_the_stage_before(run: Run) -> None:
    class Step:
        def __init__(self) -> None:
            self.recorded = self.__call__  # as a recorder knows the method that it records

        def __call__(self, inputs: StepInputs) -> dict[str, torch.Tensor]:
            raise AssertionError

    run.step = Step()
    reference = weakref.ref(run.step)
    run.enter(0)
    assert reference() is None


def test_execution_is_no_part_of_the_fingerprint(tiny_trial: TrialConfig) -> None:
    for execution in ("eager", "graph", "compile"):
        assert tiny_trial.model_copy(update={"execution": execution}).fingerprint() == tiny_trial.fingerprint()


def test_compiled_steps_are_the_same(tiny_trial: TrialConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled as far as Python's part goes. Kernels take minutes on two cores: test_gpu.py compares them."""
    compiled = []

    def compile_python(block: nn.Module, options: dict[str, bool]) -> None:
        assert options == {"fallback_random": True}, "on a GPU, other draws than those of an eager step would follow"
        compiled.append(block)
        block._compiled_call_impl = torch.compile(block._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_python)
    runs = {}
    for execution in ("eager", "compile"):
        runs[execution] = begun(tiny_trial.model_copy(update={"execution": execution}), cache)
        train_epoch(runs[execution], 0)
    assert compiled == list(runs["compile"].student.model.blocks)
    weights = [run.student.state_dict() for run in runs.values()]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_blocks_with_rates_of_their_own_are_all_compiled_in_each_training_of_a_process(
    tiny_trial: TrialConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch leaves a function as it is once it has compiled it eight times."""
    compiled: list[object] = []

    def note(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    def compile_noted(block: nn.Module, options: dict[str, bool]) -> None:
        block._compiled_call_impl = torch.compile(block._call_impl, backend=note)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_noted)
    student = {**tiny_trial.model_dump()["student"], "depth": 10}
    config = TrialConfig.model_validate(tiny_trial.model_dump() | {"student": student, "execution": "compile"})
    for _ in range(2):
        compiled.clear()
        run = begun(config, cache)
        run.wake()
        Stepper(run)(next(epoch_inputs(run, 0)))
        assert len(compiled) >= 10
