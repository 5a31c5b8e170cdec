"""Ways to run the steps of a training: one operation after another, as a CUDA graph, or compiled.

A small student needs thousands of operations for a step that a GPU finishes sooner than the host can ask for them. A
CUDA graph records the operations of a step once and then repeats them with a single call. All ways compute the same
step: a graph repeats the same kernels, and compiled kernels differ in the last digits (tests/mmpkd/training/test_gpu.py
states the tolerance).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpkd.training.batches import StepInputs
from mmpkd.training.stages import Run
from mmpkd.training.step import take_step

WARM_UP_STEPS = 3  # steps before a recording, in which libraries choose kernels and the optimiser creates its state


class Stepper:
    """Takes the steps of one stage of a training, in the way that `execution` of the configuration names.

    Where a step cannot be recorded or compiled, a line on the console says why, and steps run one operation after
    another.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._recordings: dict[int, Recording] = {}  # by number of samples: the last batch of an epoch is smaller
        self._num_eager = 0
        execution, obstacle = run.config.execution, obstacle_to_recording(run)
        if execution == "auto":
            execution = "eager" if run.device.type == "cpu" else "graph"
        if execution == "compile":
            for block in run.student.model.blocks:
                block.compile()
        self._records = execution in ("graph", "compile") and not obstacle
        if obstacle and execution == "graph":
            announce(obstacle)
        if self._records:
            self._stream, self._pool = torch.cuda.Stream(run.device), torch.cuda.graph_pool_handle()

    def __call__(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Takes one step, see `take_step`."""
        if not self._records:
            return take_step(self.run, inputs)
        size = len(inputs.position_B)
        if size not in self._recordings and self._num_eager < WARM_UP_STEPS:
            self._num_eager += 1
            return self._take_on_stream(inputs)
        if size not in self._recordings:
            try:
                self._recordings[size] = self._record(inputs)
            except RuntimeError as error:  # also a lack of memory: a recording keeps memory of its own
                announce(f"a step cannot be recorded as a CUDA graph ({str(error).splitlines()[0]})")
                self._records = False
                self._recordings.clear()
                return take_step(self.run, inputs)
        return self._recordings[size].replay(inputs)

    def _take_on_stream(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Takes a step on the stream of the recordings, because autograd remembers the streams of its operations."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            terms = take_step(self.run, inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return terms

    def _record(self, inputs: StepInputs) -> Recording:
        graph, fixed = torch.cuda.CUDAGraph(), inputs.copy()
        generator = torch.cuda.default_generators[self.run.device.index or 0]
        state = generator.get_state()
        try:
            # Other threads may use the GPU meanwhile: they fetch images and save checkpoints.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                terms = take_step(self.run, fixed)
                value_T = torch.stack([term.float() for term in terms.values()])
        except RuntimeError:
            fresh = torch.Generator(self.run.device)  # a recording that failed leaves the old state unusable
            fresh.set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            raise
        return Recording(graph, fixed, tuple(terms), value_T)


@dataclass(frozen=True)
class Recording:
    """A recorded step, with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: StepInputs
    names: tuple[str, ...]
    value_T: Tensor  # the loss terms, by position in `names`

    def replay(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Takes the recorded step with other inputs of the same shapes, and returns the loss terms."""
        for fixed, given in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            fixed.copy_(given)
        self.graph.replay()
        return dict(zip(self.names, self.value_T.clone().unbind(), strict=True))


def obstacle_to_recording(run: Run) -> str:
    """Returns why the steps of a stage cannot be recorded as a CUDA graph, or an empty text if nothing is known to
    prevent it."""
    if run.device.type != "cuda":
        return "a CUDA graph needs a GPU"
    active = run.config.active_objectives()
    for label in run.stage.objectives:
        if label in active and not run.teachers[active[label].teacher or ""].recordable:
            return f"teacher {active[label].teacher!r} runs at each step, which a CUDA graph cannot hold"
    return ""


def announce(reason: str) -> None:
    print(f"{reason}; steps run one operation after another (execution=eager)", file=sys.stderr)
