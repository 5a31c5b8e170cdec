"""Whether one GPU is kept busy: steps, epochs, packing and cached teaching, against what a user writes and the floor.

    python benchmarks/gpu.py [--quick] [--only PART,...] [--minutes 7] [--json FILE] [--markdown FILE]

On an H100 it takes at most 7 minutes; `benchmarks/device.sh` prepares a folder that can travel to such a machine, and
names the command. `--quick` runs everything in a minute on a CPU, with tiny models under the same names. Only `mmpkd`
is needed, no Ray.

For a demo student and ViTs of several batch sizes, four ways to take a training step are compared: (a) what a user
writes, (b) ours as it was at commit b8a63b1, (c) ours now, (d) the floor (one batch that stays on the device, no
augmentation, no loss terms of ours). All training functions under (c) are the product's own. The share of the peak is
images a second x operations of an image (`flops_of` states the formula) over the measured rate of a matrix product.
Launches and waits are counted by torch's profiler, as the difference between calls of two numbers of steps; what a
call does once does not count.

The parts are card, steps, epoch, packed, taught, equality and executions. Each has a share of the time, and stops early
with what it has. Both files are written after every row, so that a run that is cut off leaves its figures. Beside the
JSON file, FILE.profiles.txt has the ten rows with the most time of each profile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.gpu_cohort import FULL, QUICK, Cohorts, Scale
from benchmarks.gpu_epoch import epoch_part
from benchmarks.gpu_measure import Budget, card, free_memory, matmul_peak
from benchmarks.gpu_report import Results, markdown, outcome_of, verdicts
from benchmarks.gpu_steps import Row, equality_part, steps_part, taught_part
from benchmarks.gpu_workers import executions_part, packed_part

PARTS = {  # and their weights: a part may take this share of what is left for itself and for the parts that follow
    "card": 0.0,
    "steps": 0.42,
    "epoch": 0.1,
    "packed": 0.25,
    "taught": 0.08,
    "equality": 0.05,
    "executions": 0.15,
}


class Record:
    """The results so far, which are written after each row: as JSON to `path`, as Markdown to `page`."""

    def __init__(self, path: Path | None, page: Path | None = None) -> None:
        self.path, self.page, self.started = path, page, time.perf_counter()
        self.results: Results = {"command": sys.argv, "notes": {}}

    def keep(self, part: str) -> Callable[[Row], None]:
        """Returns a function that adds a row to a part."""
        rows = self.results.setdefault(part, [])

        def add(row: Row) -> None:
            profile = row.pop("table", "")
            rows.append(row)
            print(f"{time.perf_counter() - self.started:6.1f} s  {part}: {_short(row)}", file=sys.stderr, flush=True)
            self.write()
            if profile and self.path:
                with self.path.with_suffix(".profiles.txt").open("a") as file:
                    file.write(
                        f"{part}: {row['model']} batch {row['batch_size']} variant {row['variant']}\n{profile}\n"
                    )

        return add

    def write(self) -> None:
        self.results["seconds"] = time.perf_counter() - self.started
        checks = verdicts(self.results)
        self.results["verdicts"] = [check._asdict() | {"outcome": outcome_of(check, self.results)} for check in checks]
        if self.page:
            self.page.write_text(markdown(self.results))
        if self.path:
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.results, indent=1))
            os.replace(partial, self.path)


def _short(row: Row) -> str:
    values = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
    return " ".join(f"{key}={value}" for key, value in values.items() if not isinstance(value, dict))


def run(scale: Scale, carried: Path, record: Record, parts: Sequence[str], seconds: float) -> None:
    """Runs the parts in order. A part that fails is noted, and the next one runs."""
    whole = Budget(seconds)
    facts = record.results["card"] = card() | {"peak": matmul_peak(scale.matmul)}
    peak: float = facts["peak"]
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        cohorts = Cohorts(scale, Path(folder), carried)
        functions: dict[str, Callable[[Budget, Callable[[Row], None]], Any]] = {
            "steps": lambda budget, keep: steps_part(scale, cohorts, peak, budget, keep),
            "epoch": lambda budget, keep: epoch_part(scale, cohorts, budget, keep),
            "packed": lambda budget, keep: packed_part(scale, cohorts, carried, budget, keep),
            "taught": lambda budget, keep: taught_part(scale, cohorts, carried, budget, keep),
            "equality": lambda budget, keep: equality_part(scale, cohorts, budget, keep),
            "executions": lambda budget, keep: executions_part(scale, cohorts, carried, peak, budget, keep),
        }
        wanted = [part for part in functions if part in parts]
        for index, part in enumerate(wanted):
            function, to_come = functions[part], sum(PARTS[name] for name in wanted[index:])
            budget = whole.part(whole.left() * PARTS[part] / to_come)
            try:
                function(budget, record.keep(part))
            except Exception as error:
                record.results["notes"][part] = f"failed with {type(error).__name__}: {error}"
                traceback.print_exc()
            if budget.was_short:
                record.results["notes"].setdefault(part, "stopped when its time was spent")
            free_memory()
            record.results["cohorts"] = cohorts.origin
            record.write()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models, for a CPU")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, separated by commas")
    parser.add_argument("--minutes", type=float, default=7.0, help="time for everything, 7 by default")
    carried = Path(__file__).parents[1] / ".device"
    parser.add_argument("--carried", type=Path, default=carried, help="folder that device.sh has made, if there is one")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--markdown", type=Path, help="file for the tables, which are always printed")
    options = parser.parse_args(words)
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    record = Record(options.json, options.markdown)
    run(QUICK if options.quick else FULL, options.carried, record, parts, 60 * options.minutes)
    record.write()
    print(markdown(record.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
