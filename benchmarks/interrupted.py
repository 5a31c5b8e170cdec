"""A driver killed at 30 random moments: nothing lost, nothing twice.

    python benchmarks/interrupted.py [--kills 30] [--trials 60] [--seed 0] [--checkpoint-seconds 5] [--folder DIR]
                                     [--json FILE]

The demo space on a small cohort, really trained, two trials at a time. The kills are due at random
points of its progress; each falls a random 0 to `--longest` seconds after the driver has told of a new
epoch. It is `kill -9`, and the same command is run again at once, orphans or not; the last one comes
to its end. Then

  - Optuna, MLflow and trials.parquet tell the same number, state and goals of every trial, and the
    journal gives each exactly one final state;
  - no finished trial was trained again, and every trial in flight went on at the epoch after its last
    checkpoint. Begun a second time were only, for each kill and trial in flight, the epoch that was
    cut off, and epochs that had ended within `--checkpoint-seconds`, an epoch and a write (with 0: none);
  - no attempt's folder changed after its successor had begun, and no process of a killed driver was
    left half a minute later;
  - best.yaml, trained from beginning to end, gives the goals that the sweep recorded.

What was trained is known from lines that the workers write, not from the driver (`witness.py`).
Drivers are forked off this process, which has loaded torch and Ray but started neither: that spares
each of them a quarter of a minute of imports.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import pandas as pd
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.attempts import Kill, attempts_of, cut_attempts, extra_epochs, losses_of
from benchmarks.witness import (
    WRITE_SECONDS,
    Watch,
    descendants,
    events_of,
    faults,
    lines_of,
    logged,
    recorded,
)
from mmpkd.machine.resources import cores

SPACE = ("space=demo", "name=interrupted", "epochs=8")
COHORT = ("cohort.params.train=400", "cohort.params.val=100", "cohort.params.test=12")
LOADED = ("mmpkd.train", "sweep.driver")  # by every driver
FINAL = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
AT_A_TIME = 2  # trials
SHARE = 0.8  # of the trials, by which all kills are due: the last ones must find something to kill
TELLS_STATE, FINISHED = 6, (1, 2, 3)  # in Optuna's journal: the operation, and complete, pruned, failed


class Driver(Protocol):
    """A process that runs a sweep, as `subprocess.Popen` shows it."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


class Forked:
    """`python -m sweep.run WORDS` with the logging worker, forked off this process."""

    def __init__(self, words: Sequence[str], log: Path):
        sys.stdout.flush()
        self._status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            try:
                os._exit(drive(words))
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(0.01)
        return status


def drive(words: Sequence[str]) -> int:
    from sweep.driver import FUNCTIONS, run_sweep
    from sweep.options import read_run_options
    from sweep.plan.plan import plan
    from sweep.space.space import load_space

    sys.argv = ["sweep.run", *words]
    options, mistakes = read_run_options(words)
    space, found = load_space(options.space, options.overrides)
    assert space is not None
    planned = plan(space, mistakes + found)
    assert not planned.mistakes, planned.mistakes
    functions = replace(FUNCTIONS, training=logged(FUNCTIONS.training))
    status = run_sweep(space, planned, options, Console(width=160), functions)
    sys.stdout.flush()
    return status


def interrupt(start: Callable[[], Driver], folder: Path, moments: Iterable[tuple[float, float]]) -> Watch:
    """Starts a driver and kills it, and again, for every moment.

    Args:
        moments: how many trials must be finished, and seconds from then on; if later, from its first new epoch on.
    """
    watch = Watch(folder)
    for due, wait in moments:
        kill(start(), folder, due, wait, watch)
    return watch


def kill(driver: Driver, folder: Path, due: float, wait: float, watch: Watch) -> None:
    started, before, first = time.time(), recorded(folder)["epoch"], None
    while first is None or time.monotonic() - first < wait:
        if driver.poll() is not None:
            raise SystemExit(f"the driver ended by itself before it was killed; more trials= would last: {folder}")
        watch.look()
        if first is None and (now := recorded(folder))["epoch"] > before and now["end"] >= due:
            first = time.monotonic()
        time.sleep(0.02)
    family = dict(descendants(driver.pid))
    since = time.time()
    os.kill(driver.pid, signal.SIGKILL)
    at = time.time()
    driver.wait()
    done = {event["number"] for event in events_of(folder) if event["event"] == "end"}
    lines = [line for line in lines_of(folder) if line.time > started]
    family |= {line.pid: "a worker" for line in lines}  # of a Ray that outlives its drivers
    in_flight = tuple(sorted({line.number for line in lines} - done))
    watch.kills.append(Kill(recorded(folder)["epoch"] - before, wait, len(done), in_flight, since, at, family))


def disagreements(folder: Path, tracking: str, trials: int) -> list[str]:
    """Whatever Optuna, MLflow and trials.parquet do not say alike, or say of the wrong trials."""
    table = pd.read_parquet(folder / "trials.parquet").set_index("number")
    goals = [goal for goal in ("val/auroc", "val/pointing") if goal in table]
    optuna, mlflow = _from_optuna(folder), _from_mlflow(folder.name, tracking, goals)
    wrong = [] if sorted(table.index) == list(range(trials)) else [f"trials.parquet has {sorted(table.index)}"]
    for name, found in (("Optuna", optuna), ("MLflow", mlflow)):
        numbers = Counter(number for number, _, _ in found)
        wrong += [f"{name} has trial {number} {count} times" for number, count in numbers.items() if count > 1]
        if sorted(numbers) != list(range(trials)):
            wrong.append(f"{name} has {sorted(numbers)}")
        for number, state, values in found:
            if number not in table.index:
                continue
            row = table.loc[number]
            if state != row["state"]:
                wrong.append(f"trial {number}: {name} says {state}, the table {row['state']}")
            for goal, value in zip(goals, values, strict=False):
                if not math.isclose(value, row[goal], rel_tol=1e-9):
                    wrong.append(f"trial {number}: {name} says {goal} {value}, the table {row[goal]}")
    ends = Counter(event["number"] for event in events_of(folder) if event["event"] == "end")
    wrong += [f"trial {number} ended {count} times" for number, count in ends.items() if count > 1]
    final = _final_states(folder / "journal.log")
    wrong += [f"the journal gives {count} trials {times} final states" for times, count in final.items() if times != 1]
    epochs = pd.read_parquet(folder / "epochs.parquet").groupby("number")["epoch"].agg(list)
    for number, row in table.iterrows():
        if epochs.get(number, []) != list(range(1, row["epochs"] + 1)):
            wrong.append(f"trial {number}: epochs {epochs.get(number)}, the table says {row['epochs']}")
    return wrong


def _final_states(journal: Path) -> Counter[int]:
    """How many trials were told how many final states, by the lines of the journal itself."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    finished = [one for one in lines if one["op_code"] == TELLS_STATE and one["state"] in FINISHED]
    return Counter(Counter(one["trial_id"] for one in finished).values())


def _from_optuna(folder: Path) -> list[tuple[int, str, list[float]]]:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return [
        (one.user_attrs["number"], states.get(one.state.name, one.state.name), one.values or [])
        for name in optuna.get_all_study_names(storage)
        for one in optuna.load_study(study_name=name, storage=storage).trials
    ]


def _from_mlflow(name: str, tracking: str, goals: Sequence[str]) -> list[tuple[int, str, list[float]]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = []
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        if "sweep.number" in run.data.tags:
            state = run.data.tags["outcome"]
            agrees = run.info.status == FINAL[state]
            values = [run.data.metrics.get(goal, math.nan) for goal in goals] if state != "failed" else []
            found.append((int(run.data.tags["sweep.number"]), state if agrees else run.info.status, values))
    return found


def uninterrupted(folder: Path, cache: Path) -> bool:
    """Whether best.yaml, trained from beginning to end, gives the metrics that the sweep recorded."""
    from mmpkd.config import load_trial
    from mmpkd.train import train

    table = pd.read_parquet(folder / "trials.parquet")
    best = table[table["state"] == "complete"].sort_values(["val/auroc", "val/pointing"]).iloc[-1]
    metrics = train(load_trial(folder / "best.yaml"), cache)[-1].metrics
    return all(metrics[goal] == best[goal] for goal in ("val/auroc", "val/pointing"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--longest", type=float, default=2.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    storage = options.folder or Path(tempfile.mkdtemp(prefix="interrupted-"))
    storage.mkdir(parents=True, exist_ok=True)
    tracking, cache, folder = f"sqlite:///{storage / 'mlflow.db'}", storage / "cache", storage / "interrupted"
    share = cores().amount / AT_A_TIME
    places = {"trials": options.trials, "search.cpus": share, "storage": storage, "cache": cache, "tracking": tracking}
    words = [*SPACE, *COHORT, *(f"{key}={value}" for key, value in places.items())]
    words.append(f"checkpoint_seconds={options.checkpoint_seconds:g}")
    chance = random.Random(options.seed)
    due = sorted(chance.uniform(0, SHARE * options.trials) for _ in range(options.kills))
    moments = [(trials, chance.uniform(0, options.longest)) for trials in due]
    for module in LOADED:
        importlib.import_module(module)
    console, started = Console(width=120), time.monotonic()
    log = storage / "driver.log"
    watch = interrupt(lambda: Forked(words, log), folder, track(moments, "kills", console=Console(stderr=True)))
    last = Forked(words, log)
    while last.poll() is None:
        watch.look()
        time.sleep(0.02)
    late = watch.settle()
    seconds = time.monotonic() - started
    table, lines = pd.read_parquet(folder / "trials.parquet"), lines_of(folder)
    wrong = disagreements(folder, tracking, options.trials) + watch.written + late
    wrong += [f"the last driver ended with status {last.wait()}, see {log}"] if last.wait() else []
    epochs = dict(zip(table["number"], table["epochs"], strict=True))
    wrong += faults(folder, lines, watch.kills, epochs, options.checkpoint_seconds)
    same = uninterrupted(folder, cache)
    report(console, watch.kills)
    most = options.kills * AT_A_TIME
    resumed = sum(line.word == "found" and line.epoch > 0 for line in lines)
    extra, states, losses = extra_epochs(lines).total(), Counter(table["state"]), losses_of(lines)
    cut = sum(len(cut_attempts(own)) for own in attempts_of(lines).values())
    longest = max((loss.seconds for loss in losses), default=0.0)
    seconds_between = options.checkpoint_seconds
    allowed = f"{seconds_between:g} + an epoch + {WRITE_SECONDS:g} s for a write" if seconds_between else "0 s"
    figures = {
        "trials finished": f"{len(table)}: {dict(states)}; {seconds:.0f} s in all",
        "epochs trained": int(table["epochs"].sum()),
        "times that a trial went on from a checkpoint": resumed,
        "epochs begun a second time": f"{extra}, {extra - cut} of which had ended",
        "of these, cut off by a kill": f"{cut}, at most {most} (kills x trials at a time)",
        "longest time over which epochs ended that one kill lost": f"{longest:.1f} s, at most {allowed}",
        "processes left after 30 s": len(late),
        "best.yaml trained without interruption gives the same goals": "yes" if same else "NO",
    }
    for line in [*(f"{name}: {value}" for name, value in figures.items()), *(f"disagreement: {one}" for one in wrong)]:
        console.print(line, highlight=False)
    passed = not wrong and same and cut <= most
    console.print(f"verdict: {'pass' if passed else 'FAIL'}")
    if options.json:
        versions = {name: version(name) for name in ("ray", "optuna", "mlflow", "torch")}
        kills = [{**vars(one), "family": len(one.family)} for one in watch.kills]
        content = {"command": sys.argv, "words": words, "seed": options.seed, "versions": versions, "kills": kills}
        content |= {"python": platform.python_version(), "figures": figures, "wrong": wrong, "passed": passed}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if not options.folder and passed:
        shutil.rmtree(storage)
    return 0 if passed else 1


def report(console: Console, kills: Sequence[Kill]) -> None:
    table = Table("kill", "new epochs", "waited, s", "trials done", "in flight", "orphans gone after, s")
    for index, one in enumerate(kills, start=1):
        flying = ", ".join(map(str, one.in_flight))
        gone = f"{one.gone_after:.1f}" if not one.family else f"never: {one.family}"
        table.add_row(str(index), str(one.new_epochs), f"{one.waited:.1f}", str(one.done), flying, gone)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
