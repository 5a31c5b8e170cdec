"""What teaching costs: a training step with cached teacher outputs over the plain step, a validation
with both goals and one with maps and all scores over the plain one, and a live text teacher for contrast.

    python benchmarks/step_cost.py [--rounds 30] [--json FILE]

vit_tiny (depth 12), 64 px, patch 8, batch 16, one thread. Both sides are the product's own code on
the synthetic cohort. Variants take turns in one process, in an order that rotates, and are timed by
the CPU time of the process, so that a busy machine disturbs all of them alike. The ratio is the
median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmpkd import fit
from mmpkd.build import build
from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.scoring import classify
from mmpkd.scoring.validation import USUAL_GOALS, Evaluator
from mmpkd.teachers.fitted import fit_teachers
from mmpkd.training.stages import Run
from mmpkd.training.step import descend, epoch_inputs, loss_terms, weighted

BATCH, NUM_VALIDATION = 16, 64
LIMITS = {
    "cached logits": 1.05,
    "cached features": 1.08,
    "validation with goals": 1.1,
    "validation with all scores": 1.15,
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cached logits": {"logits": {}},
    "cached features": {"features": {"params": {"layer": 8}}},
}


def run_with(objectives: dict[str, Any], cache: Path) -> Run:
    config = TrialConfig.model_validate(
        {
            "cohort": {"reader": "synthetic", "image_size": 64},
            "student": {"model": "vit_tiny_patch16_224", "patch_size": 8},
            "teachers": {"findings": {"kind": "tabular"}} if objectives else {},
            "objectives": objectives,
            "optimizer": {"batch_size": BATCH, "lr": 1e-4},
            "evaluation": {"batch_size": BATCH},
        }
    )
    store, device = prepare(config.cohort, cache), torch.device("cpu")
    teachers = fit_teachers(config, store, cache)
    student, modules = build(config, store.facts, {name: one.width for name, one in teachers.items()})
    return Run(config, store, store.rows("train"), student, modules, teachers, device)


def step_of(run: Run, live: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """One training step on a fixed batch; `live` is what else happens in it."""
    batch, view = run.samples.batch(next(epoch_inputs(run, 0)))
    run.student.train()
    fit.set_learning_rate(run.optimizer, run.config.optimizer.lr)

    def step() -> None:
        live()
        descend(run, weighted(run, loss_terms(run, batch, view)))

    return step


def text_teacher() -> Callable[[], object]:
    """A 4-layer text encoder of width 512 reading 128 tokens a sample, as speed.md measured it."""
    shape = transformers.BertConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048, vocab_size=8000
    )
    encoder = transformers.BertModel(shape).eval()
    tokens = torch.randint(0, 8000, (BATCH, 128), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def live() -> object:
        return encoder(tokens)

    return live


def validations(run: Run) -> dict[str, Callable[[], object]]:
    """Predictions, AUROC and calibration alone, as one would write it, against the product's evaluator."""
    rows = run.store.rows("val")[:NUM_VALIDATION]
    evaluate = Evaluator(
        run.store, rows, run.config.evaluation, run.student.grid, run.device, run.rows, goals=USUAL_GOALS
    )
    images = torch.from_numpy(run.store.image_NCHW[rows])
    target, known, tasks = run.store.target_NK[rows], run.store.known_NK[rows], run.store.facts.tasks

    @torch.inference_mode()
    def plain() -> object:
        run.student.eval()
        logits = [run.student.model((part.float() / 255 - 0.5) / 0.25) for part in images.split(BATCH)]
        return classify.score(torch.cat(logits).numpy(), target, known, tasks)

    return {
        "plain validation": plain,
        "validation with goals": lambda: evaluate.score_goals(run.student),
        "validation with all scores": lambda: evaluate(run.student),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: run_with(objectives, Path(folder)) for name, objectives in OBJECTIVES.items()}
        variants: dict[str, Callable[[], object]] = {name: step_of(run) for name, run in runs.items()}
        variants["live text teacher, 4 layers"] = step_of(runs["cached logits"], text_teacher())
        variants |= validations(runs["plain"])
        seconds = take_turns(variants, options.rounds)
    report(seconds, options)


def take_turns(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round; the order rotates, and a first round is thrown away."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in track(range(rounds + 1), "rounds", console=Console(stderr=True)):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            started = time.process_time()
            variants[name]()
            if index:
                seconds[name].append(time.process_time() - started)
    return seconds


def report(seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    table = Table("variant", "ms, median", "over", "ratio", "10 to 90 %", "at most", "verdict")
    figures = []
    for name, values in seconds.items():
        base = "plain validation" if "validation" in name else "plain"
        ratios = sorted(value / other for value, other in zip(values, seconds[base], strict=True))
        ratio, low, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.5, 0.1, 0.9))
        ratio = statistics.median(ratios)
        limit = LIMITS.get(name)
        verdict = "" if limit is None else "PASS" if ratio <= limit else "FAIL"
        milliseconds = 1000 * statistics.median(values)
        figures.append({"variant": name, "ms": milliseconds, "over": base, "ratio": ratio, "limit": limit})
        spread = f"{low:.3f} to {high:.3f}"
        table.add_row(name, f"{milliseconds:.0f}", base, f"{ratio:.3f}", spread, str(limit or ""), verdict)
    Console(width=120).print(table)
    if options.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
        content = {"command": sys.argv, "rounds": options.rounds, "versions": versions, "figures": figures}
        options.json.write_text(json.dumps(content, indent=1))
    for one in figures:
        if one["limit"]:
            print(f"{one['variant']}: {one['ratio']:.3f} of {one['over']} (at most {one['limit']})")


if __name__ == "__main__":
    main()
