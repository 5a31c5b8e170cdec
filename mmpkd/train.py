"""One training run, from configuration to exported student.

A student ViT learns from labels and, through objectives, from the outputs of teachers that saw a
privileged modality. After each epoch it is scored on the validation patients and saved.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mmpkd import checkpoint, command, export, fit, stages
from mmpkd.augment import View, apply_light, apply_view, draw_views
from mmpkd.build import announcements, build, check, needed, paths_of_params, single_steps
from mmpkd.cohort import facts
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE, TASK, TrialConfig, dump_trial, load_trial
from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.files import write_atomically
from mmpkd.machine.resources import thread_warnings
from mmpkd.scoring.validation import Evaluator
from mmpkd.stages import Run
from mmpkd.teachers.fitted import fit_teachers, quality_lines
from mmpkd.teachers.input_leakage import warnings_before_fitting
from mmpkd.types import Batch, ConfigError, EpochReport

SHARES_EVERY = 5  # epochs between measurements of gradient shares, which cost a backward pass for each term
HELP = """\
python -m mmpkd.train config=FILE [key=value ...]

Trains one student from a TrialConfig and scores it on the validation patients after each epoch.

  config=FILE   a TrialConfig in YAML, such as the runs/<name>/best.yaml of a sweep
  out=DIR       the folder for checkpoint, configuration and metrics    [runs/train]
  cache=DIR     the folder of stores and teacher outputs, shared with sweeps    [cache]
  key=value     sets any leaf of the configuration, e.g. optimizer.lr=3e-4 epochs=5 cohort.root=DIR

The same command continues an interrupted run. On a CPU with the same thread count the same
configuration gives the same numbers, to the last digit.
"""


def train(
    config: TrialConfig,
    cache: Path,
    folder: Path | None = None,
    resume: Path | None = None,
    report: Callable[[EpochReport], None] = lambda _: None,
    store: Store | None = None,
) -> list[EpochReport]:
    """Trains one student to the end, from the beginning or from a checkpoint.

    All random numbers derive from the seed and the epoch alone, so that the same configuration gives the same numbers,
    whether or not the training was resumed. On a CPU with the same thread count the numbers are equal bit by bit; on
    CUDA they are equal up to the order in which the kernels add.

    Args:
        cache: folder of stores and teacher outputs, shared by all trainings.
        folder: receives `last.pt` after each epoch, and `student.safetensors` at the end; None keeps nothing.
        resume: a `last.pt` to continue from.
        report: called after each new epoch, once its checkpoint is on disk.
        store: the prepared cohort, if the caller has opened it; by default it is opened or prepared.

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
    fitted = fit_teachers(config, store, cache)
    heads = {name: teacher.head for name, teacher in fitted.items() if teacher.head is not None}
    widths = {name: teacher.width for name, teacher in fitted.items()}
    student, objectives = build(config, store.facts, widths, heads)
    teachers = {name: teacher.only(needed(config, objectives, name)).to(device) for name, teacher in fitted.items()}
    student.to(device)
    objectives.to(device)
    rows = store.rows("train", config.cohort.fold)
    weight_2K = None
    if config.optimizer.class_weights == "balanced":
        labels = store.target_NK[rows], store.known_NK[rows]
        weight_2K = fit.on_device(fit.balanced_weights(*labels, store.facts.tasks), device)
    run = Run(config, store, rows, student, objectives, teachers, device, weight_2K)
    val, reads = store.rows("val", config.cohort.fold), config.student.reads
    evaluate = Evaluator(store, val, config.evaluation, student.grid, device, rows, reads=reads)
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
        progress = checkpoint.Progress(stages.recall(stage_files, student, objectives), 0)
        run.enter(progress.stage)

    def save(progress: checkpoint.Progress) -> None:
        if folder is not None:
            checkpoint.save(folder, student, objectives, run.optimizer, history, progress, owner, identity)

    earlier_seconds = train_to_last_stage(run, progress, stage_files, save)
    for epoch in range(len(history), config.epochs):
        started = time.perf_counter()
        terms, step = train_epoch(run, epoch)
        metrics = evaluate(run.answerer) | quality
        seconds = time.perf_counter() - started + (0 if history else earlier_seconds)
        history.append(EpochReport(epoch + 1, step, seconds, terms, metrics))
        save(checkpoint.Progress(run.index, epoch + 1))
        report(history[-1])
    if folder is not None and reads == (IMAGE,):
        logits_NK, map_NRhw = evaluate.predict(run.answerer)
        labels = evaluate.target_NK, evaluate.known_NK
        card = export.card_of(config, store.facts, store.manifest, run.answerer, logits_NK, *labels)
        card = replace(card, map_threshold=evaluate.thresholds(map_NRhw), slices=export.slices_of(store))
        export.write(folder, run.answerer, card, store.digests())
    return history


def train_to_last_stage(
    run: Run, progress: checkpoint.Progress, stage_files: Sequence[Path], save: Callable[[checkpoint.Progress], None]
) -> float:
    """Trains the stages before the last, caches each, and enters the last one. Returns the seconds that these stages
    took, including earlier attempts, or 0 if there is a single stage."""
    seconds, first = progress.seconds, progress.epoch
    while run.stage is not run.stages[-1]:
        assert run.stage.epochs is not None
        name = f"stage {run.stage.name}"
        for epoch in command.progress_bar(range(first, run.stage.epochs), name):
            started = time.perf_counter()
            train_epoch(run, epoch)
            seconds += time.perf_counter() - started
            save(checkpoint.Progress(run.index, epoch + 1, seconds))
        print(f"{name} ended with epoch {run.stage.epochs}, {seconds:.1f} s so far", file=sys.stderr)
        stages.keep(stage_files[run.index], run.stages[: run.index + 1], run.student, run.objectives)
        run.enter(run.index + 1)
        first = 0
    return seconds


def train_epoch(run: Run, epoch: int) -> tuple[dict[str, float], int]:
    """Trains one epoch: one pass over the training samples.

    Returns:
        The unweighted mean of each loss term (every SHARES_EVERY epochs also the
        `gradient_share/<term>` of the first step), and the number of steps since the stage began.

    Raises:
        DivergedError: a loss term is no longer finite.
    """
    config, epochs = run.config, run.stage.epochs
    assert epochs is not None
    weights = {
        name: objective.weight * fit.objective_factor(objective.schedule, epoch, epochs)
        for name, objective in config.active_objectives().items()
        if name in run.stage.objectives
    }
    learning = [parameter for parameter in run.student.parameters() if parameter.requires_grad]
    steps_per_epoch = -(-len(run.rows) // config.optimizer.batch_size)
    step = epoch * steps_per_epoch
    log = fit.TermLog(first_step=step)
    shares: dict[str, float] = {}

    run.wake()
    with fit.seeded(config.seed, *run.purpose("epoch", epoch)):  # dropout and drop path use the global generator
        for batch, view in batches(run, epoch):
            terms = loss_terms(run, batch, view)
            log.add(terms)
            weighted = {name: weights.get(name, 1.0) * term for name, term in terms.items()}
            if weights and learning and not shares and epoch % SHARES_EVERY == 0:
                shares = fit.gradient_shares(weighted, learning)
            descend(run, weighted, step, epochs * steps_per_epoch)
            step += 1
    return log.means() | shares, step


def loss_terms(run: Run, batch: Batch, view: View) -> dict[str, Tensor]:
    """Returns the unweighted loss terms of a batch in a view: `task`, and each objective under its label."""
    active, wanted = run.config.active_objectives(), run.stage.objectives
    objectives = {name: run.objective(name) for name in run.objectives if name in wanted}
    layers = {layer for objective in objectives.values() for layer in objective.needs.student_layers}
    attention_layers = {layer for objective in objectives.values() for layer in objective.needs.student_attention}
    smoothing, tasks = run.config.optimizer.label_smoothing, run.store.facts.tasks
    with fit.autocast(run.device):
        output = run.answerer(batch.image_BCHW, layers, attention_layers)
        terms = {}
        if TASK in wanted:
            labels = batch.target_BK, batch.known_BK
            terms[TASK] = fit.task_loss(output.logits_BK, *labels, tasks, smoothing, run.weight_2K)
        teachers = dict.fromkeys(active[name].teacher or "" for name in objectives)
        teacher_outputs = {name: run.teachers[name].at(batch.rows_B, batch.image_BCHW, view) for name in teachers}
        for name, objective in objectives.items():
            terms[name] = objective(output, teacher_outputs[active[name].teacher or ""], batch)
    return terms


def descend(run: Run, weighted_terms: Mapping[str, Tensor], step: int, num_steps: int) -> None:
    """Takes one step of the optimiser to lower the sum of the weighted terms."""
    config = run.config
    run.optimizer.zero_grad()
    loss = torch.stack(list(weighted_terms.values())).sum()
    if not loss.requires_grad:
        problem = f"no term ({', '.join(weighted_terms)}) depends on what the stage trains; add one that does"
        raise ConfigError.at(f"stages.{run.index}.objectives", problem)
    loss.backward()
    if config.optimizer.clip_norm:
        nn.utils.clip_grad_norm_(fit.parameters_of(run.optimizer), config.optimizer.clip_norm)
    rate = fit.learning_rate(step, num_steps, config.optimizer.lr, config.schedule.warmup, config.schedule.final)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()


def batches(run: Run, epoch: int) -> Iterator[tuple[Batch, View]]:
    """Yields the training samples in the order and views of this epoch, which are determined by seed and epoch alone.

    The view is for teachers whose inputs must move as the images do; an objective never sees the view.
    """
    config, store, device = run.config, run.store, run.device
    order = torch.randperm(len(run.rows), generator=fit.generator_for(config.seed, *run.purpose("order", epoch)))
    view_generator = fit.generator_for(config.seed, *run.purpose("views", epoch))
    for positions in order.split(config.optimizer.batch_size):
        rows = run.rows[positions.numpy()]
        view = draw_views(len(rows), store.facts.image_size, config.augmentation, view_generator)
        image_BCHW = apply_view(fit.on_device(store.images(rows, config.student.reads), device), view).float() / 255
        box_B4 = torch.from_numpy(store.content_box_N4[rows]) if config.student.reads == (IMAGE,) else None
        batch = Batch(
            sample_ids=tuple(store.sample_ids[rows]),
            patient_B=fit.on_device(store.patient_N[rows], device),
            image_BCHW=apply_light(image_BCHW, view, box_B4),
            target_BK=fit.on_device(store.target_NK[rows], device),
            known_BK=fit.on_device(store.known_NK[rows], device),
            rows_B=fit.on_device(rows, device),
        )
        yield batch, view


def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return
    defaults = {"config": "", "out": "runs/train", "cache": "cache"}
    own, overrides = command.own_words(words, defaults, TrialConfig.model_fields)
    if not own["config"]:
        raise ConfigError.at("config", "missing: write config=FILE, e.g. config=runs/demo/best.yaml")
    config = load_trial(Path(own["config"]), overrides, (*defaults, *paths_of_params()))
    folder = Path(own["out"]) / f"{Path(own['config']).stem}-{config.fingerprint()}"
    last, cache = folder / checkpoint.NAME, Path(own["cache"])
    console = command.plain_console(highlight=False, soft_wrap=True)

    def show(report: EpochReport) -> None:
        write_atomically(folder / "config.yaml", dump_trial(config))
        shown = [f"{name} {value:.4f}" for name, value in report.terms.items() if "/" not in name]
        for goal in ("val/auroc", "val/auroc_patient", "val/pointing"):
            if goal in report.metrics:
                error = report.metrics[f"{goal}_se"]
                shown.append(f"{goal} {report.metrics[goal]:.4f} ±{'?' if math.isnan(error) else f'{error:.4f}'}")
        console.print(f"epoch {report.epoch:3}/{config.epochs}  {report.seconds:6.1f} s  {'  '.join(shown)}")

    if mistakes := check(config, facts(config.cohort)):
        raise ConfigError(mistakes)
    store = prepare(config.cohort, cache)
    command.make_folder(folder)
    command.warn([*thread_warnings(config.threads), *announcements(config, store.facts)])
    command.warn([*single_steps(config, store.facts), *warnings_before_fitting(config, store)])
    for line in quality_lines(config, fit_teachers(config, store, cache)):
        console.print(line)
    if last.exists():
        console.print(f"continuing {folder}")
    metrics = folder / "metrics.json"
    with command.written_to(folder):
        history = train(config, cache, folder, last if last.exists() else None, show, store)
        write_atomically(metrics, json.dumps([asdict(report) for report in history], indent=1))
    for metric, score in history[-1].metrics.items():
        console.print(f"{metric:32} {score!r}")
    console.print(f"every epoch is in {metrics}; the student is in {folder / export.NAME}")


if __name__ == "__main__":
    with command.command_line() as words:
        main(words)
