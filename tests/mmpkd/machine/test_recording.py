"""What a recorder does on the host, with a stand-in for CUDA; tests/mmpkd/training/test_gpu.py records on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpkd.images import usable_bytes
from mmpkd.machine import recording
from mmpkd.machine.recording import WARM_UP_CALLS, Recorder

INPUTS = [torch.ones(2)]


class Cuda:
    """Stands in for what a recorder uses of CUDA.

    Attributes:
        events: what was called, in order; for recordings with the number of their pool of memory.
        capturing: whether a recording is under way.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, int]] = []
        self.capturing, self.num_pools = False, 0
        generator = SimpleNamespace(
            device=torch.device("cuda", 0), get_state=torch.get_rng_state, graphsafe_set_state=lambda _: None
        )
        fresh = SimpleNamespace(set_state=lambda _: None, graphsafe_get_state=lambda: None)
        stream = SimpleNamespace(wait_stream=lambda _: None)
        fakes: dict[str, Any] = {
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.events.append(("replay", 0))),
            "Stream": lambda _: stream,
            "current_stream": lambda: stream,
            "default_generators": (generator,),
            "graph": self._graph,
            "graph_pool_handle": self._new_pool,
            "stream": self._nothing,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "Generator", lambda _: fresh)
        for name, event in (("_cuda_endAllocateToPool", "end"), ("_cuda_releasePool", "release")):
            monkeypatch.setattr(torch._C, name, self._note(event))

    def _note(self, event: str) -> Callable[[int, int], None]:
        return lambda _, pool: self.events.append((event, pool))

    def _new_pool(self) -> int:
        self.num_pools += 1
        return self.num_pools

    @contextmanager
    def _nothing(self, *_: Any) -> Iterator[None]:
        yield

    @contextmanager
    def _graph(self, graph: Any, pool: int, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.events.append(("record", pool))
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    monkeypatch.setattr(Recorder, "num_failures", 0)
    return Cuda(monkeypatch)


def recorder_of(function: recording.Function) -> Recorder:
    return Recorder(function, torch.device("cuda"), "a step")


def double(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [2 * inputs[0]]


def test_a_function_is_recorded_after_a_few_calls_once_for_each_shape(cuda: Cuda) -> None:
    recorder = recorder_of(double)
    for _ in range(WARM_UP_CALLS):
        recorder(INPUTS)
    assert cuda.events == []
    for inputs in (INPUTS, INPUTS, [torch.ones(3)], [torch.ones(3)]):  # nothing is recorded that never ran
        assert torch.equal(recorder(inputs)[0], 2 * inputs[0])
    assert cuda.events == [("record", 1), ("replay", 0), ("replay", 0), ("record", 1), ("replay", 0)]


def test_after_a_failure_the_function_runs_and_nothing_of_the_attempt_is_kept(
    cuda: Cuda, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a step that ran out of memory while it was recorded would do so again, and a worker would keep the memory.
    torch before 2.12 believes until `endAllocateToPool` that the recording goes on, and frees nothing."""
    attempts: list[weakref.ref[Tensor]] = []

    def function(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        activations = 2 * inputs[0]
        if cuda.capturing:
            attempts.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("out of memory")
        assert all(attempt() is None for attempt in attempts)
        return [activations]

    recorder = recorder_of(function)
    for _ in range(WARM_UP_CALLS + 2):
        assert torch.equal(recorder(INPUTS)[0], torch.full((2,), 2.0))
    assert cuda.events == [("record", 1), ("end", 1), ("release", 1)] and len(attempts) == 1
    assert capsys.readouterr().err.count("a step cannot be recorded as a CUDA graph (out of memory)") == 1


def test_other_functions_are_recorded_anew_after_a_failure(cuda: Cuda) -> None:
    """The failure gives the generator a new state. A recording draws from the one that it was made with, which no
    seed reaches any more. Torch refuses the old memory (`use_count > 0 INTERNAL ASSERT FAILED`)."""

    def fail(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        return inputs

    step, validation = recorder_of(double), recorder_of(fail)
    for _ in range(WARM_UP_CALLS + 1):
        step(INPUTS)
    for _ in range(WARM_UP_CALLS + 1):
        validation(INPUTS)
    cuda.events.clear()
    step(INPUTS)
    step(INPUTS)
    assert cuda.events == [("record", 4), ("replay", 0), ("replay", 0)]


def test_the_usable_memory_of_a_device_without_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training runs on `cuda`, not on `cuda:0`, and not every function of torch takes such a device."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1, 1000))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_getMemoryFraction", {0: 0.25}.__getitem__)
    assert usable_bytes(torch.device("cuda")) == usable_bytes(torch.device("cuda", 0)) == 250
