"""Bytes in MLflow's SQLite file for each trial and epoch.

    python benchmarks/tracking_size.py [--trials 60] [--epochs 30] [--complete] [--before DIR] [--keep DIR]

A search draws trials from the space of the demo, and this file plays Ray Tune's part: each trial reports the metrics
that a training of the demo reports, four trials at a time, and early stopping ends two of three at a third of their
epochs, or none with `--complete`. The tracker then sends the spool to an SQLite file. The size of a file without a
trial is taken off. With `--before` the same is done with the code in another checkout of this repository.

No training runs, so the values are random numbers of full precision, as measured values are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any, Final

GOALS: Final = ("val/auroc", "val/pointing")
LABELS: Final = ("columnar", "lamellar", "reticular")
MAP_SCORES: Final = ("cnr", "iou_otsu", "iou_tuned", "mass", "pixel_ap", "pointing", "rank")
OF_MAP_SCORES: Final = ("", "_centre", "_chance", "_prior", "_se", "_undefined")
CLASS_SCORES: Final = ("ap", "auroc", "auroc_patient", "auroc_patient_mixed", "auroc_patient_se", "auroc_rarer_class")
OTHERS: Final = ("auroc_se", "auroc_undefined", "auroc_patient_undefined", "balanced_accuracy", "brier", "ece")
TEACHER: Final = ("agreement", "auroc", "entropy", "leak", "silent", "val_auroc", "val_auroc_se")
METRICS: Final = (
    *(f"val/{score}" for score in (*CLASS_SCORES, *OTHERS, "balanced_accuracy/pattern")),
    *(f"val/{score}/pattern/{label}" for score in ("ap", "auroc") for label in LABELS),
    *(f"val/{score}{of}" for score in MAP_SCORES for of in OF_MAP_SCORES),
    *(f"val/{score}{of}" for score in ("mass", "pointing") for of in ("_content", "_max")),
)


def report(job: dict[str, Any], epoch: int, last: int, chance: random.Random) -> dict[str, Any]:
    """Returns what a training of the demo reports after an epoch: its goals, and all metrics where it may end."""
    trial = json.loads(job["trial"])
    terms = ["task", *trial["objectives"]]
    shares = [f"gradient_share/{term}" for term in terms] if epoch % 5 == 1 and len(terms) > 1 else []
    of_teacher = [f"teacher/{name}/{score}" for name in trial["teachers"] for score in TEACHER]
    may_end = epoch in (*job["rungs"], trial["epochs"], last)
    names = (*METRICS, *of_teacher) if may_end else GOALS
    values = {name: chance.random() for name in names}
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "seconds": chance.random(),
        "terms": {term: chance.random() for term in (*terms, *shares)},
        "metrics": values,
    }


def play(search: Any, epochs: int, complete: bool) -> int:
    """Plays Ray Tune's part until all trials have ended, and returns how many epochs they had."""
    chance, running, handed_out, total = random.Random(0), deque[tuple[str, Any, int, int]](), 0, 0
    search.max_running, search._wait = 4, True
    while True:
        while len(running) < 4 and isinstance(job := search.suggest(f"trial-{handed_out}"), dict):
            last = epochs if complete or handed_out % 3 == 0 else -(-epochs // 3)
            running.append((f"trial-{handed_out}", job, 1, last))
            handed_out += 1
        if not running:
            return total
        trial_id, job, epoch, last = running.popleft()
        result = {"reports": [report(job, epoch, last, chance)]}
        total += 1
        if epoch == last:
            search.on_trial_complete(trial_id, result)
        else:
            search.on_trial_result(trial_id, result)
            running.append((trial_id, job, epoch + 1, last))


def measure(trials: int, epochs: int, complete: bool, place: Path) -> dict[str, float]:
    """Runs a sweep with the `sweep` that Python imports, and returns its figures."""
    from sweep.options import sqlite_uri
    from sweep.search.searcher import Search
    from sweep.search.state import SweepState
    from sweep.search.studies import Studies
    from sweep.space.space import load_space
    from sweep.storage.events import Spool, SweepBegan, SweepClosed
    from sweep.storage.layout import SweepFolder
    from sweep.tracking.mlflow import Tracker

    def send(name: str, spool: Spool) -> int:
        database = place / "mlflow.db"
        tracker = Tracker(sqlite_uri(database), name, name, spool, place / "mlartifacts")
        tracker.start()
        assert tracker.close(1800) == 0 and not tracker.refused, (tracker.trouble, tracker.refused)
        return database.stat().st_size

    def spool_in(name: str) -> Spool:
        folder = SweepFolder(place / name)
        folder.path.mkdir(parents=True)
        spool = Spool(folder)
        began = SweepBegan(name, [])
        if hasattr(began, "goals"):
            began = SweepBegan(name, [], "", list(GOALS))
        spool.append(began)
        return spool

    os.fsync = lambda file: None
    stopping = "search.early_stopping=false" if complete else "search.early_stopping={reduction: 3}"
    words = [f"trials={trials}", f"epochs={epochs}", "search.sampler=random", stopping]
    space, mistakes = load_space("demo", words)
    assert space is not None and not mistakes
    spool = spool_in("empty")
    spool.append(SweepClosed("FINISHED"))
    empty = send("empty", spool)
    spool = spool_in("sweep")
    state = SweepState(space, GOALS, Studies(spool.folder, space, GOALS), spool, spool.folder)
    search = Search(space, state, spool.folder, place / "cache", place / "store")
    num_epochs = play(search, epochs, complete)
    assert search.error is None, search.error
    spool.append(SweepClosed("FINISHED"))
    spool_bytes = spool.path.stat().st_size
    size = send("sweep", spool) - empty
    return {
        "trials": len(search.finished),
        "epochs": num_epochs,
        "bytes a trial": size / trials,
        "bytes a trial and epoch": size / num_epochs,
        "bytes of spool a trial": spool_bytes / trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--complete", action="store_true")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the files, which are deleted otherwise")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measured = measure(options.trials, options.epochs, options.complete, options.child)
        (options.child / "figures.json").write_text(json.dumps(measured))
        return
    checkouts = {"now": Path(__file__).parents[1]} | ({"before": options.before.resolve()} if options.before else {})
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, code in checkouts.items():
            place = (options.keep or Path(temporary)) / name
            place.mkdir(parents=True)
            words = ["--trials", options.trials, "--epochs", options.epochs, "--child", place]
            command = [sys.executable, __file__, *map(str, words), *["--complete"][: options.complete]]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(code)}, cwd=code)
            figures[name] = json.loads((place / "figures.json").read_text())
            print(name, ", ".join(f"{key}: {value:,.0f}" for key, value in figures[name].items()), flush=True)
    if options.before:
        key = "bytes a trial and epoch"
        print(f"{key}, now / before: {figures['now'][key] / figures['before'][key]:.3f}")


if __name__ == "__main__":
    main()
