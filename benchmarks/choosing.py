"""How good are trials that are chosen by estimated means, and is the printed luck of the best score right?

    python -m benchmarks.choosing [--space demo] [--draws 200] [--seed 0]     # half a minute

Every recorded configuration was trained with three seeds. In each draw N configurations play a sweep: one of the three
seeds, drawn at random, is the trial, and the mean of the other two is its true score. For each goal the table shows
the true score of the trial that is chosen, by observed scores and with estimated means (`sweep/reports/choosing.py`),
and by how much the observed score of the latter exceeds its true score: as printed, and in truth.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record_curves import GOALS
from sweep.reports.choosing import optimism, with_estimates
from sweep.space.space import Space, load_space
from sweep.storage.records import best_of
from sweep.types import Record

COUNTS = (8, 16, 32)
Runs = Sequence[Mapping[str, float]]  # the last scores of a configuration, by goal, for each seed


def recorded(path: Path) -> list[tuple[str, dict[str, Any], Runs]]:
    """Returns arm, sampled values and runs of each configuration that was trained with three seeds."""
    rows = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            scores = {goal: json.loads(row[goal])[-1] for goal in GOALS}
            rows[int(row["number"])].append((row["arm"], json.loads(row["sampled"]), scores))
    several = [runs for runs in rows.values() if len(runs) == 3]
    return [(runs[0][0], runs[0][1], [scores for _, _, scores in runs]) for runs in several]


def draw(
    rng: np.random.Generator, space: Space, table: Sequence[tuple[str, dict[str, Any], Runs]], count: int
) -> NDArray[np.float64]:
    """Returns, for each goal: the true scores of the choices by observed scores and with estimates, the printed and the
    true luck of the latter, and whether it has an estimate. Shape (goals, 5).
    """
    trials, truth = [], {}
    for number, index in enumerate(rng.choice(len(table), count, replace=False)):
        arm, sampled, runs = table[index]
        seed = int(rng.integers(3))
        trials.append(Record(number, arm, "complete", 1, 1.0, sampled, dict(runs[seed]), "{}"))
        others = [run for turn, run in enumerate(runs) if turn != seed]
        truth[number] = {goal: float(np.mean([run[goal] for run in others])) for goal in GOALS}
    extended, results = with_estimates(trials, space.arms, GOALS), []
    for goal in GOALS:
        by_score, chosen = best_of(trials, goal), best_of(extended, goal)
        assert by_score is not None and chosen is not None
        true = truth[chosen.number][goal]
        luck = max(optimism(extended, goal), 0.0), chosen.metrics[goal] - true
        results.append([truth[by_score.number][goal], true, *luck, f"{goal}_estimate" in chosen.metrics])
    return np.array(results, dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="demo")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    space, mistakes = load_space(options.space)
    assert space is not None and not mistakes, mistakes
    table = recorded(Path(__file__).parent / "curves" / f"{options.space}.csv")
    arms = sorted({arm for arm, _, _ in table})
    print(f"{len(table)} configurations with three seeds, {options.draws} draws")
    print("arms, trials, goal: estimates used; true score by scores, with estimates (difference); luck printed, true")
    for chosen_arms in ([[arm] for arm in arms] if len(arms) > 1 else []) + [arms]:
        of_arms = [entry for entry in table if entry[0] in chosen_arms]
        for count in (count for count in COUNTS if 2 * count <= len(of_arms)):
            rng = np.random.default_rng(options.seed)
            results_RGC = np.array([draw(rng, space, of_arms, count) for _ in range(options.draws)])
            for index, goal in enumerate(GOALS):
                by_score, chosen, printed, true, used = results_RGC[:, index].mean(axis=0)
                differences = results_RGC[:, index, 1] - results_RGC[:, index, 0]
                error = differences.std(ddof=1) / len(differences) ** 0.5
                print(
                    f"{'+'.join(chosen_arms):13s} {count:2d} {goal:12s}: {used:4.0%}; {by_score:.3f}, {chosen:.3f} "
                    f"({differences.mean():+.4f} ± {error:.4f}); {printed:.3f}, {true:.3f}"
                )


if __name__ == "__main__":
    main()
