"""One training run, from configuration to exported student.

A student ViT learns from labels and, through objectives, from the outputs of teachers that saw a
privileged modality. After each epoch it is scored on the validation patients, and after some it is
saved. After most epochs only the goals are computed; all other scores are computed after the last.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmpkd import checkpoint, command, fit
from mmpkd.build import announcements, build, check, needed, paths_of_params, single_steps
from mmpkd.build import goals as goals_of
from mmpkd.cohort import facts
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE, TrialConfig, dump_trial, load_trial
from mmpkd.export import lookup, student_file
from mmpkd.export.origin import origin_of
from mmpkd.machine import recording
from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.files import write_atomically
from mmpkd.machine.resources import thread_warnings
from mmpkd.scoring import classify
from mmpkd.scoring.validation import USUAL_GOALS, Evaluator
from mmpkd.teachers.fitted import FittedTeacher, fit_teachers, quality_lines
from mmpkd.teachers.input_leakage import warnings_before_fitting
from mmpkd.training import pretrain, stages
from mmpkd.training.epoch import train_epoch
from mmpkd.training.stages import Run
from mmpkd.types import ConfigError, EpochReport, Mistake, SharedCache
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.training.run import train as train_vlm

HELP = """\
usage: python -m mmpkd.train config=FILE [key=value ...]

Trains one student from a configuration, and scores it on the validation
patients after each epoch. The same command continues an interrupted run.

  config=FILE   a configuration in YAML, such as the runs/NAME/best.yaml of a
                sweep
  out=DIR       the folder for checkpoint, configuration and metrics
                [runs/train]
  cache=DIR     the folder of stores and of teachers' outputs, shared with
                sweeps [cache]
  scores=last   all scores, with standard errors and baselines, are computed
                after the last epoch, with scores=every after every epoch. The
                other epochs have AUROC and, with ROIs, pointing [last]
  key=value     sets any leaf of the configuration

A run saves its state at most every checkpoint_seconds [60]; what an
interruption loses is trained again. On a CPU with the same thread count, the
same configuration gives the same numbers to the last digit (execution=compile
rounds differently).

examples
  python -m mmpkd.train config=runs/demo/best.yaml
  python -m mmpkd.train config=best.yaml epochs=5 optimizer.lr=3e-4
"""


def train(
    config: TrialConfig,
    cache: Path,
    folder: Path | None = None,
    resume: Path | None = None,
    report: Callable[[EpochReport], None] = lambda _: None,
    store: Store | None = None,
    goals: Sequence[str] = USUAL_GOALS,
    complete: Collection[int] = (),
    shared: SharedCache | None = None,
) -> list[EpochReport]:
    """Trains one student to the end, from the beginning or from a checkpoint.

    All random numbers derive from the seed and the epoch alone, so that the same configuration gives the same numbers,
    whether or not the training was resumed. On a CPU with the same thread count the numbers are equal bit by bit; on
    CUDA they are equal up to the order in which the kernels add.

    Args:
        cache: folder of stores and teacher outputs, shared by all trainings.
        folder: receives `last.pt`, at most every `config.checkpoint_seconds` and after the epochs `complete`, and
            `student.safetensors` at the end; None keeps nothing.
        resume: a `last.pt` to continue from.
        report: called after each new epoch. An exception that it raises ends the training, once this epoch is saved.
        store: the prepared cohort, if the caller has opened it; by default it is opened or prepared.
        goals: the scores that are computed after every epoch, of `validation.GOALS`.
        complete: epochs, counted from 1, after which all scores are computed, and which are on disk before they are
            reported. The last epoch always is such an epoch.
        shared: a cache that this machine shares with others; None if `cache` is the only one.

    Returns:
        The reports of all epochs, including those before a resumption.

    Raises:
        ConfigError, CohortError, TeacherError: mistakes of the user, before training starts.
        DivergedError: a loss term is no longer finite.
    """
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if mistakes := check(config, store.facts if store else facts(config.cohort)):
        raise ConfigError(mistakes)
    store = store or prepare(config.cohort, cache)
    if isinstance(config.student, VlmConfig):
        return train_vlm(config, cache, folder, resume, report, store, complete, shared)
    fitted = fit_teachers(config, store, cache, shared)
    run = run_of(config, store, fitted, device)
    student, objectives, rows = run.student, run.objectives, run.rows
    val, reads = store.rows("val", config.cohort.fold), config.student.reads
    records = recording.wanted(config.execution, device)
    evaluate = Evaluator(
        store, val, config.evaluation, student.grid, device, rows, reads=reads, goals=goals, record=records
    )
    evaluate.require_scorable()
    scores = [(name, key, value) for name, teacher in fitted.items() for key, value in teacher.quality.items()]
    quality = {f"teacher/{name}/{key}": value for name, key, value in scores}

    addresses = {name: teacher.address for name, teacher in fitted.items()}
    content = [stages.VERSION, config.fingerprint(), store.fingerprint, store.sample_ids.tolist(), addresses]
    identity, owner = fingerprint(content), checkpoint.owner(config, store.fingerprint)
    history: list[EpochReport] = []
    stage_files = stages.addresses(config, store, fitted, cache)
    if resume is not None:
        progress, history = checkpoint.restore(resume, student, objectives, run.enter, identity)
    else:
        finished, seconds = stages.recall(stage_files, student, objectives, shared), 0.0
        if config.pretrain and not finished:
            seconds = pretrain.pretrain(config, store, rows, student, cache, device, shared)
        progress = checkpoint.Progress(finished, 0, seconds)
        run.enter(progress.stage)

    def state(epoch: int, seconds: float = 0.0) -> dict[str, Any]:
        progress = checkpoint.Progress(run.index, epoch, seconds)
        return checkpoint.state_of(student, objectives, run.optimizer, history, progress, owner, identity)

    with checkpoint.CheckpointWriter(folder, config.checkpoint_seconds) as writer:
        earlier_seconds = train_to_last_stage(run, progress, stage_files, writer, state, shared)
        for epoch in range(len(history), config.epochs):
            started, is_complete = time.perf_counter(), epoch + 1 in {*complete, config.epochs}
            writer.begin_epoch()
            terms, step = train_epoch(run, epoch)
            metrics = evaluate(run.answerer) | quality if is_complete else evaluate.score_goals(run.answerer)
            seconds = time.perf_counter() - started + (0 if history else earlier_seconds)
            history.append(EpochReport(epoch + 1, step, seconds, terms, metrics))
            writer.offer(partial(state, epoch + 1), must=is_complete)
            report(history[-1])
    if folder is not None and reads == (IMAGE,):
        # The last epoch is scored completely, but a training that is resumed at its end has no epoch left.
        logits_NK, map_NRhw = evaluate.scored or evaluate.predict(run.answerer)
        labels = evaluate.target_NK, evaluate.known_NK
        card = student_file.card_of(config, store.facts, store.manifest, run.answerer, logits_NK, *labels)
        card = replace(card, map_threshold=evaluate.thresholds(map_NRhw), slices=student_file.slices_of(store))
        calibrated_NK = student_file.tempered(logits_NK, card.tasks, card.temperature)
        calibrated = classify.score(calibrated_NK, *labels, card.tasks)
        origin = origin_of(config, store, history[-1].metrics, calibrated)
        student_file.write(folder, run.answerer, card, store.digests(), origin)
    return history


def run_of(config: TrialConfig, store: Store, fitted: Mapping[str, FittedTeacher], device: torch.device) -> Run:
    """Returns the state of a training before its first step. The configuration must have passed `check`.

    Args:
        fitted: the active teachers, as `fit_teachers` returns them.
    """
    heads = {name: teacher.head for name, teacher in fitted.items() if teacher.head is not None}
    widths = {name: teacher.width for name, teacher in fitted.items()}
    student, objectives = build(config, store.facts, widths, heads)
    teachers = {name: teacher.only(needed(config, objectives, name)).to(device) for name, teacher in fitted.items()}
    rows, weight_2K = store.rows("train", config.cohort.fold), None
    if config.optimizer.class_weights == "balanced":
        labels = store.target_NK[rows], store.known_NK[rows]
        weight_2K = fit.on_device(fit.balanced_weights(*labels, store.facts.tasks), device)
    return Run(config, store, rows, student.to(device), objectives.to(device), teachers, device, weight_2K)


def train_to_last_stage(
    run: Run,
    progress: checkpoint.Progress,
    stage_files: Sequence[Path],
    writer: checkpoint.CheckpointWriter,
    state: Callable[[int, float], dict[str, Any]],
    shared: SharedCache | None,
) -> float:
    """Trains the stages before the last, caches each, and enters the last one. Returns the seconds that these stages
    took, including earlier attempts, or 0 if there is a single stage.

    Args:
        state: function that returns the content of a checkpoint from the number of finished epochs of the present stage
            and the seconds so far.
    """
    seconds, first = progress.seconds, progress.epoch
    while run.stage is not run.stages[-1]:
        assert run.stage.epochs is not None
        name = f"stage {run.stage.name}"
        for epoch in command.progress_bar(range(first, run.stage.epochs), name):
            started = time.perf_counter()
            writer.begin_epoch()
            train_epoch(run, epoch)
            seconds += time.perf_counter() - started
            writer.offer(partial(state, epoch + 1, seconds), must=epoch + 1 == run.stage.epochs)
        print(f"{name} ended with epoch {run.stage.epochs}, {seconds:.1f} s so far", file=sys.stderr)
        finished = run.stages[: run.index + 1]
        stages.keep(stage_files[run.index], finished, run.student, run.objectives, shared)
        run.enter(run.index + 1)
        first = 0
    return seconds


def saved_epoch(config: TrialConfig, path: Path) -> str:
    """Returns the last epoch that a checkpoint holds, in words.

    Raises:
        ConfigError: the checkpoint is damaged.
    """
    stage, epoch, _ = checkpoint.read(path)["place"]
    return f"epoch {epoch}" + (f" of stage {config.stages[stage].name}" if config.stages else "")


def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP."""
    if not words or command.asks_for_help(words):
        print(HELP, end="")
        return
    defaults = {"config": "", "out": "runs/train", "cache": "cache", "scores": "last"}
    own, overrides = command.own_words(words, defaults, TrialConfig.model_fields)
    if not own["config"]:
        missing = Mistake("config", "missing: write config=FILE, e.g. config=runs/demo/best.yaml")
        raise ConfigError([*command.misspelt_words(overrides, own, TrialConfig.model_fields), missing])
    if own["scores"] not in ("last", "every"):
        raise ConfigError.at("scores", f"is {own['scores']!r}; write scores=last or scores=every")
    config = load_trial(Path(own["config"]), overrides, (*defaults, *paths_of_params()))
    folder = Path(own["out"]) / f"{Path(own['config']).stem}-{config.fingerprint()}"
    last, cache = folder / checkpoint.NAME, Path(own["cache"])
    console = command.plain_console(highlight=False, soft_wrap=True)

    def show(report: EpochReport) -> None:
        write_atomically(folder / "config.yaml", dump_trial(config))
        shown = [f"{name} {value:.4f}" for name, value in report.terms.items() if "/" not in name]
        for goal in shown_goals:
            if goal in report.metrics:
                error = report.metrics.get(f"{goal}_se")  # None: not computed; NaN: unknown
                spread = "" if error is None else " ±?" if math.isnan(error) else f" ±{error:.4f}"
                shown.append(f"{goal} {report.metrics[goal]:.4f}{spread}")
        console.print(f"epoch {report.epoch:3}/{config.epochs}  {report.seconds:6.1f} s  {'  '.join(shown)}")

    if mistakes := check(config, facts(config.cohort)):
        raise ConfigError(mistakes)
    store = prepare(config.cohort, cache)
    shown_goals = dict.fromkeys([*USUAL_GOALS, *goals_of(store.facts)])
    command.make_folder(folder)
    command.warn([*thread_warnings(config.threads), *announcements(config, store.facts)])
    command.warn([*single_steps(config, store.facts), *warnings_before_fitting(config, store)])
    for line in quality_lines(config, fit_teachers(config, store, cache)):
        console.print(line)
    if last.exists():
        console.print(f"continuing {folder} after {saved_epoch(config, last)}")
    metrics = folder / "metrics.json"
    with command.written_to(folder):
        complete = range(1, config.epochs + 1) if own["scores"] == "every" else ()
        try:
            history = train(config, cache, folder, last if last.exists() else None, show, store, complete=complete)
        except KeyboardInterrupt:
            saved = saved_epoch(config, last) if last.exists() else "no epoch yet"
            console.print(f"saved: {saved} (between checkpoints: checkpoint_seconds={config.checkpoint_seconds:g})")
            raise
        write_atomically(metrics, json.dumps([asdict(report) for report in history], indent=1))
    for metric, score in history[-1].metrics.items():
        if metric.count("/") > 2:  # a score of answers by task and modality, of which there are hundreds
            continue
        console.print(f"{metric:32} {'not known' if math.isnan(score) else repr(score)}")
    partly = [report.epoch for report in history[:-1] if len(report.metrics) < len(history[-1].metrics)]
    if complete and partly:
        console.print(f"epochs {partly[0]} to {partly[-1]} were trained before scores=every and have the goals alone;")
        console.print("another out= trains and scores them again")
    name = lookup.ANSWERING if isinstance(config.student, VlmConfig) else lookup.NAME
    console.print(f"every epoch is in {metrics}; the student is in {folder / name}")


if __name__ == "__main__":
    with command.command_line() as words:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's request to end counts as Ctrl-C
        main(words)
