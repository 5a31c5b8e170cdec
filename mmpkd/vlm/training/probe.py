"""Measures the cost of a training of a vision-language student, before the cohort is prepared; see
`mmpkd.training.probe`."""

from __future__ import annotations

import tempfile
import time
from itertools import cycle
from pathlib import Path

import torch
from torch import nn

from mmpkd import checkpoint, fit
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.frames import Letterbox
from mmpkd.machine.resources import memory, process_bytes
from mmpkd.training.probe import Cost
from mmpkd.vlm.rows import moved
from mmpkd.vlm.training.run import VlmRun

WHOLE = Letterbox(1, 1, 1)  # a box has as many tokens wherever it lies


class VlmProbe:
    """A configuration that is built and ready to be timed. Its teacher, if there is one, has random weights.

    A validation is priced with answers as long as the longest true one, or `max_new_tokens` if that is less. Answers of
    an untrained model are as long as they may be, and those of a trained one seldom exceed the true ones.
    """

    def __init__(self, config: TrialConfig, store: Store):
        self._idle_bytes = process_bytes()
        torch.set_num_threads(config.threads)
        self._config = config
        with tempfile.TemporaryDirectory() as cache:
            self.run = VlmRun(untrained(config), store, Path(cache))
        self._targets = self.run.targets.at(config.epochs)

    def cost(self, seconds: float) -> Cost:
        """Times steps for about this long, at least one, and one validation."""
        run, kl = self.run, self._config.distillation.kl
        size = min(self._config.optimizer.batch_size, len(self._targets))
        # In random order as in a training: questions in a row share images, which makes a step cheaper.
        shuffled = run.items.shuffled(sorted(self._targets), fit.generator_for(self._config.seed, "probe"), size)
        batches = cycle([chosen for chosen in shuffled if len(chosen) == size])

        def step() -> None:
            run.learner.step(next(batches), self._targets, {}, run.teacher_logits, kl.weight, kl.temperature)

        run.vlm.train()
        step()  # libraries choose kernels
        started, count = self._now(), 0
        while not count or self._now() - started < seconds:
            step()
            count += 1
        each, started = (self._now() - started) / count, self._now()
        run.val.answers(run.vlm, range(len(run.val)), self._longest(), self._config.evaluation.batch_size, run.device)
        num_images = run.val.table["row"].nunique()
        cuda, device = run.device.type == "cuda", run.device
        return Cost(
            step_seconds=each,
            batch_size=size,
            validation_seconds=(self._now() - started) / num_images,
            checkpoint_bytes=self._checkpoint_bytes(),
            memory_bytes=torch.cuda.max_memory_reserved() if cuda else process_bytes(),
            idle_bytes=0 if cuda else self._idle_bytes,
            device_bytes=torch.cuda.get_device_properties(device).total_memory if cuda else memory().amount,
            num_steps=count,
            teacher_seconds=self._teacher_seconds(each),
        )

    def _teacher_seconds(self, step: float) -> float:
        """Returns the seconds that the teacher takes to learn, with steps of the same cost as the student's."""
        teacher = self._config.distillation.teacher
        if teacher is None or not self._config.distillation.needs_teacher:
            return 0.0
        per_item = step / min(self._config.optimizer.batch_size, len(self._targets))
        return teacher.epochs * len(self.run.items.answered) * per_item

    def _longest(self) -> int:
        """Returns the most tokens of a true answer, with its end, as far as the student may write so many."""
        run = self.run
        texts = run.val.table["answer"].dropna().unique()
        longest = max(len(run.processor.tokens.encode(moved(text, WHOLE, run.processor.box_steps))) for text in texts)
        return min(longest + 1, run.own.max_new_tokens)

    def _checkpoint_bytes(self) -> int:
        parts, progress = nn.ModuleDict({"targets": self.run.targets}), checkpoint.Progress(0, 0)
        state = checkpoint.state_of(self.run.vlm, parts, self.run.learner.optimizer, [], progress, "probe", "probe")
        with tempfile.TemporaryDirectory() as folder:
            return checkpoint.write(Path(folder), state).stat().st_size

    def _now(self) -> float:
        if self.run.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def untrained(config: TrialConfig) -> TrialConfig:
    """Returns the configuration with a teacher that does not learn and labels nothing, because only steps are timed."""
    parts = config.distillation
    teacher = parts.teacher and parts.teacher.model_copy(update={"epochs": 0})
    kl = parts.kl.model_copy(update={"top_k": None})
    pseudo = parts.pseudo_labels.model_copy(update={"use": False})
    changed = parts.model_copy(update={"teacher": teacher, "kl": kl, "pseudo_labels": pseudo})
    return config.model_copy(update={"distillation": changed})
