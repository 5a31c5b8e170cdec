"""Measures the cost of a training on this machine, before the cohort is prepared.

Only the tables of the cohort are read. Images, ROIs and cached teacher outputs are random numbers of the right shape; a
teacher that runs at each step is present but not fitted. The timed steps and validations are those of a training.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mmpkd import checkpoint, fit
from mmpkd.build import build, needed
from mmpkd.cohort import reader_for, splits
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.source import scan_cohort
from mmpkd.cohort.store import LABEL, PRIVILEGED, Store
from mmpkd.config import CohortConfig, TrialConfig
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
from mmpkd.training.step import epoch_inputs
from mmpkd.types import Needs, TeacherError

MAX_VALIDATED = 512  # images of a timed validation; larger validation sets are extrapolated
MIN_FITTED, MAX_FITTED = 128, 5000  # samples of the first and the largest timed fit of a teacher
GRID = (14, 14)  # patch grid of the random teacher maps
ENOUGH_SECONDS = 2.0  # no larger fit is timed after one that took this long
STEPS_BETWEEN_CLOCKS = 10  # on a GPU, because reading the clock waits for the GPU, and no step does


class StandIn(Store):
    """A stand-in for a prepared cohort: its tables are the real ones, but its pixels are random, and every image has a
    random ROI for every label.

    Args:
        samples: a table like samples.parquet of a store, without the geometry.
        images: whether the stand-in has pixels. False saves the memory for pixels where only tables are read.
        text: a table like text.parquet of a store.

    Attributes:
        notes: remarks of the reader on the tables, one sentence each.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, facts: Facts, samples: pd.DataFrame, images: bool = True, text: pd.DataFrame | None = None):
        self.fingerprint = os.urandom(8).hex()  # no other stand-in has the same regions
        self.facts, self._samples, self._text = facts, samples, text
        labels = samples[[name for name in samples if str(name).startswith(LABEL)]].to_numpy(np.float32)
        self.sample_ids: NDArray[np.str_] = samples.index.to_numpy(dtype=str)
        self.patient_N: NDArray[np.int64] = np.unique(samples["patient"], return_inverse=True)[1].astype(np.int64)
        self.known_NK: NDArray[np.bool_] = ~np.isnan(labels)
        self.target_NK: NDArray[np.float32] = np.nan_to_num(labels, nan=0.0)
        size = facts.image_size
        self.content_box_N4: NDArray[np.int64] = np.tile([0, 0, size, size], (len(samples), 1)).astype(np.int64)
        shape = (len(samples) if images else 0, facts.channels, size, size)
        self.image_NCHW: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def thinned(self, most_train: int, most_val: int, fold: int) -> pd.DataFrame:
        """Returns a table of at most `most_train` and `most_val` evenly spaced samples, without privileged columns."""
        parts = ((self.rows("train", fold), most_train), (self.rows("val", fold), most_val))
        kept = np.sort(np.concatenate([evenly(rows, most) for rows, most in parts]))
        return self._samples[[name for name in self._samples if not str(name).startswith(PRIVILEGED)]].iloc[kept]

    def some(self, rows: NDArray[np.int64]) -> StandIn:
        """Returns a stand-in with the samples at `rows` and all their teacher inputs; all samples share one image."""
        subset = StandIn(self.facts, self._samples.iloc[rows], images=False, text=self._text)
        size = self.facts.image_size
        pixels = np.random.default_rng(0).integers(0, 256, (self.facts.channels, size, size), np.uint8)
        subset.image_NCHW = np.broadcast_to(pixels, (len(rows), *pixels.shape))
        return subset

    def text(self, sections: Sequence[str]) -> pd.DataFrame:
        assert self._text is not None
        return self._text.loc[self._samples.index, list(sections)]

    def view(self, name: str) -> NDArray[np.uint8]:
        return self.image_NCHW

    def roi_mask(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        size = self.facts.image_size
        masks = np.zeros((len(rows), len(self.facts.roi_labels), size, size), bool)
        corners = np.random.default_rng(0).integers(0, size * 2 // 3, (len(rows), 2))
        for mask, (top, left) in zip(masks, corners, strict=True):
            mask[:, top : top + size // 4, left : left + size // 4] = True
        return masks


def stand_in(config: CohortConfig) -> StandIn:
    """Reads the tables of a cohort, but no pixels, and assigns its patients to parts as `prepare` does.

    Raises:
        ConfigError, CohortError: the same mistakes in the tables that `prepare` reports.
    """
    reader = reader_for(config)
    scan = scan_cohort(config, reader)
    samples = scan.samples.assign(split=splits.assign(scan), patient=scan.samples["patient"].astype(str))
    table = pd.concat([samples, scan.labels.add_prefix(LABEL), scan.privileged.add_prefix(PRIVILEGED)], axis=1)
    tables = StandIn(scan.facts(config.image_size, reader.credentialed), table, images=False, text=scan.text)
    tables.notes = scan.notes
    return tables


def evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Returns at most `most` of the rows, evenly spaced."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


@dataclass(frozen=True)
class Cost:
    """The cost of a configuration. Seconds are wall time, under the present load of the machine."""

    step_seconds: float  # one step of the optimiser on a full batch, mean over the epochs of all stages
    batch_size: int  # number of images in each timed step
    validation_seconds: float  # time per image, mean over the epochs of a trial; see `Probe.cost`
    setup_seconds: float  # to build student, objectives and evaluator
    checkpoint_bytes: int
    memory_bytes: int  # peak, reserved on the GPU; without a GPU, of the whole process
    idle_bytes: int  # memory of the process before it builds anything; 0 on a GPU
    device_bytes: int  # memory of the GPU, or of the machine without one
    num_steps: int  # number of timed steps
    pretrain_seconds: float = 0.0  # an epoch of a pre-training, per training image


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
        started = self._now()
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
        self.setup_seconds = self._now() - started
        self._steps(0.0, least=2)  # allocates the state of the optimiser and lets libraries choose kernels
        for _ in range(recording.WARM_UP_CALLS + 1 if record else 1):
            self.evaluate.score_goals(self.run.answerer)
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
            setup_seconds=self.setup_seconds,
            checkpoint_bytes=self._checkpoint_bytes(),
            memory_bytes=torch.cuda.max_memory_reserved() if cuda else process_bytes(),
            idle_bytes=0 if cuda else self.idle_bytes,
            device_bytes=torch.cuda.get_device_properties(self.device).total_memory if cuda else memory().amount,
            num_steps=num_steps,
            pretrain_seconds=seconds_per_image(run) if run.config.pretrain else 0.0,
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
