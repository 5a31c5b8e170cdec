"""The parts of benchmarks/gpu.py that time steps: the table of all variants, executions, cached teaching, equality."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.gpu_cohort import FULL, Cohorts, Scale, config_of, write_pngs
from benchmarks.gpu_measure import Advance, Budget, device, flops_of, free_memory, now, profile_of, rate_of
from benchmarks.gpu_variants import RUNS_AHEAD, Before, before, documented, floor, num_workers, ours, run_of
from mmpkd import fit
from mmpkd.augment import View
from mmpkd.build import build, needed
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.student import Student, build_student
from mmpkd.teachers.cache import CachedOutputs
from mmpkd.training.epoch import train_epoch
from mmpkd.training.probe import random_outputs
from mmpkd.training.stages import Run
from mmpkd.types import TeacherOutput

Row = dict[str, Any]
VARIANTS = {"a": "what a user writes", "b": "ours before", "c": "ours now", "d": "the floor"}
WIDTH = 384  # of the embedding of a teacher
ROUNDS = 5
TOLERANCES = {"loss": 1e-2, "parameters": 5e-2} if torch.cuda.is_available() else {"loss": 1e-5, "parameters": 1e-3}


def floor_execution() -> str:
    return "graph" if torch.cuda.is_available() else "eager"


def variant_of(letter: str, config: TrialConfig, scale: Scale, cohorts: Cohorts) -> Advance:
    """Builds one of VARIANTS."""
    size = config.cohort.image_size
    store = cohorts.store(size)
    if letter == "a":
        return documented(config, store, write_pngs(store, cohorts.folder / f"png-{size}"))
    if letter == "b":
        return before(config, store)
    if letter == "c":
        return ours(config, store, scale.most_steps(config.optimizer.batch_size))
    return floor(config, store, floor_execution())


def steps_part(scale: Scale, cohorts: Cohorts, peak: float, budget: Budget, keep: Callable[[Row], None]) -> None:
    """Measures every variant of every model and batch size, in the order of `scale.cells`, until the budget is spent.

    Args:
        peak: operations a second, of which the share that the model needs is reported.
        keep: receives each row when it is measured.
    """
    for name, batch_size in scale.cells:
        config = config_of(scale.sizes[name], batch_size)
        for letter in VARIANTS:
            if budget.is_spent():
                return
            row = {"model": name, "batch_size": batch_size, "variant": letter}
            build_variant = partial(variant_of, letter, config, scale, cohorts)
            keep(row | measured(build_variant, config, scale, cohorts, peak, runs_ahead=letter == "a"))


def measured(
    build_variant: Callable[[], Advance],
    config: TrialConfig,
    scale: Scale,
    cohorts: Cohorts,
    peak: float,
    runs_ahead: bool = False,
) -> Row:
    """Times and profiles one variant. An error, such as a GPU without enough memory, becomes a row that names it.

    Args:
        runs_ahead: whether batches are prepared ahead, which must be used up before the timing begins.
    """
    batch_size, store = config.optimizer.batch_size, cohorts.store(config.cohort.image_size)
    free_memory()
    try:
        flops = flops_of(weightless(config, store))
        advance = build_variant()
        ahead = num_workers() * RUNS_AHEAD if runs_ahead else 0
        steps = scale.steps(batch_size)
        rate = rate_of(advance, batch_size, steps, scale.seconds, warm_up=max(scale.profiled[1], ahead + 2))
        profile = profile_of(advance, scale.profiled)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    share = rate.images_per_second * flops / peak
    return rate._asdict() | profile._asdict() | {"gflops_per_image": flops / 1e9, "mfu": share}


def weightless(config: TrialConfig, store: Store) -> Student:
    """Returns the student of a configuration on the meta device, which has shapes but no weights."""
    logits = store.target_NK.shape[1]
    return build_student(config.student, store.facts.image_size, store.facts.channels, logits, empty=True)


@dataclass(frozen=True)
class LiveText(CachedOutputs):
    """Cached outputs of a teacher, for which a text encoder reads the text of each sample at each step, as a teacher
    that is not cached would."""

    recordable = False  # as the product's own teachers that run at each step
    encoder: Any = None
    token_NT: Tensor | None = None

    def at(self, rows_B: Tensor, image_BCHW: Tensor | None = None, view: View | None = None) -> TeacherOutput:
        assert self.token_NT is not None
        with torch.no_grad(), fit.autocast(device()):
            self.encoder(self.token_NT[rows_B])
        return super().at(rows_B, image_BCHW, view)

    def to(self, device: torch.device) -> LiveText:
        assert self.token_NT is not None
        return replace(super().to(device), encoder=self.encoder.to(device), token_NT=self.token_NT.to(device))


def text_encoder(scale: Scale, carried: Path) -> tuple[Any, str]:
    """Returns the MiniLM encoder if it was carried along and has the size of `scale`, else a BERT of that size with
    random weights; and which of the two it is."""
    transformers.logging.set_verbosity_error()
    folder, (width, layers, _) = carried / "weights" / "minilm_l6_v2", scale.encoder
    if folder.exists() and scale.encoder == FULL.encoder:
        return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), "MiniLM-L6-v2"
    shape = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32, intermediate_size=4 * width
    )
    return transformers.BertModel(shape).eval(), f"a BERT with {layers} layers of width {width}, with random weights"


def taught_part(scale: Scale, cohorts: Cohorts, carried: Path, budget: Budget, keep: Callable[[Row], None]) -> None:
    """Measures what a teacher adds to a step: cached logits, cached features, and a live text teacher.

    Variants take turns, and a ratio is the median over rounds of the ratio within a round.
    """
    for name, batch_size in scale.taught_cells:
        if budget.is_spent():
            return
        model = scale.sizes[name]
        store = cohorts.store(model.image_size)
        layer = weightless(config_of(model, batch_size), store).depth * 2 // 3
        objectives: dict[str, Row] = {
            "plain": {},
            "cached logits": {"logits": {}},
            "cached features": {"features": {"params": {"layer": layer}}},
        }
        encoder, which = text_encoder(scale, carried)
        variants = {}
        for label, terms in objectives.items():
            config, teachers = _with_teacher(config_of(model, batch_size), terms, store)
            variants[label] = ours(config, store, scale.steps(batch_size), teachers)
        config, teachers = _with_teacher(config_of(model, batch_size), objectives["cached logits"], store)
        live = {key: _live(teacher, encoder, store, scale.encoder[2]) for key, teacher in teachers.items()}
        variants["live text teacher"] = ours(config, store, scale.steps(batch_size), live)
        seconds = _in_turns(variants, scale.steps(batch_size), budget)
        for label, values in seconds.items():
            ratios = [value / plain for value, plain in zip(values, seconds["plain"], strict=True)]
            milliseconds = 1000 * statistics.median(values) / scale.steps(batch_size)
            row = {"model": name, "batch_size": batch_size, "variant": label, "ms_per_step": milliseconds}
            note = {"encoder": which} if label.startswith("live") else {}
            keep(row | {"ratio": statistics.median(ratios), "rounds": len(values)} | note)


def _with_teacher(config: TrialConfig, terms: Row, store: Store) -> tuple[TrialConfig, dict[str, CachedOutputs]]:
    """Returns a configuration with these objectives, and random cached outputs of their teacher."""
    if not terms:
        return config, {}
    content = config.model_dump() | {"teachers": {"findings": {"kind": "tabular"}}, "objectives": terms}
    config = TrialConfig.model_validate(content)
    objectives = build(config, store.facts, {"findings": WIDTH})[1]
    return config, {"findings": random_outputs(store, WIDTH, needed(config, objectives, "findings"))}


def _live(teacher: CachedOutputs, encoder: Any, store: Store, tokens: int) -> LiveText:
    generator = torch.Generator().manual_seed(0)
    token_NT = torch.randint(0, encoder.config.vocab_size, (len(store.sample_ids), tokens), generator=generator)
    return LiveText(teacher.arrays, {}, 0.0, encoder=encoder, token_NT=token_NT)


def _in_turns(variants: dict[str, Advance], steps: int, budget: Budget) -> dict[str, list[float]]:
    """Returns the seconds of each variant in each round; the order rotates, and a first round does not count. There is
    one round at least, and at most ROUNDS."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(ROUNDS + 1):
        if index > 1 and budget.is_spent():
            break
        for name in names[index % len(names) :] + names[: index % len(names)]:
            started = now()
            variants[name](steps)
            if index:
                seconds[name].append(now() - started)
    return seconds


def equality_part(scale: Scale, cohorts: Cohorts, budget: Budget, keep: Callable[[Row], None]) -> None:
    """Trains the same configuration as before and as now, and compares losses and parameters.

    The difference of the parameters is ||now - before|| / ||before - start||, over all of them: AdamW moves each
    parameter by about the rate at every step, so the distance from the start is the scale on which an error counts.
    The same difference between two runs of the old way shows what the order of additions on the GPU does by itself.
    """
    for name, batch_size in scale.equal_cells:
        if budget.is_spent():
            return
        config, store = config_of(scale.sizes[name], batch_size), cohorts.store(scale.sizes[name].image_size)
        config = config.model_copy(update={"epochs": scale.equal_steps[0]})  # the rate rises and falls
        start = _parameters(run_of(config, store))
        old, again, new = (_trained(config, store, scale.equal_steps, as_before) for as_before in (True, True, False))
        row: Row = {"model": name, "batch_size": batch_size, "steps": math.prod(scale.equal_steps)}
        for label, (losses, parameters) in {"now": new, "before again": again}.items():
            loss = max(abs(value - base) / abs(base) for value, base in zip(losses, old[0], strict=True))
            moved = (parameters - old[1]).norm() / (old[1] - start).norm()
            row[label] = {"loss": loss, "parameters": float(moved)}
        keep(row | {"tolerances": TOLERANCES, "equal": all(row["now"][key] <= TOLERANCES[key] for key in TOLERANCES)})


def _trained(
    config: TrialConfig, store: Store, equal_steps: tuple[int, int], as_before: bool
) -> tuple[list[float], Tensor]:
    """Returns the mean loss of each of a few short epochs, and all parameters after them."""
    epochs, steps = equal_steps
    run = run_of(config, store, num_samples=steps * config.optimizer.batch_size)
    if as_before:
        training = Before(run)
        losses = [training.train_epoch()["task"] for _ in range(epochs)]
    else:
        losses = [train_epoch(run, epoch)[0]["task"] for epoch in range(epochs)]
    return losses, _parameters(run)


def _parameters(run: Run) -> Tensor:
    return torch.cat([parameter.detach().flatten().double().cpu() for parameter in run.student.parameters()])
