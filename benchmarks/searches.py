"""The searches that `search_efficiency.py` compares, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.record_curves import EPOCHS, GOALS
from benchmarks.worlds import World
from sweep.pareto import admit, dominates
from sweep.search.choosers import OptunaChooser
from sweep.search.halving import Rung
from sweep.search.imputation import Imputation
from sweep.search.proposals import ArmSampler
from sweep.space.draw import draw
from sweep.types import Values


@dataclass
class Trial:
    """A simulated trial: `values` are the drawn values by leaf name, `seen` the observed goals by epoch."""

    number: int
    values: Mapping[str, Any]
    handle: Any
    seen: dict[int, tuple[float, ...]] = field(default_factory=dict)


class Way(Protocol):
    """A search of one arm. `epochs` are those at which it sees a result, the last epoch among them."""

    epochs: Sequence[int]

    def propose(self, number: int) -> Trial: ...
    def goes_on(self, trial: Trial, epoch: int) -> bool: ...
    def ended(self, trial: Trial, complete: bool) -> None: ...
    def chosen(self, complete: Sequence[Trial]) -> list[Trial]: ...


def observed_front(complete: Sequence[Trial]) -> list[Trial]:
    front: dict[int, Values] = {}
    for trial in complete:
        admit(front, trial.number, trial.seen[EPOCHS])
    return [trial for trial in complete if trial.number in front]


class Free:
    """An Optuna study with two goals; no trial is stopped."""

    epochs: Sequence[int] = (EPOCHS,)

    def __init__(self, world: World, sampler: optuna.samplers.BaseSampler):
        self._world = world
        self._study = optuna.create_study(directions=["maximize"] * len(GOALS), sampler=sampler)

    def propose(self, number: int) -> Trial:
        trial = self._study.ask()
        return Trial(number, draw(self._world.node, OptunaChooser(trial), self._world.arm).values, trial)

    def goes_on(self, trial: Trial, epoch: int) -> bool:
        return True

    def ended(self, trial: Trial, complete: bool) -> None:
        if complete:
            self._study.tell(trial.handle, trial.seen[EPOCHS])
        else:
            self._study.tell(trial.handle, state=TrialState.PRUNED)

    def chosen(self, complete: Sequence[Trial]) -> list[Trial]:
        return observed_front(complete)


class ParetoPruner(Free):
    """Optuna's TPE with OptunaHub's rule for several metrics: any Optuna pruner, here the MedianPruner, decides on the
    Pareto rank of a trial among all trials that have reached its epoch, in a study that is rebuilt at each decision.
    """

    epochs: Sequence[int] = (1, 2, 3, 4, 6, 9, 12, 16, 20, EPOCHS)

    def __init__(self, world: World, sampler: optuna.samplers.BaseSampler):
        super().__init__(world, sampler)
        self._trials: list[Trial] = []
        self._complete: set[int] = set()
        self._pruner = optuna.pruners.MedianPruner()

    def propose(self, number: int) -> Trial:
        trial = super().propose(number)
        self._trials.append(trial)
        return trial

    def goes_on(self, trial: Trial, epoch: int) -> bool:
        if len(self._complete) < 5:  # the MedianPruner's own start, checked first to save time
            return True
        by_step = {step: _ranks({other.number: other.seen[step] for other in self._trials if step in other.seen}) for step in self.epochs if step <= epoch}
        study = optuna.create_study(direction="minimize")
        for other in self._trials:
            if other.number in self._complete or other is trial:
                ranks = {step: by_step[step][other.number] for step in by_step if step in other.seen}
                ended = other.number in self._complete
                study.add_trial(create_trial(state=TrialState.COMPLETE if ended else TrialState.RUNNING, value=0.0 if ended else None, intermediate_values=ranks))
                current = study.trials[-1] if other is trial else None
                if current is not None:
                    frozen = current
        return not self._pruner.prune(study, frozen)

    def ended(self, trial: Trial, complete: bool) -> None:
        super().ended(trial, complete)
        if complete:
            self._complete.add(trial.number)


def _ranks(values: Mapping[int, Values]) -> dict[int, float]:
    """Returns the number of the non-dominated front of each trial, from 0."""
    remaining, ranks, rank = dict(values), {}, 0
    while remaining:
        front = [number for number, own in remaining.items() if not any(dominates(other, own) for other in remaining.values())]
        for number in front:
            ranks[number] = float(rank)
            del remaining[number]
        rank += 1
    return ranks


class Documented:
    """OptunaSearch and ASHAScheduler with their defaults, on one number: the mean of the goals' ranks so far."""

    epochs: Sequence[int] = (1, 4, 16, EPOCHS)

    def __init__(self, world: World, seed: int):
        self._values: dict[str, Mapping[str, Any]] = {}
        self._key = ""

        def define(trial: Any) -> dict[str, Any]:
            self._values[self._key] = draw(world.node, OptunaChooser(trial), world.arm).values
            return {}

        self._search = OptunaSearch(space=define, metric="score", mode="max", seed=seed)
        self._asha = ASHAScheduler(time_attr="epoch", metric="score", mode="max", max_t=EPOCHS)
        self._seen: dict[int, list[tuple[float, ...]]] = {}

    def propose(self, number: int) -> Trial:
        self._key = str(number)
        self._search.suggest(self._key)
        handle = SimpleNamespace(trial_id=self._key)
        self._asha.on_trial_add(None, handle)  # type: ignore[arg-type]
        return Trial(number, self._values.pop(self._key), handle)

    def goes_on(self, trial: Trial, epoch: int) -> bool:
        result = self._result(trial, epoch)
        going = self._asha.on_trial_result(None, trial.handle, result) == "CONTINUE"  # type: ignore[arg-type]
        if going:
            self._search.on_trial_result(str(trial.number), result)
        return going

    def ended(self, trial: Trial, complete: bool) -> None:
        self._search.on_trial_complete(str(trial.number), self._result(trial, max(trial.seen)))

    def chosen(self, complete: Sequence[Trial]) -> list[Trial]:
        return observed_front(complete)

    def _result(self, trial: Trial, epoch: int) -> dict[str, Any]:
        seen = self._seen.setdefault(epoch, [])
        seen.append(trial.seen[epoch])
        ranks = [np.mean([values[goal] <= value for values in seen]) for goal, value in enumerate(trial.seen[epoch])]
        return {"epoch": epoch, "training_iteration": epoch, "score": float(np.mean(ranks))}


class Ours:
    """The sweep's own sampler of an arm, halving and imputation.

    Args:
        propose: stands in for `ArmSampler.propose`, to try another sampler.
    """

    def __init__(self, world: World, rungs: Sequence[int], reduction: int = 3, sampler: Any = None):
        self._sampler = sampler or ArmSampler(world.space, world.arm, GOALS)
        self._rungs = {epoch: Rung(reduction) for epoch in rungs}
        self.epochs = (*rungs, EPOCHS)
        self._arm = world.arm
        self._imputation = Imputation([world.arm])

    def propose(self, number: int) -> Trial:
        proposal = self._sampler.propose(number)
        return Trial(number, proposal.drawn.values, proposal)

    def goes_on(self, trial: Trial, epoch: int) -> bool:
        return self._rungs[epoch].arrive(trial.number, trial.seen[epoch])

    def ended(self, trial: Trial, complete: bool) -> None:
        by_rung = {epoch: values for epoch, values in trial.seen.items() if epoch != EPOCHS}
        if complete:
            self._imputation.add_complete(self._arm, by_rung, trial.seen[EPOCHS])
            self._sampler.learn(trial.handle, trial.seen[EPOCHS])
        else:
            self._sampler.learn(trial.handle, self._imputation.learned(self._arm, "pruned", "", by_rung))

    def chosen(self, complete: Sequence[Trial]) -> list[Trial]:
        return observed_front(complete)


Make = Callable[[World, int], Way]
