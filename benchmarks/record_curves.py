"""Records learning curves of random configurations of a space, from which `search_efficiency.py` makes a world.

    python benchmarks/record_curves.py space=demo [count=160] [repeat=0] [cache=cache] [key=value ...]
    python benchmarks/record_curves.py space=breast cohort.root=DIR cohort.image_size=64

Draws `count` configurations, the arms in turn, trains each for 27 epochs on one thread and writes
`benchmarks/curves/<space>.csv`: a row a training with what was drawn and, epoch by epoch, both goals and
the CPU-seconds spent. A row is written when its training ends, and the same command goes on from the
rows that are there; configuration i is the same in every run. `repeat=1` and on train the same
configurations with another seed and, where the cohort has folds, another fold to validate on.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from mmpkd.cohort.prepare import prepare
from mmpkd.command import command_line, own_words
from mmpkd.config import TrialConfig, validate
from mmpkd.train import train
from mmpkd.types import ConfigError, EpochReport
from sweep.space.draw import Drawn, draw
from sweep.space.space import Space, load_space

FOLDER: Final = Path(__file__).resolve().parent / "curves"
EPOCHS: Final = 27
GOALS: Final = ("val/auroc", "val/pointing")
COLUMNS: Final = ("number", "repeat", "arm", "sampled", *GOALS, "seconds")
OWN: Final = {"space": "", "count": "160", "cache": "cache", "from": "0", "to": "", "repeat": "0"}


class Draws:
    """Uniform draws (log-uniform where the space says so), behind the `Chooser` protocol."""

    def __init__(self, seed: Sequence[int]):
        self._random = np.random.default_rng(seed)

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        return float(
            np.exp(self._random.uniform(np.log(low), np.log(high))) if log else self._random.uniform(low, high)
        )

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        return round(self.uniform(name, low - 0.499, high + 0.499, log))

    def category(self, name: str, labels: Sequence[str]) -> str:
        return labels[int(self._random.integers(len(labels)))]


def configuration(space: Space, number: int) -> tuple[str, Drawn]:
    arms = list(space.arms)
    arm = arms[number % len(arms)]
    return arm, draw(space.arms[arm], Draws([20261123, number]), arm)


def record(space: Space, numbers: range, repeat: int, cache: Path, path: Path) -> None:
    """Trains what is not yet in the table."""
    path.parent.mkdir(exist_ok=True)
    done = set()
    if path.exists():
        with path.open() as file:
            done = {int(row["number"]) for row in csv.DictReader(file) if int(row["repeat"]) == repeat}
    else:
        path.write_text(",".join(COLUMNS) + "\n")
    store = None
    for number in numbers:
        if number in done:
            continue
        arm, drawn = configuration(space, number)
        config = validate(TrialConfig, drawn.config)
        store = store or prepare(config.cohort, cache)
        cohort = config.cohort.model_copy(update={"fold": repeat if store.num_folds > 1 else 0})
        config = config.model_copy(update={"seed": config.seed + repeat, "cohort": cohort})
        spent = [time.process_time()]

        def report(one: EpochReport, spent: list[float] = spent) -> None:
            spent.append(time.process_time())

        history = train(config, cache, report=report, store=store)
        curves = [json.dumps([round(one.metrics[goal], 4) for one in history]) for goal in GOALS]
        seconds = json.dumps([round(float(each), 3) for each in np.diff(spent)])
        sampled = {name: round(value, 6) if isinstance(value, float) else value for name, value in drawn.values.items()}
        with path.open("a", newline="") as file:
            csv.writer(file).writerow([number, repeat, arm, json.dumps(sampled), *curves, seconds])
        last = ", ".join(f"{goal} {history[-1].metrics[goal]:.3f}" for goal in GOALS)
        Console().print(
            f"{number} repeat {repeat} {arm}: {last}, {spent[-1] - spent[0]:.0f} CPU-seconds", highlight=False
        )


def main(words: Sequence[str]) -> None:
    own, rest = own_words(words, OWN)
    if not own["space"]:
        sys.exit(__doc__)
    space, mistakes = load_space(own["space"], [f"epochs={EPOCHS}", "threads=1", *rest])
    if space is None or mistakes:
        raise ConfigError(mistakes)
    numbers = range(int(own["from"]), int(own["to"] or own["count"]))
    record(space, numbers, int(own["repeat"]), Path(own["cache"]), FOLDER / f"{space.name}.csv")


if __name__ == "__main__":
    with command_line() as words:
        main(words)
