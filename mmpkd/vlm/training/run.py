"""One training of a vision-language student, from configuration to exported student."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmpkd import checkpoint
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.machine.checksums import fingerprint
from mmpkd.types import EpochReport, SharedCache
from mmpkd.vlm import exported
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.model import build
from mmpkd.vlm.scores.goals import all_scores, goals, own_scores
from mmpkd.vlm.scores.yardsticks import yardsticks
from mmpkd.vlm.student import card_of
from mmpkd.vlm.training.items import Items
from mmpkd.vlm.training.learner import Learner, TeacherLogits
from mmpkd.vlm.training.targets import Targets, corrections, rounds_begin
from mmpkd.vlm.training.teacher import CachedLogits, FittedVlmTeacher, fit_teacher, source_of
from mmpkd.vlm.vocabulary import text_processor

VERSION = 4  # must be raised when the same configuration would give other numbers


class VlmRun:
    """The state of a training: the student, its items and its teacher. The configuration must have passed `check`."""

    def __init__(self, config: TrialConfig, store: Store, cache: Path, shared: SharedCache | None = None):
        assert isinstance(config.student, VlmConfig)
        self.config, self.store, self.own = config, store, config.student
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        train, val = store.rows("train", config.cohort.fold), store.rows("val", config.cohort.fold)
        questions = store.questions
        self.judged = own_scores(questions)  # of the cohort, whatever part is scored
        known = questions[questions["row"].isin(train)]
        texts = [*known["question"], *known["answer"].dropna()]
        self.processor = text_processor(self.own, texts)
        self.items = Items(store, train, self.own, self.processor)
        self.val = Items(store, val, self.own, self.processor)
        self.teacher: FittedVlmTeacher | None = fit_teacher(config, store, self.processor, cache, self.device, shared)
        size, channels = store.facts.image_size, store.facts.channels
        vlm = build(self.own, self.processor, size, channels, config.seed, "student")
        self.vlm = vlm.to(self.device)
        optimizer = config.optimizer
        self.learner = Learner(
            self.vlm,
            self.items,
            optimizer.lr,
            optimizer.weight_decay,
            optimizer.clip_norm,
            optimizer.batch_size,
            config.schedule,
            config.seed,
            "student",
        )
        parts, pseudo = config.distillation, dict[int, tuple[str, float]]()
        if parts.pseudo_labels.use:
            assert self.teacher is not None
            answered = set(self.items.answered)
            pseudo = self.teacher.answers([item for item in range(len(self.items)) if item not in answered])
        self.targets = Targets(self.items.table["answer"], pseudo, parts.pseudo_labels, config.epochs)
        self.teacher_logits = self._teacher_logits()

    def _teacher_logits(self) -> TeacherLogits | None:
        kl = self.config.distillation.kl
        if not kl.weight:
            return None
        assert self.teacher is not None
        if kl.top_k is None:
            return self.teacher.logits
        logits = CachedLogits(self.teacher, self.targets.at(self.config.epochs - 1), kl.top_k)
        self.teacher.vlm.cpu()  # nothing asks it again, because corrections go without cached logits
        return logits

    def train_epoch(self, epoch: int, step: int) -> tuple[dict[str, float], int]:
        """Trains one epoch, after a round of correction if one is due. Returns the mean loss terms and the steps."""
        config, kl = self.config, self.config.distillation.kl
        if epoch in rounds_begin(config.epochs, config.distillation.corrections.rounds):
            self._correct(epoch)
        targets = self.targets.at(epoch)
        return self.learner.epoch(
            epoch, config.epochs, targets, step, 0.0, self.teacher_logits, kl.weight, kl.temperature
        )

    def _correct(self, epoch: int) -> None:
        """Replaces the targets of items that the student answers wrong by the best of the teacher's answers."""
        rule, true = self.config.distillation.corrections, self.targets.true
        chosen = sorted(true)
        size = self.config.evaluation.batch_size
        texts, _ = self.items.answers(self.vlm, chosen, self.own.max_new_tokens, size, self.device)
        answers = dict(zip(chosen, texts, strict=True))
        corrected = corrections(true, answers, rule, lambda wrong, draw: self.sampled(wrong, epoch, draw))
        self.targets.correct(corrected, epoch)

    def sampled(self, wrong: Sequence[int], epoch: int, draw: int) -> list[str]:
        """Returns an answer of the teacher, which is shown the truth, to each of these items. The same epoch and draw
        give the same answers."""
        assert self.teacher is not None
        return self.teacher.samples(wrong, self.targets.true, (epoch, draw), self.config.seed)

    def answers(self) -> list[str]:
        """Returns the student's answers to all validation items."""
        size = self.config.evaluation.batch_size
        return self.val.answers(self.vlm, range(len(self.val)), self.own.max_new_tokens, size, self.device)[0]

    def metrics(self, complete: bool) -> dict[str, float]:
        """Returns the goals on the validation patients, or all scores with those of answers that see no image."""
        scored = self.val.scored(self.answers())
        scores = goals(scored, self.judged)
        if complete:
            scores |= all_scores(scored, judged=self.judged)
            scores |= yardsticks(self.items.table[self.items.table["answer"].notna()], scored, self.judged)
        metrics = {f"val/{name}": value for name, value in scores.items()}
        if complete and self.teacher is not None:
            metrics |= {f"teacher/{name}": value for name, value in self.teacher.quality.items()}
        return metrics


def train(
    config: TrialConfig,
    cache: Path,
    folder: Path | None,
    resume: Path | None,
    report: Callable[[EpochReport], None],
    store: Store,
    complete: Collection[int] = (),
    shared: SharedCache | None = None,
) -> list[EpochReport]:
    """Trains a vision-language student to the end; see `mmpkd.train.train`. The goals are computed after every epoch.

    A checkpoint holds which of the teacher's draws correct which targets, so that a resumed training goes on with the
    same ones.
    """
    run = VlmRun(config, store, cache, shared)
    parts = nn.ModuleDict({"targets": run.targets})
    address = run.teacher and run.teacher.address
    content = [VERSION, config.fingerprint(), store.fingerprint, store.sample_ids.tolist(), address]
    content.append(source_of(run.own.model))
    identity, owner = fingerprint(content), checkpoint.owner(config, store.fingerprint)
    history: list[EpochReport] = []
    optimizer = run.learner.optimizer
    if resume is not None:
        _, history = checkpoint.restore(resume, run.vlm, parts, lambda _: optimizer, identity)
        run.targets.recover(run.sampled)

    def state(epoch: int) -> Mapping[str, Any]:
        progress = checkpoint.Progress(0, epoch)
        return checkpoint.state_of(run.vlm, parts, optimizer, history, progress, owner, identity)

    with checkpoint.CheckpointWriter(folder, config.checkpoint_seconds) as writer:
        for epoch in range(len(history), config.epochs):
            started, is_complete = time.perf_counter(), epoch + 1 in {*complete, config.epochs}
            writer.begin_epoch()
            terms, step = run.train_epoch(epoch, history[-1].step if history else 0)
            metrics = run.metrics(is_complete)
            history.append(EpochReport(epoch + 1, step, time.perf_counter() - started, terms, metrics))
            writer.offer(partial(state, epoch + 1), must=is_complete)  # type: ignore[arg-type]
            report(history[-1])
    if folder is not None:
        card = card_of(config, store, history[-1].metrics)
        exported.write(folder, run.vlm, run.own, store.facts.image_size, store.facts.channels, card)
    return history
