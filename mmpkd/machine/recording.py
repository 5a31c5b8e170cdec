"""Records what a GPU does for a function, to repeat it with one call: CUDA graphs.

A small network needs thousands of operations that a GPU finishes sooner than the host can ask for them. A CUDA graph
holds all operations of a function of tensors, and starts them together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # calls before a recording, in which libraries choose kernels and optimisers create their state

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Shapes = tuple[torch.Size, ...]


class Recording(NamedTuple):
    """A recorded call, with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]


class Recorder:
    """A function of tensors on a GPU that is recorded after a few calls, once for each combination of shapes.

    The function must not read a value on the host, and may use other tensors only if they stay where they are: weights
    that are updated in place, for example. If it cannot be recorded, one line says why, and it is called as it is.

    Args:
        function: takes tensors and returns tensors. Its draws from the global generator are the same when recorded.
        device: the GPU. All recordings of this function share memory, since they never run at the same time.
        name: what the line calls the function.
    """

    # Failures in this process. Each gives the generator a new state, which earlier recordings do not read.
    num_failures: ClassVar[int] = 0

    def __init__(self, function: Function, device: torch.device, name: str) -> None:
        self._function, self._device, self._name = function, device, name
        self._num_calls = 0
        self._called: set[Shapes] = set()
        self._gave_up = False
        self._stream = stream_of_recordings(device)
        self._forget()

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the outputs of the function, in tensors that later calls do not change."""
        if self._gave_up:
            return self._function(inputs)
        if self._num_failures != Recorder.num_failures:
            self._forget()
        shapes = tuple(each.shape for each in inputs)
        if shapes not in self._recordings:
            if self._num_calls < WARM_UP_CALLS or shapes not in self._called:  # libraries choose kernels for each shape
                self._num_calls += 1
                self._called.add(shapes)
                return self._call_on_stream(inputs)
            try:
                self._recordings[shapes] = self._record(inputs)
            except RuntimeError as error:  # also a lack of memory, since a recording keeps memory of its own
                reason = (str(error) or type(error).__name__).splitlines()[0]
                announce(f"{self._name} cannot be recorded as a CUDA graph ({reason})")
                self._gave_up = True
                self._forget()
            if self._gave_up:  # not in the `except`, where the error keeps the tensors of the attempt in memory
                return self._function(inputs)
        recording = self._recordings[shapes]
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given)
        recording.graph.replay()
        return [output.clone() for output in recording.outputs]

    def _forget(self) -> None:
        """Drops all recordings. Later ones need other memory, because torch refuses memory that no recording holds."""
        self._recordings: dict[Shapes, Recording] = {}
        self._pool, self._num_failures = torch.cuda.graph_pool_handle(), Recorder.num_failures

    def _call_on_stream(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Calls the function on the stream of the recordings, because autograd remembers the streams of its parts."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = self._function(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs

    def _record(self, inputs: Sequence[Tensor]) -> Recording:
        graph, own = torch.cuda.CUDAGraph(), [each.clone() for each in inputs]
        generator = torch.cuda.default_generators[self._device.index or 0]
        state = generator.get_state()
        try:
            # Other threads may use the GPU meanwhile: they fetch images and save checkpoints.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                outputs = self._function(own)
        except RuntimeError:
            Recorder.num_failures += 1
            with suppress(RuntimeError):  # raised unless torch (before 2.12) still believes that the recording goes on
                torch._C._cuda_endAllocateToPool(generator.device.index, self._pool)
                torch._C._cuda_releasePool(generator.device.index, self._pool)
            fresh = torch.Generator(self._device)  # a recording that failed leaves the generator's state unusable
            fresh.set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            raise
        return Recording(graph, own, outputs)


@cache
def stream_of_recordings(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream on which all functions are recorded. torch keeps memory for matrix products on each stream for
    ever, some 32 MiB, so that a stream for each recorder of each trial would fill the memory of a worker."""
    return torch.cuda.Stream(device)


def wanted(execution: str, device: torch.device) -> bool:
    """Returns whether the `execution` of a configuration asks for recordings on this device."""
    return device.type == "cuda" and execution != "eager"


def announce(reason: str) -> None:
    """Says on the console why something is not recorded or compiled."""
    print(f"{reason}, so operations run one after another", file=sys.stderr)
