"""The story of one training run.

A student ViT learns from labels and, through objectives, from the answers of teachers that saw a
privileged modality; after each epoch it is scored on the validation patients and saved.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from rich.progress import track
from torch import Tensor, nn

from mmpkd import checkpoint, command, export, stages
from mmpkd.augment import View, apply_light, apply_view, draw_views
from mmpkd.build import announcements, build, check, needed, paths_of_params, single_steps
from mmpkd.cohort import facts
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE, TASK, TrialConfig, dump_trial, load_trial
from mmpkd.fit import (
    TermLog,
    autocast,
    balanced_weights,
    generator_for,
    gradient_shares,
    learning_rate,
    objective_factor,
    parameters_of,
    seeded,
    task_loss,
)
from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.resources import cores
from mmpkd.scoring.validation import Evaluator
from mmpkd.stages import Run
from mmpkd.teachers.fitted import fit_teachers, quality_lines
from mmpkd.teachers.input_leakage import warnings_before_fitting
from mmpkd.types import Batch, ConfigError, EpochReport

HELP = """\
python -m mmpkd.train config=FILE [key=value ...]

Trains one student, as a TrialConfig says, and scores it on the validation patients after each epoch.

  config=FILE   a TrialConfig in YAML, such as the runs/<name>/best.yaml of a sweep
  out=DIR       where checkpoint, configuration and metrics go    [runs/train]
  cache=DIR     stores and teacher outputs, shared with sweeps    [cache]
  key=value     any leaf of the configuration, e.g. optimizer.lr=3e-4 epochs=5 cohort.root=DIR

The same command continues an interrupted run. On a CPU with the same thread count the same
configuration gives the same numbers, to the last digit.
"""


SHARES_EVERY = 5  # epochs: a share costs a backward pass for each term


def train(
    config: TrialConfig,
    cache: Path,
    folder: Path | None = None,
    resume: Path | None = None,
    report: Callable[[EpochReport], None] = lambda _: None,
    store: Store | None = None,
) -> list[EpochReport]:
    """Trains one student from the beginning, or from a checkpoint, to the end.

    Every random draw comes from the seed and the epoch alone, so the same configuration gives the
    same numbers, resumed or not: to the bit on a CPU with the same thread count; on CUDA up to the
    order in which its kernels add.

    Args:
        cache: where stores and teacher outputs live, shared by all trainings.
        folder: where `last.pt` goes after each epoch, and `student.safetensors` in the end; None keeps nothing.
        resume: a `last.pt` to continue from.
        report: called after each new epoch, once its checkpoint is on disk.
        store: the prepared cohort, if the caller has it open; else it is found or prepared.

    Returns:
        The reports of all epochs, those before a resumption included.

    Raises:
        ConfigError, CohortError, TeacherError: the user's mistakes, before training starts.
        DivergedError: a loss term is no longer finite.
    """
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if mistakes := check(config, store.facts if store else facts(config.cohort)):
        raise ConfigError(mistakes)
    store = store or prepare(config.cohort, cache)
    outputs = fit_teachers(config, store, cache)
    heads = {name: one.head for name, one in outputs.items() if one.head is not None}
    student, objectives = build(config, store.facts, {name: one.width for name, one in outputs.items()}, heads)
    teachers = {name: one.only(needed(config, objectives, name)).to(device) for name, one in outputs.items()}
    student.to(device)
    objectives.to(device)
    rows = store.rows("train", config.cohort.fold)
    weight_2K = None
    if config.optimizer.class_weights == "balanced":
        weight_2K = on(device, balanced_weights(store.target_NK[rows], store.known_NK[rows], store.facts.tasks))
    run = Run(config, store, rows, student, objectives, teachers, device, weight_2K)
    val, reads = store.rows("val", config.cohort.fold), config.student.reads
    evaluate = Evaluator(store, val, config.evaluation, student.grid, device, rows, reads=reads)
    evaluate.require_scorable()
    quality = {f"teacher/{name}/{key}": value for name, one in outputs.items() for key, value in one.quality.items()}

    told = {name: one.address for name, one in outputs.items()}
    identity = fingerprint([stages.VERSION, config.fingerprint(), store.fingerprint, store.sample_ids.tolist(), told])
    owner = checkpoint.owner(config, store.fingerprint)
    history: list[EpochReport] = []
    kept = stages.addresses(config, store, outputs, cache)
    if resume is not None:
        place, history = checkpoint.restore(resume, student, objectives, run.enter, identity)
    else:
        place = checkpoint.Place(stages.recall(kept, student, objectives), 0)
        run.enter(place.stage)

    def save(place: checkpoint.Place) -> None:
        if folder is not None:
            checkpoint.save(folder, student, objectives, run.optimizer, history, place, owner, identity)

    earlier = train_to_last_stage(run, place, kept, save)
    for epoch in range(len(history), config.epochs):
        started = time.perf_counter()
        terms, step = train_epoch(run, epoch)
        metrics = evaluate(run.answerer) | quality
        seconds = time.perf_counter() - started + (0 if history else earlier)
        history.append(EpochReport(epoch + 1, step, seconds, terms, metrics))
        save(checkpoint.Place(run.index, epoch + 1))
        report(history[-1])
    if folder is not None and reads == (IMAGE,):
        logits_NK, map_NRhw = evaluate.predict(run.answerer)
        known = evaluate.target_NK, evaluate.known_NK
        card = export.card_of(config, store.facts, store.manifest, run.answerer, logits_NK, *known)
        card = replace(card, map_threshold=evaluate.thresholds(map_NRhw), slices=export.slices_of(store))
        export.write(folder, run.answerer, card, store.digests())
    return history


def train_to_last_stage(
    run: Run, place: checkpoint.Place, kept: Sequence[Path], save: Callable[[checkpoint.Place], None]
) -> float:
    """Trains what is left of the stages before the last, keeps each for other trainings, and enters the last.

    Returns:
        The seconds that these stages took, in earlier attempts too; 0 where none was left.
    """
    seconds, first = place.seconds, place.epoch
    while run.stage is not run.stages[-1]:
        assert run.stage.epochs is not None
        todo, stderr = range(first, run.stage.epochs), command.plain_console(stderr=True)
        name, last, silent = f"stage {run.stage.name}", run.stage.epochs, not stderr.is_terminal
        for epoch in track(todo, escape(name), console=stderr, transient=True, disable=silent):
            started = time.perf_counter()
            train_epoch(run, epoch)
            seconds += time.perf_counter() - started
            save(checkpoint.Place(run.index, epoch + 1, seconds))
        stderr.print(f"{name} ended with epoch {last}, {seconds:.1f} s so far", highlight=False, soft_wrap=True)
        stages.keep(kept[run.index], run.stages[: run.index + 1], run.student, run.objectives)
        run.enter(run.index + 1)
        first = 0
    return seconds


def train_epoch(run: Run, epoch: int) -> tuple[dict[str, float], int]:
    """One pass over the training samples.

    Returns:
        The unweighted mean of each loss term, every SHARES_EVERY epochs with the
        `gradient_share/<term>` of the first step, and the number of steps since the stage began.

    Raises:
        DivergedError: a loss term is no longer finite.
    """
    config, epochs = run.config, run.stage.epochs
    assert epochs is not None
    weights = {
        name: one.weight * objective_factor(one.schedule, epoch, epochs)
        for name, one in config.active_objectives().items()
        if name in run.stage.objectives
    }
    learning = [one for one in run.student.parameters() if one.requires_grad]
    steps_per_epoch = -(-len(run.rows) // config.optimizer.batch_size)
    step = epoch * steps_per_epoch
    log = TermLog(first_step=step)
    shares: dict[str, float] = {}

    run.wake()
    with seeded(config.seed, *run.purpose("epoch", epoch)):  # dropout and drop path draw from the global generator
        for batch, view in batches(run, epoch):
            terms = loss_terms(run, batch, view)
            log.add(terms)
            weighted = {name: weights.get(name, 1.0) * term for name, term in terms.items()}
            if weights and learning and not shares and epoch % SHARES_EVERY == 0:
                shares = gradient_shares(weighted, learning)
            descend(run, weighted, step, epochs * steps_per_epoch)
            step += 1
    return log.means() | shares, step


def loss_terms(run: Run, batch: Batch, view: View) -> dict[str, Tensor]:
    """The unweighted terms of one batch, seen in such a view: `task`, and each objective under its label."""
    active, wanted = run.config.active_objectives(), run.stage.objectives
    objectives = {name: run.objective(name) for name in run.objectives if name in wanted}
    layers = {layer for objective in objectives.values() for layer in objective.needs.student_layers}
    attended = {layer for objective in objectives.values() for layer in objective.needs.student_attention}
    smoothing, tasks = run.config.optimizer.label_smoothing, run.store.facts.tasks
    with autocast(run.device):
        output = run.answerer(batch.image_BCHW, layers, attended)
        terms = {}
        if TASK in wanted:
            labels = batch.target_BK, batch.known_BK
            terms[TASK] = task_loss(output.logits_BK, *labels, tasks, smoothing, run.weight_2K)
        heard = dict.fromkeys(active[name].teacher or "" for name in objectives)
        told = {name: run.teachers[name].at(batch.rows_B, batch.image_BCHW, view) for name in heard}
        for name, objective in objectives.items():
            terms[name] = objective(output, told[active[name].teacher or ""], batch)
    return terms


def descend(run: Run, weighted_terms: Mapping[str, Tensor], step: int, num_steps: int) -> None:
    """One step of the optimiser down the sum of the weighted terms."""
    config = run.config
    run.optimizer.zero_grad()
    loss = torch.stack(list(weighted_terms.values())).sum()
    if not loss.requires_grad:
        problem = f"no term ({', '.join(weighted_terms)}) depends on what the stage trains"
        raise ConfigError.at(f"stages.{run.index}.objectives", problem)
    loss.backward()
    if config.optimizer.clip_norm:
        nn.utils.clip_grad_norm_(parameters_of(run.optimizer), config.optimizer.clip_norm)
    rate = learning_rate(step, num_steps, config.optimizer.lr, config.schedule.warmup, config.schedule.final)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()


def batches(run: Run, epoch: int) -> Iterator[tuple[Batch, View]]:
    """The training samples in this epoch's order and views; both are functions of seed and epoch.

    The view is for what must move as the images did; an objective never sees it.
    """
    config, store, device = run.config, run.store, run.device
    order = torch.randperm(len(run.rows), generator=generator_for(config.seed, *run.purpose("order", epoch)))
    draws = generator_for(config.seed, *run.purpose("views", epoch))
    for chosen in order.split(config.optimizer.batch_size):
        rows = run.rows[chosen.numpy()]
        view = draw_views(len(rows), store.facts.image_size, config.augmentation, draws)
        image_BCHW = apply_view(on(device, store.images(rows, config.student.reads)), view).float() / 255
        box_B4 = torch.from_numpy(store.content_box_N4[rows]) if config.student.reads == (IMAGE,) else None
        batch = Batch(
            sample_ids=tuple(store.sample_ids[rows]),
            patient_B=on(device, store.patient_N[rows]),
            image_BCHW=apply_light(image_BCHW, view, box_B4),
            target_BK=on(device, store.target_NK[rows]),
            known_BK=on(device, store.known_NK[rows]),
            rows_B=on(device, rows),
        )
        yield batch, view


def on(device: torch.device, values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def shown_error(error: float) -> str:
    return "?" if math.isnan(error) else f"{error:.4f}"


def main(words: Sequence[str]) -> None:
    """The command line; see HELP."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return
    defaults = {"config": "", "out": "runs/train", "cache": "cache"}
    own, overrides = command.own_words(words, defaults, TrialConfig.model_fields)
    if not own["config"]:
        raise ConfigError.at("config", "which? e.g. config=runs/demo/best.yaml; --help explains")
    config = load_trial(Path(own["config"]), overrides, (*defaults, *paths_of_params()))
    folder = Path(own["out"]) / f"{Path(own['config']).stem}-{config.fingerprint()}"
    last, cache, console = folder / checkpoint.NAME, Path(own["cache"]), command.plain_console()

    def show(report: EpochReport) -> None:
        command.write_whole(folder / "config.yaml", dump_trial(config))
        scores = "  ".join(
            f"{goal} {report.metrics[goal]:.4f} ±{shown_error(report.metrics[f'{goal}_se'])}"
            for goal in ("val/auroc", "val/auroc_patient", "val/pointing")
            if goal in report.metrics
        )
        loss = "  ".join(f"{name} {value:.4f}" for name, value in report.terms.items() if "/" not in name)
        console.print(
            f"epoch {report.epoch:3}/{config.epochs}  {report.seconds:6.1f} s  {loss}  {scores}",
            highlight=False,
            soft_wrap=True,
        )

    if mistakes := check(config, facts(config.cohort)):
        raise ConfigError(mistakes)
    store = prepare(config.cohort, cache)
    command.make_folder(folder)
    if config.threads > (here := cores()).amount:
        told = f"threads={config.threads}, and this process may use {here.amount} cores (what sets this: {here.source})"
        command.warn([f"{told}; more threads than cores only slow a training down"])
    command.warn(
        [
            *announcements(config, store.facts),
            *single_steps(config, store.facts),
            *warnings_before_fitting(config, store),
        ]
    )
    for line in quality_lines(config, fit_teachers(config, store, cache)):
        console.print(line, highlight=False, soft_wrap=True)
    if last.exists():
        console.print(f"continuing {folder}", highlight=False, soft_wrap=True)
    metrics = folder / "metrics.json"
    with command.written_to(folder):
        history = train(config, cache, folder, last if last.exists() else None, show, store)
        command.write_whole(metrics, json.dumps([asdict(report) for report in history], indent=1))
    for metric, score in history[-1].metrics.items():
        console.print(f"{metric:32} {score!r}", highlight=False)
    places = f"every epoch is in {metrics}; the student is in {folder / export.NAME}"
    console.print(places, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    command.run(main)
