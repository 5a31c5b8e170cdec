"""At least 50 faults of many kinds in one sweep on a cluster: nothing lost, nothing twice, nobody asked.

    python benchmarks/fault_campaign.py [--faults 50] [--trials 200] [--nodes 3] [--seed 0] [--kinds KIND,KIND ...]
                                        [--epochs 20] [--seconds 1] [--limit 300] [--folder DIR] [--json FILE]

A sweep of trivial trainings, which save real checkpoint files, runs on a cluster of `--nodes` nodes of two slots on
this machine. Its driver is a process of its own, as a user starts it. Kinds and moments of the faults come from
`--seed`. A fault is due when so many trials have ended, and comes when the sweep goes on after the fault before it.
Then no trial may be lost or trained twice, no epoch may be lost or doubled in Optuna, the tables or MLflow, no
process may be left behind, and after no fault may the sweep have needed a person. Any of these makes the exit status 1.

What was trained is known from lines that the workers write on another disk (`witness.py`). The seconds of a fault run
until the next new epoch report: of the first, and of the last of the trials that it disturbed. They begin when the
fault ends, for faults that last.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pandas as pd
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.chaos.kinds import KINDS, ON_DISK, TRACKING, Injection, as_kill
from benchmarks.chaos.rig import Disk, Rig, Server, wait_for
from benchmarks.chaos.training import ORDERS, SECONDS
from benchmarks.chaos.verdict import extra_by_kind, lost_trials, trained_twice, wrong_epochs
from tests.sweep.nodes import local_cluster

SHARE: Final = 0.6  # of the trials, by which all faults are due: the last faults must still find trials that wait
STALLED: Final = 300.0  # seconds without an event after which the campaign gives up
LEAVE_SECONDS: Final = 60.0  # time in which the processes of an ended sweep have to go, on a busy machine too
IN_NAMESPACE: Final = "CHAOS_NAMESPACE"  # environment variable: whether this process has mounts of its own


@dataclass(frozen=True)
class Fault:
    """A fault and what followed.

    Attributes:
        at, until: when it began and ended, as `time.time()`.
        hit: numbers of the trials that it disturbed.
        first, last: seconds until the first and until every trial of `hit` reported a new epoch; None: not by itself.
    """

    kind: str
    text: str
    at: float
    until: float
    hit: tuple[int, ...]
    damages: bool
    first: float | None
    last: float | None


# --- what happens ---


def schedule(kinds: Sequence[str], faults: int, trials: int, chance: random.Random) -> list[tuple[float, str]]:
    """Returns when each fault is due, in ended trials, and its kind. Each kind comes equally often, to within one."""
    drawn = [kind for _ in range(-(-faults // len(kinds))) for kind in chance.sample(list(kinds), len(kinds))]
    return list(zip(sorted(chance.uniform(0, SHARE * trials) for _ in range(faults)), drawn, strict=False))


def run(
    rig: Rig, plan: Sequence[tuple[float, str]], chance: random.Random, limit: float, console: Console
) -> list[Fault]:
    """Does every fault of the plan, and waits after each until the sweep goes on, `limit` seconds at most."""
    done: list[Fault] = []
    for due, kind in plan:
        injection, at = None, 0.0
        while injection is None:
            rig.look_after(trouble=False)
            if rig.complete or _stalled(rig):
                return done
            if len(rig.finished()) < due:
                rig.release()
            else:
                rig.hold(())
                at = time.time()
                injection = KINDS[kind](rig, chance)
            time.sleep(0.2)
        fault = _follow(rig, kind, injection, at, limit)
        done.append(fault)
        seconds = "not by itself" if fault.last is None else f"{fault.first:.1f} s to {fault.last:.1f} s"
        console.print(f"{len(done)} of {len(plan)}: {kind}, {injection.text}: {seconds}", highlight=False)
    rig.release()
    return done


def _follow(rig: Rig, kind: str, injection: Injection, at: float, limit: float) -> Fault:
    newest = {line.number: line.epoch for line in rig.lines() if line.word == "ends"}
    if injection.kills or injection.cuts:
        # A trial that it disturbed may have begun while the fault was being done.
        rig.watch.kills.append(as_kill(kind, injection, at, time.time()))
    while time.time() < at + injection.seconds:
        rig.look_after(trouble=True)
        injection.keep()
        time.sleep(0.1)
    injection.undo()
    since, first, last = time.time() if injection.seconds else at, None, None
    while last is None and time.time() < since + limit and not rig.complete:
        rig.look_after(trouble=False)
        time.sleep(0.1)
        if injection.recovered is not None:
            first = last = time.time() - since if injection.recovered() else None
            continue
        begun = _begun_again(rig, injection, since)
        goes_on = _first_news(rig, begun, newest, since)
        late = set(injection.hit) - set(goes_on)
        # A disturbed trial goes at its own pace to its next epoch only. One without a place waits for others to end.
        others = sorted(set(rig.in_flight()) - late)
        rig.hold({*(late & set(begun)), *others[: len(late - set(begun))]})
        if not late:
            first, last = min(goes_on.values()) - since, max(goes_on.values()) - since
    if last is None:
        until = "before its end" if rig.complete else f"within {limit:g} s"
        rig.by_hand.append(f"{kind}, {injection.text}: the sweep did not go on {until}")
        injection.remedy()
    injection.clean()
    return Fault(kind, injection.text, at, since, injection.hit, injection.damages, first, last)


def _begun_again(rig: Rig, injection: Injection, since: float) -> dict[int, float]:
    """Returns from when on news of the trials that a fault disturbs count, by their numbers. A worker that was killed
    may still be heard for a moment, so that its trial must first have begun a new attempt, or ended.
    """
    if not injection.kills:
        return dict.fromkeys(injection.hit, since)
    begun = {event["number"]: event["time"] for event in rig.events() if event["event"] == "end"}
    begun |= {line.number: line.time for line in reversed(rig.lines()) if line.word == "found" and line.time > since}
    return {number: time for number, time in begun.items() if number in injection.hit}


def _first_news(rig: Rig, begun: Mapping[int, float], newest: Mapping[int, int], since: float) -> dict[int, float]:
    """Returns when trials have first reported a new epoch, or their end, after a fault."""
    times: dict[int, float] = {}
    for event in rig.events():
        number = event.get("number", -1)
        if number not in begun or number in times or event["time"] < max(begun[number], since):
            continue
        if event["event"] == "end" or (event["event"] == "epoch" and event["epoch"] > newest.get(number, 0)):
            times[number] = event["time"]
    return times


def _stalled(rig: Rig) -> bool:
    newest = max((event["time"] for event in rig.events()), default=None)
    return newest is not None and time.time() - newest > STALLED


def finish(rig: Rig) -> list[str]:
    """Waits for the end of the sweep. Returns the processes that it has left behind."""
    while not rig.complete and not _stalled(rig):
        rig.look_after(trouble=False)
        time.sleep(0.2)
    late = rig.watch.settle()
    nodes = [rig.cluster.nodes[0], *rig.workers()]
    wait_for(lambda: not rig.left_behind(nodes) and not _workers_of(rig), LEAVE_SECONDS)
    return late + [
        f"process {pid} is left: {text[:100]}" for pid, text in (rig.left_behind(nodes) | _workers_of(rig)).items()
    ]


def _workers_of(rig: Rig) -> dict[int, str]:
    processes = {pid: text for node in rig.workers() for pid, text in node.processes().items()}
    return {pid: text for pid, text in processes.items() if text.startswith("ray::") and not text.endswith("Agent")}


# --- what is printed ---


def by_kind(faults: Sequence[Fault], extra: Mapping[str, int]) -> Table:
    table = Table("kind", "faults", "first goes on, s", "all go on, s", "longest, s", "epochs begun again")
    for kind in dict.fromkeys(fault.kind for fault in faults):
        own = [fault for fault in faults if fault.kind == kind]
        firsts = [fault.first for fault in own if fault.first is not None]
        lasts = [fault.last for fault in own if fault.last is not None]
        medians = [f"{statistics.median(values):.1f}" if values else "never" for values in (firsts, lasts)]
        longest = f"{max(lasts):.1f}" if len(lasts) == len(own) else "never"
        table.add_row(kind, str(len(own)), *medians, longest, str(extra.get(kind, 0)))
    return table


def judge(rig: Rig, faults: Sequence[Fault], planned: int, trials: int, left: Sequence[str]) -> dict[str, list[str]]:
    """Returns what is wrong, by the name of the requirement."""
    if not rig.complete:
        return {"the sweep did not end": [*rig.by_hand, rig.log.read_text(errors="replace")[-2000:]]}
    lines, folder = rig.lines(), rig.sweep.path
    table = pd.read_parquet(folder / "trials.parquet")
    epochs = dict(zip(table["number"], table["epochs"], strict=True))
    damaged = {number for fault in faults if fault.damages for number in fault.hit}
    troubles = [(fault.at, fault.until) for fault in faults if fault.kind in ON_DISK]
    missing = planned - len(faults)
    wrong = wrong_epochs(folder, rig.tracking, lines, rig.watch.kills, damaged, trials, troubles) + rig.watch.written
    return {
        "trials lost": lost_trials(folder, rig.orders, trials),
        "trials trained twice to the end": trained_twice(folder, lines, epochs),
        "epochs lost or doubled in Optuna, the tables or MLflow": wrong,
        "steps by hand": rig.by_hand,
        "processes left behind": list(left),
        "faults left out": [f"{missing} faults met no trial; more --trials would last"] if missing else [],
    }


def with_own_mounts(kinds: Sequence[str], console: Console) -> tuple[list[str], bool]:
    """Runs this program again in a mount namespace of its own if a kind needs one, so that its mounts end with it.

    Returns:
        The kinds that are possible, and whether the disk may be mounted.
    """
    if IN_NAMESPACE in os.environ or not set(kinds) & ON_DISK:
        return list(kinds), IN_NAMESPACE in os.environ
    if shutil.which("unshare") and not subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        os.environ[IN_NAMESPACE] = "1"
        sys.stdout.flush()
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    console.print(f"left out, because they need root and `unshare --mount`: {', '.join(ON_DISK & set(kinds))}")
    return [kind for kind in kinds if kind not in ON_DISK], False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="some of: " + ", ".join(KINDS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="of an epoch")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds within which the sweep has to go on")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the cluster too
    kinds = [kind.strip() for kind in options.kinds.split(",") if kind.strip()] or list(KINDS)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"unknown kinds: {', '.join(unknown)}; known: {', '.join(KINDS)}")
    console, chance, started = Console(width=140), random.Random(options.seed), time.monotonic()
    kinds, mounted = with_own_mounts(kinds, console)
    if not kinds:
        parser.error("no kind of faults is left")
    plan = schedule(kinds, options.faults, options.trials, chance)
    console.print(f"seed {options.seed}: " + "; ".join(f"{kind} after {due:.1f} trials" for due, kind in plan))
    folder = options.folder or Path(tempfile.mkdtemp(prefix="campaign-"))
    folder.mkdir(parents=True, exist_ok=True)
    environment = {SECONDS: str(options.seconds), ORDERS: str(folder / "orders")}
    with local_cluster(os.environ.__setitem__, environment) as cluster:
        rig = None
        try:
            disk, server = Disk(folder / "storage", mounted), Server(folder / "server") if TRACKING in kinds else None
            rig = Rig(folder, cluster, disk, server, options.trials, options.epochs)
            rig.start_nodes(options.nodes)
            faults = run(rig, plan, chance, options.limit, console)
            left = finish(rig)
            wrong = judge(rig, faults, options.faults, options.trials, left)
        finally:
            if rig is not None:
                rig.end()
    seconds = time.monotonic() - started
    extra = extra_by_kind(rig.lines(), faults)
    console.print(by_kind(faults, extra))
    for name, problems in wrong.items():
        console.print(f"{name}: {len(problems)}", highlight=False)
        for problem in problems:
            console.print(f"  {problem}", highlight=False, markup=False)
    passed = not any(wrong.values())
    console.print(f"{len(faults)} faults, {seconds:.0f} s, {rig.queued_again} times queued again after SIGTERM")
    console.print(f"verdict: {'pass' if passed else 'FAIL'}")
    if options.json:
        content = {"command": sys.argv, "seed": options.seed, "plan": plan, "faults": [vars(fault) for fault in faults]}
        content |= {"versions": {name: version(name) for name in ("ray", "optuna", "mlflow")}, "seconds": seconds}
        content |= {"extra": extra, "wrong": wrong, "queued_again": rig.queued_again, "passed": passed}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if not passed and mounted:
        shutil.copytree(
            disk.path, folder / "storage-as-it-was", ignore=shutil.ignore_patterns("checkpoints", "filling")
        )
    if not options.folder and passed and not mounted:
        shutil.rmtree(folder)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
