"""The part of benchmarks/gpu.py that splits an epoch of the product's own training into its pieces."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from benchmarks.gpu_cohort import Cohorts, Scale, config_of
from benchmarks.gpu_measure import Budget, free_memory, now
from benchmarks.gpu_steps import Row
from benchmarks.gpu_variants import run_of
from mmpkd import checkpoint
from mmpkd import train as training
from mmpkd.config import dump_trial
from mmpkd.machine.files import write_atomically
from mmpkd.scoring.validation import Evaluator
from mmpkd.training.step import epoch_inputs
from mmpkd.types import EpochReport

EPOCHS = 6  # the first does not count (kernels are chosen, graphs captured), nor the last, which saves everything
PIECES = {  # what is timed, and where `mmpkd.train` finds it
    "steps": (training, "train_epoch"),
    "validation": (Evaluator, "score_goals"),
    "all scores": (Evaluator, "__call__"),  # after the last epoch
    "checkpoint": (checkpoint.CheckpointWriter, "offer"),
}


@contextmanager
def timed(owner: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Context manager in which each call of a function appends its duration to `seconds`, the GPU's work included."""
    function = getattr(owner, name)

    def wrapper(*args: Any, **options: Any) -> Any:
        started = now()
        result = function(*args, **options)
        seconds.append(now() - started)
        return result

    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        setattr(owner, name, function)


def epoch_part(scale: Scale, cohorts: Cohorts, budget: Budget, keep: Callable[[Row], None]) -> None:
    """Trains a few epochs with `mmpkd.train.train` itself, and reports the median seconds of each piece of an epoch.

    The last epoch has all scores instead of the goals, and waits for its checkpoint (`saving`); a long training does
    both at rungs and at its end. `data` is the time that the batches of an epoch take by themselves, and is a part of
    `steps` as far as the two do not overlap.
    """
    for name, batch_size in scale.epoch_cells:
        if budget.is_spent():
            return
        free_memory()
        store = cohorts.store(scale.sizes[name].image_size)
        config = config_of(scale.sizes[name], batch_size).model_copy(update={"epochs": EPOCHS})
        folder = cohorts.folder / f"epochs-{name.replace('/', '-')}"
        folder.mkdir()
        seconds: dict[str, list[float]] = defaultdict(list)
        ends: list[float] = []

        def report(epoch: EpochReport, folder: Any = folder, config: Any = config, ends: list[float] = ends) -> None:
            write_atomically(folder / "config.yaml", dump_trial(config))
            write_atomically(folder / "epoch.json", json.dumps(asdict(epoch)))
            ends.append(now())

        with ExitStack() as stack:
            for piece, (owner, function) in PIECES.items():
                stack.enter_context(timed(owner, function, seconds[piece]))
            spans = seconds["reporting"]
            training.train(config, cohorts.folder / "cache", folder, report=_timed_report(report, spans), store=store)
        epochs = [end - begin for begin, end in pairwise(ends)][:-1]
        row: Row = {"model": name, "batch_size": batch_size, "images": scale.num_train, "validated": scale.num_val}
        row["epoch"] = statistics.median(epochs)
        row["saving"], row["all scores"] = seconds["checkpoint"][-1], seconds.pop("all scores")[-1]
        row |= {piece: statistics.median(spans[1 : EPOCHS - 1]) for piece, spans in seconds.items()}
        row["data"] = _data_seconds(config, store)
        row["share_of_steps"] = row["steps"] / row["epoch"]
        keep(row)


def _timed_report(report: Callable[[EpochReport], None], seconds: list[float]) -> Callable[[EpochReport], None]:
    def wrapper(epoch: EpochReport) -> None:
        started = time.perf_counter()
        report(epoch)
        seconds.append(time.perf_counter() - started)

    return wrapper


def _data_seconds(config: Any, store: Any) -> float:
    run = run_of(config, store)
    spans = []
    for epoch in range(3):
        started = now()
        for inputs in epoch_inputs(run, epoch):
            run.samples.batch(inputs)
        spans.append(now() - started)
    return statistics.median(spans[1:])
