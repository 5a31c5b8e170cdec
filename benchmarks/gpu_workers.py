"""Trainings of benchmarks/gpu.py in processes of their own: several packed on one card, and executions of the step that
may take too long to prepare."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_cohort import Cohorts, Scale, config_of
from benchmarks.gpu_measure import Budget, free_memory, now
from benchmarks.gpu_steps import Row, measured
from benchmarks.gpu_variants import ours
from mmpkd import images
from mmpkd.images import MAX_SHARE

MPS = "nvidia-cuda-mps-control"
START_SECONDS = 120.0  # for a process to import everything, and for the first steps of a training
ON_HOST = "auto, images on the host"  # the way in which images are read that do not fit the GPU
PACKED_SPAN = 25  # steps between two looks at the clock


class Late(Exception):
    """A worker did not answer in time."""


class Worker:
    """A process that trains on request."""

    def __init__(self, scale: Scale, folder: Path, carried: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, scale, folder, carried), daemon=True)
        self.process.start()
        other.close()

    def send(self, *request: Any) -> None:
        self.connection.send(request)

    def receive(self, seconds: float) -> Any:
        """Returns the answer to the last request.

        Raises:
            Late: there was none within the given seconds, or the process has died.
        """
        try:
            if self.connection.poll(seconds):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join(10)
            raise Late(f"the process ended with status {self.process.exitcode}") from None
        raise Late(f"no answer within {seconds:.0f} s")

    def end(self) -> None:
        """Ends the process: by request, so that it leaves the GPU in order, and by signals if it does not answer."""
        with suppress(ConnectionError):
            self.send("end")
        for insist in (self.process.terminate, self.process.kill):
            self.process.join(5)
            if self.process.is_alive():
                insist()


def serve(connection: Connection, scale: Scale, folder: Path, carried: Path) -> None:
    """Answers the requests of a `Worker`; an error is an answer, too."""
    torch.set_num_threads(1)
    cohorts, advance, batch_size = Cohorts(scale, folder, carried), None, 0
    while (message := connection.recv()) != ("end",):
        request, *values = message
        try:
            if request == "build":
                name, batch_size = values
                advance = None  # frees the memory of the training before
                free_memory()
                model = scale.sizes[name]
                store = cohorts.store(model.image_size)
                advance = ours(config_of(model, batch_size), store, scale.most_steps(batch_size))
                advance(scale.profiled[1])
                now()
                connection.send(torch.cuda.max_memory_reserved() / 2**20 if torch.cuda.is_available() else 0.0)
            elif request == "train":
                assert advance is not None
                connection.send(_images_per_second(advance, batch_size, scale, *values))
            elif request == "measure":
                name, batch_size, execution, peak = values
                images.MAX_SHARE = 0.0 if execution == ON_HOST else MAX_SHARE
                config = config_of(scale.sizes[name], batch_size, "auto" if execution == ON_HOST else execution)
                store = cohorts.store(scale.sizes[name].image_size)
                build_variant = partial(ours, config, store, scale.most_steps(batch_size))
                connection.send(measured(build_variant, config, scale, cohorts, peak))
        except Exception as error:
            connection.send({"error": f"{type(error).__name__}: {str(error)[:200]}"})


def _images_per_second(advance: Any, batch_size: int, scale: Scale, start: float, seconds: float) -> float:
    """Trains from a point in time, which all packed processes share, for some seconds."""
    steps, done = min(PACKED_SPAN, scale.steps(batch_size)), 0
    time.sleep(max(0.0, start - time.time()))
    started = now()
    while now() - started < seconds:
        advance(steps)
        done += steps
    return done * batch_size / (now() - started)


@contextmanager
def mps() -> Iterator[str]:
    """Runs CUDA's multi-process service for the processes that are started meanwhile, and ends it in any case. Yields
    an empty text, or why the service cannot be used."""
    if not torch.cuda.is_available() or shutil.which(MPS) is None:
        yield f"{MPS} is not installed" if torch.cuda.is_available() else "there is no GPU"
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        names = {"CUDA_MPS_PIPE_DIRECTORY": "pipe", "CUDA_MPS_LOG_DIRECTORY": "log"}
        own = {variable: str(Path(folder) / name) for variable, name in names.items()}
        for path in own.values():
            Path(path).mkdir()
        started = subprocess.run([MPS, "-d"], env=os.environ | own, capture_output=True, text=True, check=False)
        if started.returncode:
            yield f"{MPS} failed: {(started.stderr or started.stdout).strip()[:200]}"
            return
        os.environ.update(own)
        try:
            yield ""
        finally:
            quitting = {"input": "quit\n", "timeout": 30, "capture_output": True, "text": True, "check": False}
            try:
                subprocess.run([MPS], env=os.environ | own, **quitting)
            finally:
                for variable in own:
                    os.environ.pop(variable)


def packed_part(scale: Scale, cohorts: Cohorts, carried: Path, budget: Budget, keep: Callable[[Row], None]) -> None:
    """Trains 1, 2, 4, ... students side by side, each in a process of its own, plain and under MPS.

    The processes of the largest number are started once, and hold their memory while fewer of them train: `each_mib` is
    what one of them has reserved, `used_mib` what is in use on the whole card, for all of them.
    """
    if budget.is_spent():
        return
    for name, _ in scale.packed_cells:
        cohorts.path(scale.sizes[name].image_size)
    half = budget.part(budget.left() / 2)
    _packed("plain", scale, cohorts.folder, carried, half, keep)
    budget.was_short |= half.was_short
    with mps() as problem:
        if problem:
            keep({"service": "MPS", "error": problem})
        else:
            _packed("MPS", scale, cohorts.folder, carried, budget, keep)


def _packed(
    service: str, scale: Scale, folder: Path, carried: Path, budget: Budget, keep: Callable[[Row], None]
) -> None:
    workers = [Worker(scale, folder, carried) for _ in range(max(scale.packed))]
    try:
        for name, batch_size in scale.packed_cells:
            row: Row = {"service": service, "model": name, "batch_size": batch_size}
            if budget.is_spent():
                return
            for worker in workers:
                worker.send("build", name, batch_size)
            reserved = [worker.receive(START_SECONDS) for worker in workers]
            for count in scale.packed:
                answers = reserved[:count]
                if not _errors(answers):
                    answers = _together(workers[:count], scale.seconds)
                if errors := _errors(answers):
                    keep(row | {"count": count, "error": errors[0]})
                    continue
                speed = {"images_per_second": sum(answers)}
                keep(row | {"count": count, "each_mib": max(reserved[:count]), "used_mib": used_mib()} | speed)
    except Late as error:
        keep({"service": service, "error": str(error)})
    finally:
        for worker in workers:
            worker.end()


def _errors(answers: Sequence[Any]) -> list[str]:
    return [answer["error"] for answer in answers if isinstance(answer, dict)]


def used_mib() -> float:
    """Returns the memory of the GPU that is in use, by all processes and by their contexts; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def _together(workers: Sequence[Worker], seconds: float) -> list[Any]:
    """Returns the images a second of each worker, or its error."""
    start = time.time() + 0.3
    for worker in workers:
        worker.send("train", start, seconds)
    return [worker.receive(START_SECONDS) for worker in workers]


def executions_part(
    scale: Scale, cohorts: Cohorts, carried: Path, peak: float, budget: Budget, keep: Callable[[Row], None]
) -> None:
    """Measures ours with each execution that a configuration can name, and with images that stay in the memory of the
    host. They run in another process, which is ended when the budget is spent, because compiling can take minutes."""
    cells = [(execution, cell) for execution in (ON_HOST, *scale.executions) for cell in scale.execution_cells]
    worker = None
    for execution, (name, batch_size) in cells:
        if budget.is_spent():
            break
        cohorts.path(scale.sizes[name].image_size)
        row: Row = {"model": name, "batch_size": batch_size, "variant": execution}
        worker = worker or Worker(scale, cohorts.folder, carried)
        try:
            worker.send("measure", name, batch_size, execution, peak)
            keep(row | worker.receive(budget.left()))
        except Late as error:
            budget.was_short = True
            keep(row | {"error": str(error)})
            worker.end()
            worker = None
    if worker is not None:
        worker.end()
