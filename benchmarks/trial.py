"""CPU-seconds of whole trials, of this code over earlier code: training, validation, checkpoints and export.

    python benchmarks/trial.py --before DIR [--breast DIR] [--rounds 5] [--json FILE]

`--before DIR` names a checkout of earlier code (`git worktree add DIR REVISION`). Each side trains the same
configuration in processes of its own, in turn, in an order that changes with every round; one thread. Trials are of the
space `demo` (10 epochs) and, with `--breast`, of `breast` (9 epochs), arm `tabular` with `logits`. As in a sweep with
early stopping, the epoch of the rung and the last epoch are scored completely. The cohort is prepared and the teacher
fitted beforehand. Seconds run from the call of `train` to its end. CPU-seconds of the process are judged, because other
work on the machine disturbs them least; seconds by the clock stand beside them, and count waiting for the disk too. A
ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT: Final = Path(__file__).parents[1]
LIMIT: Final = 0.95
CODE: Final = """
import inspect, json, sys, tempfile, time
from pathlib import Path
from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.teachers.fitted import fit_teachers
from mmpkd.train import train
import scipy.optimize  # the end of a trial imports it, once in a process that runs many trials
config, cache = TrialConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2])
store = prepare(config.cohort, cache)
fit_teachers(config, store, cache)
rung = {-(-config.epochs // 3), config.epochs}
options = {"complete": rung} if "complete" in inspect.signature(train).parameters else {}
with tempfile.TemporaryDirectory() as folder:
    started, cpu = time.perf_counter(), time.process_time()
    train(config, cache, Path(folder), store=store, **options)
    print(time.process_time() - cpu, time.perf_counter() - started)
"""


def trials(breast: Path | None) -> dict[str, dict[str, Any]]:
    """Returns the configurations by name, written so that earlier code reads them too."""
    logits = {"teachers": {"findings": {"kind": "tabular"}}, "objectives": {"logits": {}}}
    network = {"model": "vit_tiny_patch16_224", "patch_size": 8, "num_heads": 4}
    synthetic = {
        "reader": "synthetic",
        "image_size": 48,
        "params": {"train": 600, "val": 240, "test": 60, "texture": 0.2},
    }
    named: dict[str, dict[str, Any]] = {
        "demo": {
            "cohort": synthetic,
            "student": {**network, "embed_dim": 64, "depth": 3},
            "augmentation": {"flip_vertical": True},
            "epochs": 10,
            **logits,
        }
    }
    if breast is not None:
        named["breast"] = {
            "cohort": {"reader": "breast_lesions_usg", "root": str(breast.resolve()), "image_size": 96},
            "student": {**network, "embed_dim": 128, "depth": 4},
            "optimizer": {"batch_size": 16},
            "epochs": 9,
            **logits,
        }
    return named


def seconds_of(checkout: Path, config: dict[str, Any], cache: Path) -> tuple[float, float]:
    """Returns CPU-seconds and seconds of a trial of this code."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, json.dumps(config), str(cache)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}: the trial failed\n{done.stderr}")
    cpu, wall = map(float, done.stdout.split()[-2:])
    return cpu, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--breast", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sides = {"before": options.before.resolve(), "now": ROOT}
    table = Table(
        "trial", "before", "now, CPU-s", "now / before", "lowest to highest", "at most", "verdict", "by the clock"
    )
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for name, config in trials(options.breast).items():
            caches = {side: Path(folder) / f"{name}-{side}" for side in sides}
            for side, checkout in sides.items():
                seconds_of(checkout, {**config, "epochs": 1}, caches[side])  # prepares, fits, and compiles modules
            rounds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
            for index in track(range(options.rounds), name, console=Console(stderr=True)):
                for side in sorted(sides, reverse=bool(index % 2)):
                    rounds[side].append(seconds_of(sides[side], config, caches[side]))
            cpu, clock = (
                sorted(now[kind] / before[kind] for before, now in zip(rounds["before"], rounds["now"], strict=True))
                for kind in (0, 1)
            )
            ratio, by_clock = statistics.median(cpu), statistics.median(clock)
            medians = {side: statistics.median(seconds for seconds, _ in each) for side, each in rounds.items()}
            figures.append({"trial": name, **medians, "ratio": ratio, "ratios": cpu, "by_clock": clock, "limit": LIMIT})
            verdict, spread = "PASS" if ratio <= LIMIT else "FAIL", f"{cpu[0]:.3f} to {cpu[-1]:.3f}"
            seconds = [f"{medians[side]:.2f}" for side in sides]
            table.add_row(name, *seconds, f"{ratio:.3f}", spread, str(LIMIT), verdict, f"{by_clock:.3f}")
    Console(width=120).print(table)
    if options.json:
        content = {"command": sys.argv, "python": platform.python_version(), "figures": figures}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
