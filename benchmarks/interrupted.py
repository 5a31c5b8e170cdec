"""A driver killed three times in mid-sweep: nothing lost, nothing twice.

    python benchmarks/interrupted.py [--folder DIR] [--trials 16] [--json FILE]

Starts the demo sweep (short trainings), kills its driver with `kill -9` when a tenth, a third and
two thirds of the trials are done and others are in flight, each time runs the same command again,
and lets the last one end. Then the Optuna studies, MLflow and trials.parquet must tell the same
number, state and goal values of every trial, and none may have been finished twice. The last
trial of all is checked against an uninterrupted training of its configuration.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

COMMAND = (sys.executable, "-m", "sweep.run", "space=demo", "name=interrupted")
SHORT = ("cohort.params.train=120", "cohort.params.val=60", "cohort.params.test=12", "epochs=6")
MOMENTS = (0.1, 0.35, 0.7)  # shares of the trials done when the driver is killed
FINAL = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


@dataclass
class Kill:
    done: int  # trials finished at that moment
    in_flight: int  # trials with an epoch behind them and more to come
    survivors: list[str] = field(default_factory=list)  # of the driver's processes, half a minute later


def interrupt(command: Sequence[str], folder: Path, trials: int, moments: Sequence[float] = MOMENTS) -> list[Kill]:
    """Runs `command`, killed at each moment and started again, until it ends by itself."""
    kills = [kill(command, folder, moment * trials) for moment in moments]
    subprocess.run(command, check=True)
    return kills


def kill(command: Sequence[str], folder: Path, wanted: float) -> Kill:
    """Starts a driver, and kills it once `wanted` trials are done and others are in flight."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("w") as file:
        driver = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    while True:
        if driver.poll() is not None:
            raise SystemExit(f"the driver ended by itself before {wanted:g} trials were done:\n{log.read_text()}")
        done, in_flight = _state(folder)
        if done >= wanted and in_flight:
            break
        time.sleep(0.02)
    family = list(_descendants(driver.pid))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    return Kill(done, in_flight, _outliving(family, seconds=30))


def _state(folder: Path) -> tuple[int, int]:
    ended, epochs = set(), set()
    for event in _events(folder):
        if event["event"] == "end":
            ended.add(event["number"])
        elif event["event"] == "epoch":
            epochs.add(event["number"])
    return len(ended), len(epochs - ended)


def _events(folder: Path) -> list[dict[str, Any]]:
    spool = folder / "spool.jsonl"
    lines = spool.read_bytes().splitlines(keepends=True) if spool.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Less Ray's two agents: they train nothing, and end by themselves a minute after their node."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            if not command.endswith("Agent"):
                yield int(child), command[-60:]
            yield from _descendants(int(child))


def _outliving(family: Sequence[tuple[int, str]], seconds: float) -> list[str]:
    end = time.monotonic() + seconds
    while True:
        left = [(pid, command) for pid, command in family if _alive(pid)]
        if not left or time.monotonic() > end:
            return [f"{pid} {command}" for pid, command in left]
        time.sleep(0.2)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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
    ends = Counter(event["number"] for event in _events(folder) if event["event"] == "end")
    wrong += [f"trial {number} ended {count} times" for number, count in ends.items() if count > 1]
    epochs = pd.read_parquet(folder / "epochs.parquet").groupby("number")["epoch"].agg(list)
    for number, row in table.iterrows():
        if epochs.get(number, []) != list(range(1, row["epochs"] + 1)):
            wrong.append(f"trial {number}: epochs {epochs.get(number)}, the table says {row['epochs']}")
    return wrong


def _from_optuna(folder: Path) -> list[tuple[int, str, list[float]]]:
    """Also counts how often a trial was given a final state, in the journal itself."""
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
    complete = table[table["state"] == "complete"].sort_values(["val/auroc", "val/pointing"])
    best = complete.iloc[-1]
    metrics = train(load_trial(folder / "best.yaml"), cache)[-1].metrics
    return all(metrics[goal] == best[goal] for goal in ("val/auroc", "val/pointing"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    storage = options.folder or Path(tempfile.mkdtemp(prefix="interrupted-"))
    places = (f"storage={storage}", f"cache={storage / 'cache'}", f"tracking=sqlite:///{storage / 'mlflow.db'}")
    command = [*COMMAND, *SHORT, f"trials={options.trials}", *places]
    folder = storage / "interrupted"
    started = time.monotonic()
    kills = interrupt(command, folder, options.trials)
    wrong = disagreements(folder, f"sqlite:///{storage / 'mlflow.db'}", options.trials)
    same = uninterrupted(folder, storage / "cache")
    table = Table("kill", "trials done", "in flight", "processes left")
    for index, one in enumerate(kills, start=1):
        table.add_row(str(index), str(one.done), str(one.in_flight), "\n".join(one.survivors) or "none")
    console = Console()
    console.print(table)
    states = Counter(pd.read_parquet(folder / "trials.parquet")["state"])
    console.print(f"{sum(states.values())} trials finished: {dict(states)}; {time.monotonic() - started:.0f} s in all")
    for one in wrong:
        console.print(f"disagreement: {one}")
    console.print(f"best.yaml trained without interruption gives the same goals: {'yes' if same else 'NO'}")
    passed = not wrong and same and sum(states.values()) == options.trials
    console.print(f"verdict: {'pass' if passed else 'FAIL'}")
    if options.json:
        figures = {
            "command": command,
            "kills": [vars(one) for one in kills],
            "states": dict(states),
            "disagreements": wrong,
            "same_without_interruption": same,
            "passed": passed,
            "python": platform.python_version(),
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if not options.folder:
        shutil.rmtree(storage)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
