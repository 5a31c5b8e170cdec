"""Simulates searches in a world, and measures the regret of what they choose."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.record_curves import EPOCHS
from benchmarks.searches import Trial, Way
from benchmarks.worlds import FLOOR, World
from sweep.pareto import hypervolume

SPEED_SD: Final = 0.1  # standard deviation of the logarithm of a trial's duration


@dataclass(frozen=True)
class Outcome:
    """What a way achieves with a budget: the regret of what it chooses, and its numbers of trials."""

    regret: float
    complete: int
    started: int


def affordable(epochs: Sequence[int], budget: int) -> int:
    """Returns the largest number of first trials whose epochs together are at most those of `budget` full trainings."""
    return int(np.searchsorted(np.cumsum(epochs), budget * EPOCHS, side="right"))


def simulate(way: Way, world: World, seed: int, slots: int, budgets: Sequence[int]) -> list[Outcome]:
    """Simulates a long search, and returns what its first trials achieve with each budget."""
    trials: list[Trial] = []
    curves: list[NDArray[np.float64]] = []  # scores (E, G) by trial
    seconds: list[float] = []  # duration of an epoch by trial, of which the mean is about 1
    epochs: list[int] = []  # epochs so far by trial
    running: list[tuple[float, int, int]] = []  # time and trial of the next result, and its place in `way.epochs`
    complete: list[Trial] = []
    clock = 0.0
    while True:
        while len(running) < slots and sum(epochs) < max(budgets) * EPOCHS:
            number = len(trials)
            trial = way.propose(number)
            random = np.random.default_rng([seed, number])
            seconds.append(float(np.exp(random.normal(0, SPEED_SD))))
            curves.append(np.clip(world.means([trial.values])[0] + world.noise(trial.values, random), 0, 1))
            trials.append(trial)
            epochs.append(0)
            heapq.heappush(running, (clock + way.epochs[0] * seconds[number], number, 0))
        if not running:
            break
        clock, number, place = heapq.heappop(running)
        trial, epoch = trials[number], way.epochs[place]
        epochs[number] = epoch
        trial.seen[epoch] = tuple(curves[number][epoch - 1].tolist())
        if epoch == EPOCHS:
            complete.append(trial)
            way.ended(trial, complete=True)
        elif way.goes_on(trial, epoch):
            duration = (way.epochs[place + 1] - epoch) * seconds[number]
            heapq.heappush(running, (clock + duration, number, place + 1))
        else:
            way.ended(trial, complete=False)
    outcomes = []
    for budget in budgets:
        started = affordable(epochs, budget)
        of_budget = [trial for trial in complete if trial.number < started]
        outcomes.append(Outcome(regret(world, way.chosen(of_budget)), len(of_budget), started))
    return outcomes


def regret(world: World, chosen: Sequence[Trial]) -> float:
    """Returns the hypervolume of the true front minus that of the true means of chosen trials."""
    if not chosen:
        return world.best
    return world.best - hypervolume(world.means([trial.values for trial in chosen])[:, -1].tolist(), FLOOR)
