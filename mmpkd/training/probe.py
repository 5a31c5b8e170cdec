"""Measures the cost of a training on this machine, before the cohort is prepared.

Only the tables of the cohort are read. Images, ROIs and cached teacher outputs are random numbers of the right shape; a
teacher that runs at each step is present but not fitted. The timed steps and validations are those of a training.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from mmpkd import checkpoint, fit
from mmpkd.build import build, needed
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.machine import recording
from mmpkd.machine.resources import memory, process_bytes
from mmpkd.scoring.validation import USUAL_GOALS, Evaluator
from mmpkd.teachers import online, resolve, sized
from mmpkd.teachers.cache import CachedOutputs
from mmpkd.teachers.fitted import FittedTeacher
from mmpkd.teachers.fitting import HIDDEN, NUM_FOLDS, folds
from mmpkd.teachers.teacher import ResolvedTeacher
from mmpkd.training.execution import Stepper
from mmpkd.training.pretrain import seconds_per_image
from mmpkd.training.stages import Run
from mmpkd.training.stand_in import StandIn, evenly
from mmpkd.training.step import epoch_inputs
from mmpkd.types import Needs, TeacherError

MAX_VALIDATED = 512  # images of a timed validation; larger validation sets are extrapolated
MIN_FITTED, MAX_FITTED = 128, 5000  # samples of the first and the largest timed fit of a teacher
GRID = (14, 14)  # patch grid of the random teacher maps
ENOUGH_SECONDS = 2.0  # no larger fit is timed after one that took this long
STEPS_BETWEEN_CLOCKS = 10  # on a GPU, because reading the clock waits for the GPU, and no step does


@dataclass(frozen=True)
class Cost:
    """The cost of a configuration. Seconds are wall time, under the present load of the machine."""

    step_seconds: float  # one step of the optimiser on a full batch, mean over the epochs of all stages
    batch_size: int  # number of images, or questions, in each timed step
    validation_seconds: float  # time per image, mean over the epochs of a trial; see `Probe.cost`
    checkpoint_bytes: int
    memory_bytes: int  # peak, reserved on the GPU; without a GPU, of the whole process
    idle_bytes: int  # memory of the process before it builds anything; 0 on a GPU
    device_bytes: int  # memory of the GPU, or of the machine without one
    num_steps: int  # number of timed steps
    teacher_seconds: float = 0.0  # to fit the teacher of a vision-language student; others are timed on their own
    pretrain_seconds: float = 0.0  # an epoch of a pre-training, per training image
    warm_up_seconds: float = 0.0  # on a GPU, to choose kernels and record steps, once in each training


class Probe:
    """A configuration that is built, warmed up and ready to be timed."""

    def __init__(self, config: TrialConfig, store: Store, widths: Mapping[str, int]):
        """Builds the configuration. `widths` holds the embedding width of each active teacher; 0: no embedding."""
        self.idle_bytes = process_bytes()
        torch.set_num_threads(config.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        student, objectives = build(config, store.facts, widths)
        student.to(self.device)
        objectives.to(self.device)
        teachers, config = dict[str, FittedTeacher](), sized(config, store.facts)
        for name, width in widths.items():
            teacher, needs = resolve(config.teachers[name]), needed(config, objectives, name)
            if teacher.teacher.sees_view:
                teachers[name] = online.stand_in(teacher, store, config.cohort.fold).only(needs).to(self.device)
            else:
                teachers[name] = random_outputs(store, width, needs).to(self.device)
        train, val = store.rows("train", config.cohort.fold), store.rows("val", config.cohort.fold)
        self.run = Run(config, store, train, student, objectives, teachers, self.device)
        reads, record = config.student.reads, recording.wanted(config.execution, self.device)
        self.evaluate = Evaluator(
            store, val, config.evaluation, student.grid, self.device, reads=reads, goals=USUAL_GOALS, record=record
        )
        started = self._now()
        self._steps(0.0, least=2)  # allocates the state of the optimiser and lets libraries choose kernels
        for _ in range(recording.WARM_UP_CALLS + 1 if record else 1):
            self.evaluate.score_goals(self.run.answerer)
        # On a CPU these are a few steps like any other.
        self.warm_up_seconds = self._now() - started if self.device.type == "cuda" else 0.0
        self.num_val = len(val)

    def cost(self, seconds: float) -> Cost:
        """Times steps for two thirds of `seconds` and validations for one third, at least one of each. Reports the mean
        over steps, not the median, because the time of an epoch is the sum over all its steps, the slow ones included.
        Validations are those of most epochs, with the goals alone, and two complete ones: at a rung and at the end.
        """
        run, num_steps, step_seconds = self.run, 0, 0.0
        total = sum(stage.epochs or 0 for stage in run.stages)
        for index, stage in enumerate(run.stages):
            share = (stage.epochs or 0) / total
            if index != run.index:  # the first stage is warm, so that trials side by side begin to be timed together
                run.enter(index)
            count, spent = self._steps(seconds * 2 / 3 * share, least=1)
            num_steps, step_seconds = num_steps + count, step_seconds + share * spent / count
        num_validations, started = 0, self._now()
        while not num_validations or self._now() - started < seconds / 3:
            self.evaluate.score_goals(run.answerer)
            num_validations += 1
        of_goals, started = (self._now() - started) / num_validations, self._now()
        epochs, num_complete, cuda = run.config.epochs, min(run.config.epochs, 2), self.device.type == "cuda"
        for _ in range(num_complete):
            self.evaluate(run.answerer)
        validated = ((epochs - num_complete) * of_goals + self._now() - started) / epochs
        return Cost(
            step_seconds=step_seconds,
            batch_size=min(run.config.optimizer.batch_size, len(self.run.rows)),
            validation_seconds=validated / self.num_val,
            checkpoint_bytes=self._checkpoint_bytes(),
            memory_bytes=torch.cuda.max_memory_reserved() if cuda else process_bytes(),
            idle_bytes=0 if cuda else self.idle_bytes,
            device_bytes=torch.cuda.get_device_properties(self.device).total_memory if cuda else memory().amount,
            num_steps=num_steps,
            pretrain_seconds=seconds_per_image(run) if run.config.pretrain else 0.0,
            warm_up_seconds=self.warm_up_seconds,
        )

    def _steps(self, seconds: float, least: int) -> tuple[int, float]:
        """Returns the number of steps in `seconds`, at least `least`, and the seconds that they took."""
        run, count, between_clocks, started = self.run, 0, 1, self._now()
        step, is_new = run.step or Stepper(run), run.step is None
        run.step = step
        run.wake()
        fit.set_learning_rate(run.optimizer, run.config.optimizer.lr / 100)  # random images must not diverge
        if self.device.type == "cuda":
            between_clocks = STEPS_BETWEEN_CLOCKS
            if is_new:  # steps are not timed until batches of each size are recorded
                count = -recording.WARM_UP_CALLS - 2 * math.ceil(len(run.rows) / run.config.optimizer.batch_size)
        for inputs in chain.from_iterable(epoch_inputs(run, epoch) for epoch in range(sys.maxsize)):
            if count == 0:
                started = self._now()
            if count >= least and count % between_clocks == 0 and self._now() - started >= seconds:
                break
            step(inputs)
            count += 1
        return count, self._now() - started

    def _checkpoint_bytes(self) -> int:
        """Returns the size of a checkpoint, and holds a snapshot in memory meanwhile, as a training does."""
        run, begin = self.run, checkpoint.Progress(0, 0)
        state = checkpoint.state_of(run.student, run.objectives, run.optimizer, [], begin, "probe", "probe")
        with tempfile.TemporaryDirectory() as folder:
            return checkpoint.write(Path(folder), checkpoint.snapshot(state)).stat().st_size

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def random_outputs(store: Store, width: int, needs: Needs) -> CachedOutputs:
    """Returns random arrays in place of a teacher's needed outputs; `width` is that of its embedding."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"logits": (store.target_NK.shape[1],), "embedding": (width,), "map": GRID}
    shapes |= {f"{HIDDEN}{layer}": (width,) for layer in needs.teacher_layers}
    arrays = {name: torch.rand(len(store.sample_ids), *shape, generator=generator) for name, shape in shapes.items()}
    return CachedOutputs(arrays, {}, 0.0).only(needs)


def time_teacher(teacher: ResolvedTeacher, store: StandIn, fold: int) -> tuple[float, int]:
    """Returns the seconds that a teacher takes to be fitted (out of fold and on all patients) and to predict, and the
    width of its embedding. The time of an ensemble is that of its members.

    The timed fits have a single epoch. The number of samples is doubled while a fit is quick. Two sizes separate the
    fixed seconds of a fit from those per sample.

    Raises:
        TeacherError, CohortError: the teacher cannot be fitted to these samples.
    """
    if teacher.members:
        return sum(time_teacher(member, store, fold)[0] for member in teacher.members.values()), 0
    params = teacher.params
    train, val = store.rows("train", fold), store.rows("val", fold)
    folds(store, train, params.seed)
    single_epoch = params.model_copy(update={"epochs": 1}) if params.passes > 1 else params
    instance = teacher.teacher(single_epoch, store.facts)
    timed: list[tuple[int, float]] = [(0, 0.0)]
    most = MIN_FITTED
    while True:
        subset = store.some(evenly(train, most))
        rows = np.arange(len(subset.sample_ids))
        most *= 2
        try:
            if len(timed) == 1:
                instance.fit(subset, rows)  # the very first fit imports libraries and chooses kernels
            started = time.perf_counter()
            instance.fit(subset, rows)
        except TeacherError:
            if len(rows) == len(train):
                raise
            continue  # these few samples lack a rare class
        timed.append((len(rows), time.perf_counter() - started))
        if len(rows) == len(train) or most > MAX_FITTED or (len(timed) > 2 and timed[-1][1] > ENOUGH_SECONDS):
            break
    (fewer, quick), (more, slow) = timed[-2:]
    per_sample = max(slow - quick, 0.0) / (more - fewer)
    per_fit = max(slow - per_sample * more, 0.0)
    started = time.perf_counter()
    embedding = instance.outputs(subset, rows).embedding_BD
    per_output = (time.perf_counter() - started) / len(rows)
    # Five fold models are fitted to four fifths of the samples each, and one to all. A training sample has two outputs.
    seconds = (NUM_FOLDS + 1) * per_fit + NUM_FOLDS * per_sample * params.passes * len(train)
    return seconds + per_output * (2 * len(train) + len(val)), 0 if embedding is None else embedding.shape[1]
