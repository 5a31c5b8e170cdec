"""What a sweep costs apart from its trainings, and whether a long history makes it slow.

    python benchmarks/sweep_overhead.py [--histories 0 1000 2900] [--trials 60] [--seed 0] [--json FILE]

Trivial trials (two epochs of twelve numbers, no waiting) on two cores, after so many finished ones.
The sweep is the real one: driver, halving, TPE beside the loop, journal, spool, MLflow on SQLite, live
display. Beside it stands what one would write in a page: Ray Tune with its OptunaSearch (TPE, the study
in memory, which is its cheapest), ASHA on the first goal and MLflowLoggerCallback, workers reused, none
of Tune's own log files. Both draw from the same two arms of about eight conditional parameters; each
run is a process of its own.

Earlier trials are written into the sweep's journal and spool, half of them pruned, and into the plain
study. MLflow does not get them: its runs are looked up once, at the start, and never again.

Ray Tune keeps one worker busy with trials as short as these: a freed one takes the next before a second
has started. So seconds per trial are seconds per trial of one worker.

Times are taken between the end of the 10th trial and of the last. A result's *delay* is from the
worker's clock at the end of an epoch until the searcher has heard of it. A *wait* is how long the
searcher was asked for a trial while others were running: what came in then waited as long.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import optuna
from ray import tune
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.trivial import (
    GOALS,
    Asking,
    Plain,
    Watched,
    begin_after,
    metrics_of,
    observed,
    timed,
    trivial_functions,
    words_of,
)
from mmpkd.config import TrialConfig
from sweep.cluster import cluster
from sweep.driver import run_sweep
from sweep.reports.progress import Progress
from sweep.search.proposals import ArmSampler, SamplerThread
from sweep.search.searcher import Search
from sweep.search.state import SweepState
from sweep.storage.layout import SweepFolder

LIMIT, GROWTH, AT = 0.25, 3.0, 1000  # seconds per trial after AT trials; and over no history


# --- the two sides ---


def ours(history: int, trials: int, seed: int, place: Path) -> dict[str, float]:
    said, space = words_of(place, f"trials={history + trials}", f"seed={seed}")
    begin_after(history, space, said, random.Random(seed))
    example = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}, "epochs": 2})
    planned: Any = SimpleNamespace(goals=GOALS, facts=None, example=example, as_json=dict)
    watched = Watched()

    def answered(seconds: float, given: tuple[bool, object], wait: bool = False) -> None:
        watched.held_up += wait and given[0] and bool(watched.running)

    console = Console(file=StringIO(), force_terminal=True, width=120)
    with (
        observed(Search, watched, lambda result: float(result["reports"][-1]["terms"]["made"])),
        timed(ArmSampler, "propose", lambda seconds, *rest: watched.proposals.append(seconds)),
        timed(SamplerThread, "collect", answered),
        timed(SweepState, "__init__", lambda seconds, *rest: watched.once.update(open=seconds)),
        timed(Progress, "__exit__", lambda *_: watched.once.update(behind=untold(said.folder))),
    ):
        status = run_sweep(space, planned, said, console, trivial_functions())
    assert status == 0, console.file.getvalue()  # type: ignore[attr-defined]
    return watched.figures()


def untold(folder: SweepFolder) -> int:
    """Events that MLflow has not had yet."""
    return folder.spool.read_bytes()[int(folder.spool_sent.read_text().split()[0]) :].count(b"\n")


def plain(history: int, trials: int, seed: int, place: Path) -> dict[str, float]:
    from optuna.samplers import RandomSampler
    from optuna.storages import InMemoryStorage
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    _, space = words_of(place)
    ask, storage, noise = Asking(space), InMemoryStorage(), random.Random(seed)
    before = optuna.create_study(
        storage=storage, study_name="plain", directions=["maximize"] * 2, sampler=RandomSampler(seed=seed)
    )
    for _ in range(history):
        trial = before.ask()
        optimizer = ask(trial)["optimizer"]
        scores = metrics_of(optimizer["lr"], optimizer["weight_decay"], 2, noise)
        before.tell(trial, [scores[goal] for goal in GOALS])
    search = OptunaSearch(ask, metric=list(GOALS), mode=["max", "max"], storage=storage, study_name="plain", seed=seed)
    tuner = tune.Tuner(
        tune.with_resources(Plain, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=ASHAScheduler("epoch", GOALS[0], "max", max_t=2, grace_period=1, reduction_factor=2),
            num_samples=trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="plain",
            storage_path=str(place),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[MLflowLoggerCallback(f"sqlite:///{place / 'mlflow.db'}", experiment_name="plain")],
        ),
    )
    watched = Watched()

    def suggested(seconds: float, *rest: object) -> None:
        watched.proposals.append(seconds)
        watched.held_up += bool(watched.running)

    with (
        cluster(),
        timed(OptunaSearch, "suggest", suggested),  # before the trial counts as running
        observed(OptunaSearch, watched, lambda result: float(result["made"])),
    ):
        tuner.fit()
    return watched.figures()


SIDES: Final = {"ours": ours, "plain": plain}


def measured(side: str, history: int, options: argparse.Namespace) -> dict[str, float]:
    """One run, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as place:
        words = ["--one", side, str(history), place, "--trials", str(options.trials), "--seed", str(options.seed)]
        done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(found: Sequence[tuple[str, int, dict[str, float]]], console: Console) -> dict[str, str]:
    """Prints the table; the verdicts by name."""
    rows = {
        "s per trial": ("wall", 1),
        "driver CPU s per trial": ("driver_cpu", 1),
        "workers CPU s per trial": ("workers_cpu", 1),
        "proposal, ms, median": ("proposal_median", 1000),
        "proposal, ms, longest": ("proposal_longest", 1000),
        "proposals that running trials waited for": ("held_up", 1),
        "wait for the searcher, ms, longest": ("wait_longest", 1000),
        "delay of a result, ms, median": ("delay_median", 1000),
        "delay of a result, ms, longest": ("delay_longest", 1000),
        "history read at the start, s": ("open", 1),
        "events that MLflow lacks at the end": ("behind", 1),
    }
    table = Table("", *(f"{side}\nafter {history}" for side, history, _ in found))
    for name, (key, factor) in rows.items():
        cells = [one.get(key) for _, _, one in found]
        table.add_row(name, *(shown(cell, factor) for cell in cells))
    console.print(table)
    walls = {(side, history): one["wall"] for side, history, one in found}
    return verdicts(walls, {history: one for side, history, one in found if side == "ours"})


def shown(value: float | None, factor: int) -> str:
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    return f"{value * factor:.{3 if factor == 1 else 0}f}"


def verdicts(walls: dict[tuple[str, int], float], own: dict[int, dict[str, float]]) -> dict[str, str]:
    low, high = min(own), max(own)
    said = {
        f"ours over plain after {history}": f"{walls['ours', history] / walls['plain', history]:.2f}"
        for history in own
        if ("plain", history) in walls
    }
    held_up = sum(one["held_up"] for one in own.values())
    said["results that waited for a suggestion"] = verdict(held_up, 0)
    if AT in own:
        said[f"s per trial after {AT}"] = verdict(own[AT]["wall"], LIMIT)
    if high > low:
        said[f"growth from {low} to {high}"] = verdict(own[high]["wall"] / own[low]["wall"], GROWTH)
    return said


def verdict(value: float, most: float) -> str:
    return f"{value:.2f}, at most {most:g}: {'PASS' if value <= most else 'FAIL'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, nargs="+", default=[0, 1000, 2900])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "HISTORY", "FOLDER"), help="used by itself")
    options = parser.parse_args()
    if options.one:
        side, history, place = options.one
        figures = SIDES[side](int(history), options.trials, options.seed, Path(place))
        print(json.dumps(figures))
        return
    turns = [(side, history) for history in options.histories for side in SIDES]
    progress = track(turns, "runs", console=Console(stderr=True))
    found = [(side, history, measured(side, history, options)) for side, history in progress]
    console = Console(width=140)
    said = report(found, console)
    if options.json:
        versions = {name: version(name) for name in ("ray", "optuna", "mlflow")} | {"python": platform.python_version()}
        runs = [{"side": side, "history": history, **one} for side, history, one in found]
        content = {"command": sys.argv, "seed": options.seed, "versions": versions, "runs": runs, "verdicts": said}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    for name, what in said.items():
        console.print(f"{name}: {what}", highlight=False)


if __name__ == "__main__":
    main()
