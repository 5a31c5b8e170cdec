"""Ways to run the steps of a training: one operation after another, recorded as a CUDA graph, or compiled.

All ways compute the same step: a recording repeats the same kernels, and compiled kernels differ in the last digits
(tests/mmpkd/training/test_gpu.py states the tolerances).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmpkd.machine import recording
from mmpkd.training.batches import StepInputs
from mmpkd.training.stages import Run
from mmpkd.training.step import take_step

MODES = 8  # most forms in which a block is compiled: whether it learns, is recorded, shows its attention


class Stepper:
    """Takes the steps of one stage of a training, in the way that `execution` of the configuration names.

    Where a step cannot be recorded or compiled, a line on the console says why, and steps run one operation after
    another.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._names = run, tuple(run.stage.objectives)
        execution, obstacle = run.config.execution, obstacle_to_recording(run)
        self._compiling = execution == "compile"
        if self._compiling:
            # Blocks differ in their rates of drop path, and each is compiled in several modes: torch would leave all
            # after the first eight as they are, those of later trainings of this process included.
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = MODES * len(run.student.model.blocks)
            for block in run.student.model.blocks:
                # On a GPU, compiled code draws drop path from random numbers of its own, unless it is asked not to.
                block.compile(options={"fallback_random": True})
        self._recorder = None
        if recording.wanted(execution, run.device) and not obstacle:
            self._recorder = recording.Recorder(self._take, run.device, "a training step")
        elif recording.wanted(execution, run.device) or execution == "graph":
            recording.announce(obstacle)

    def __call__(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Takes one step, see `take_step`."""
        values = self._recorder(inputs.tensors()) if self._recorder else self._take(inputs.tensors())
        return dict(zip(self._names, values, strict=True))

    def _take(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        inputs = StepInputs.of(tensors, self._run.config.augmentation)
        try:
            terms = take_step(self._run, inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not self._compiling or torch.cuda.is_current_stream_capturing():
                raise
            recording.announce(f"the student cannot be compiled ({type(error).__name__})")
            for block in self._run.student.model.blocks:
                block._compiled_call_impl = None
            terms = take_step(self._run, inputs)
        self._compiling = False  # blocks that ran once are compiled
        return [terms[name] for name in self._names]


def obstacle_to_recording(run: Run) -> str:
    """Returns why the steps of a stage cannot be recorded as a CUDA graph, or an empty text if nothing is known to
    prevent it."""
    if run.device.type != "cuda":
        return "a CUDA graph needs a GPU"
    active = run.config.active_objectives()
    for label in run.stage.objectives:
        if label in active and not run.teachers[active[label].teacher or ""].recordable:
            return f"a CUDA graph cannot hold a step with teacher {active[label].teacher!r}, which runs at each step"
    return ""
