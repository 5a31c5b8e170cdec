"""The ways to search that `search_efficiency.py` compares, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from scipy.stats import qmc

from benchmarks.record_curves import EPOCHS, GOALS
from benchmarks.worlds import World, leaves
from sweep.pareto import admit, rank_with_spread
from sweep.reports.choosing import with_estimates
from sweep.search.choosers import OptunaChooser
from sweep.search.halving import Rung
from sweep.search.imputation import Imputation
from sweep.search.proposals import ArmSampler
from sweep.space.design import number_at
from sweep.space.draw import PRESENCE, draw
from sweep.space.grammar import Choice, Node, OneOf, Range
from sweep.space.search_config import EarlyStopping
from sweep.space.space import Space
from sweep.storage.records import front_of
from sweep.types import Record, Values


@dataclass
class Trial:
    """A simulated trial.

    Attributes:
        values: the drawn values by leaf name.
        handle: what the way to search itself calls the trial.
        seen: the observed scores on all goals, by the epochs at which the way to search sees results.
    """

    number: int
    values: Mapping[str, Any]
    handle: Any = None
    seen: dict[int, Values] = field(default_factory=dict)


class Way(Protocol):
    """Interface of a way to search one arm.

    Attributes:
        epochs: the epochs at which it sees a result. The last epoch is one of them.
    """

    epochs: Sequence[int]

    def propose(self, number: int) -> Trial:
        """Returns the next trial, which gets the given number."""

    def goes_on(self, trial: Trial, epoch: int) -> bool:
        """Returns whether a trial goes on after an epoch of `epochs` that is not the last."""

    def ended(self, trial: Trial, complete: bool) -> None:
        """Takes note of a trial that was stopped or is complete."""

    def chosen(self, complete: Sequence[Trial]) -> list[Trial]:
        """Returns those of some complete trials that a user would choose from."""


Make: TypeAlias = Callable[[World, Space], Way]


def observed_front(complete: Sequence[Trial]) -> list[Trial]:
    """Returns the Pareto front of the observed scores."""
    front: dict[int, Values] = {}
    for trial in complete:
        admit(front, trial.number, trial.seen[EPOCHS])
    return [trial for trial in complete if trial.number in front]


class Unstopped:
    """An Optuna study with all goals. No trial is stopped."""

    epochs: Sequence[int] = (EPOCHS,)

    def __init__(self, world: World, sampler: BaseSampler):
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


class ParetoPruner(Unstopped):
    """An Optuna study whose trials are stopped by the rule of OptunaHub's `MultiMetricPruner` with Optuna's
    `MedianPruner`, written anew from its description.

    At each epoch that a trial has reached, it has a rank among all trials that have reached it: the number of its
    non-dominated front. The trial is stopped if its best rank over its epochs is above the median of the ranks that the
    ended trials have at its last epoch. No trial is stopped before five trials have ended. The order within a front by
    hypervolume, which a later version of the pruner adds, is left out. Trials report at ten epochs only, because ranks
    at all epochs would take most of the benchmark's time.
    """

    epochs: Sequence[int] = (1, 2, 3, 4, 6, 9, 12, 16, 20, EPOCHS)
    num_first: Final = 5  # the default `n_startup_trials` of the MedianPruner

    def __init__(self, world: World, sampler: BaseSampler):
        super().__init__(world, sampler)
        self._trials: list[Trial] = []
        self._ended: set[int] = set()

    def propose(self, number: int) -> Trial:
        trial = super().propose(number)
        self._trials.append(trial)
        return trial

    def goes_on(self, trial: Trial, epoch: int) -> bool:
        if len(self._ended) < self.num_first:
            return True
        best = np.inf
        for step in trial.seen:
            reached = [other for other in self._trials if step in other.seen]
            rank_N = front_numbers(np.array([other.seen[step] for other in reached]))
            best = min(best, rank_N[reached.index(trial)])
        of_ended = [rank for rank, other in zip(rank_N, reached, strict=True) if other.number in self._ended]
        return not of_ended or bool(best <= np.median(of_ended))

    def ended(self, trial: Trial, complete: bool) -> None:
        super().ended(trial, complete)
        self._ended.add(trial.number)


def front_numbers(values_NG: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the number of the non-dominated front of each point, counted from 0, shape (N,). The first front is the
    set of points that no point dominates; each further front is found in the same way among the points that are left.
    """
    at_least_NN = np.asarray((values_NG[:, None] >= values_NG[None]).all(axis=2))
    dominates_NN = at_least_NN & ~at_least_NN.T
    front_N = np.full(len(values_NG), -1)
    number = 0
    while (front_N < 0).any():
        remaining_N = front_N < 0
        front_N[remaining_N & ~dominates_NN[remaining_N].any(axis=0)] = number
        number += 1
    return front_N


class Documented:
    """Ray Tune's OptunaSearch and ASHAScheduler with their defaults, as its documentation combines them. They work on a
    single score: the mean over goals of the share of the results at the same epoch so far that are no better.
    """

    epochs: Sequence[int] = (1, 4, 16, EPOCHS)  # the rungs of ASHA

    def __init__(self, world: World, seed: int):
        self._drawn: Mapping[str, Any] = {}

        def define(trial: Any) -> dict[str, Any]:
            self._drawn = draw(world.node, OptunaChooser(trial), world.arm).values
            return {}

        self._search = OptunaSearch(space=define, metric="score", mode="max", seed=seed)
        self._asha = ASHAScheduler(time_attr="epoch", metric="score", mode="max", max_t=EPOCHS)
        self._results: dict[int, list[Values]] = {}

    def propose(self, number: int) -> Trial:
        self._search.suggest(str(number))
        handle = SimpleNamespace(trial_id=str(number))
        self._asha.on_trial_add(None, handle)  # type: ignore[arg-type]
        return Trial(number, self._drawn, handle)

    def goes_on(self, trial: Trial, epoch: int) -> bool:
        trial.handle.result = result = self._result(trial, epoch)
        going = self._asha.on_trial_result(None, trial.handle, result) == "CONTINUE"  # type: ignore[arg-type]
        if going:
            self._search.on_trial_result(str(trial.number), result)
        return going

    def ended(self, trial: Trial, complete: bool) -> None:
        result = self._result(trial, EPOCHS) if complete else trial.handle.result  # each result is ranked once
        self._search.on_trial_complete(str(trial.number), result)

    def chosen(self, complete: Sequence[Trial]) -> list[Trial]:
        return observed_front(complete)

    def _result(self, trial: Trial, epoch: int) -> dict[str, Any]:
        results = self._results.setdefault(epoch, [])
        results.append(trial.seen[epoch])
        shares = [np.mean([other[goal] <= own for other in results]) for goal, own in enumerate(trial.seen[epoch])]
        return {"epoch": epoch, "training_iteration": epoch, "score": float(np.mean(shares))}


class Ours:
    """The classes of this sweep: the sampler of an arm, halving, imputation, and the choice by estimates.

    Args:
        rung: the class of the rungs.
        imputed: whether the sampler learns imputed values from stopped trials, and otherwise nothing.
        estimated: whether the front is that of the estimates (`reports.choosing`), and otherwise that of the observed
            scores.
        joint_sobol: whether `JointSobol` replaces the start-up design.
    """

    def __init__(
        self,
        world: World,
        space: Space,
        *,
        rung: type[Rung] = Rung,
        imputed: bool = True,
        estimated: bool = True,
        joint_sobol: bool = False,
    ):
        self._arm, self._node = world.arm, world.node
        self._sampler = ArmSampler(space, world.arm, GOALS)
        if joint_sobol:
            assert hasattr(self._sampler, "_design")
            self._sampler._design = JointSobol(world.node, world.arm, space.seed)  # type: ignore[assignment]
        stopping = space.search.early_stopping
        self._rungs = {} if stopping is None else {epoch: rung(stopping.reduction) for epoch in stopping.rungs(EPOCHS)}
        self.epochs: Sequence[int] = (*self._rungs, EPOCHS)
        self._imputation = Imputation([world.arm])
        self._imputed, self._estimated = imputed, estimated

    def propose(self, number: int) -> Trial:
        proposal = self._sampler.propose(number)
        assert proposal is not None, "an arm with continuous leaves is never exhausted"
        return Trial(number, proposal.drawn.values, proposal)

    def goes_on(self, trial: Trial, epoch: int) -> bool:
        return self._rungs[epoch].arrive(trial.number, trial.seen[epoch])

    def ended(self, trial: Trial, complete: bool) -> None:
        by_rung = {epoch: values for epoch, values in trial.seen.items() if epoch != EPOCHS}
        if complete:
            self._imputation.add_complete(self._arm, by_rung, trial.seen[EPOCHS])
            self._sampler.learn(trial.handle, trial.seen[EPOCHS])
        else:
            learned = self._imputation.learned(self._arm, "pruned", "", by_rung) if self._imputed else None
            self._sampler.learn(trial.handle, learned)

    def chosen(self, complete: Sequence[Trial]) -> list[Trial]:
        if not self._estimated:
            return observed_front(complete)
        records = [
            Record(
                trial.number,
                self._arm,
                "complete",
                EPOCHS,
                0.0,
                trial.values,
                dict(zip(GOALS, trial.seen[EPOCHS], strict=True)),
                "{}",
            )
            for trial in complete
        ]
        front = {record.number for record in front_of(with_estimates(records, {self._arm: self._node}, GOALS), GOALS)}
        return [trial for trial in complete if trial.number in front]


class FirstThreeGoOn(Rung):
    """A rung that lets its first three arrivals go on."""

    def arrive(self, number: int, values: Values) -> bool:
        if len(self.seen) < 3:
            self.seen[number] = tuple(values)
            return True
        return super().arrive(number, values)


class SyneTuneRung(Rung):
    """A rung with the rule of MO-ASHA in Syne Tune: a trial goes on if the number of trials that rank before it, over
    the number of trials including itself, is at most 1/reduction. The first trial always goes on.
    """

    def arrive(self, number: int, values: Values) -> bool:
        others = [self.seen[other] for other in sorted(self.seen)]
        self.seen[number] = tuple(values)
        return not others or rank_with_spread(values, others) / (len(others) + 1) <= 1 / self.reduction


class JointSobol:
    """The former start-up design of this sweep: one scrambled Sobol sequence over all leaves of an arm."""

    def __init__(self, node: Node, arm: str, seed: int):
        self._leaves = leaves(node, arm)
        self._shares = qmc.Sobol(len(self._leaves), scramble=True, rng=seed).random(256)

    def point(self, index: int) -> dict[str, Any]:
        """Returns values for all leaves, of which a trial uses those of its branch."""
        shares = zip(self._leaves.items(), self._shares[index].tolist(), strict=True)
        return {name: self._value(leaf, share) for (name, leaf), share in shares}

    def _value(self, leaf: Node, share: float) -> float | str:
        match leaf:
            case Range():
                return number_at(share, leaf)
            case Choice(values=labels) | OneOf(branches=labels):
                return list(labels)[int(share * len(labels))]
        return PRESENCE[int(share * len(PRESENCE))]


def _ours(
    rung: type[Rung] = Rung, imputed: bool = True, estimated: bool = True, joint: bool = False, **keys: Any
) -> Make:
    """Returns ours with some parts changed. `keys` are keys of the space's section `search`."""

    def make(world: World, space: Space) -> Way:
        changed = replace(space, search=space.search.model_copy(update=keys))
        return Ours(world, changed, rung=rung, imputed=imputed, estimated=estimated, joint_sobol=joint)

    return make


WAYS: Final[Mapping[str, Make]] = {
    "random": lambda world, space: Unstopped(world, RandomSampler(seed=space.seed)),
    "random_halving": _ours(sampler="random", estimated=False),
    "tpe": lambda world, space: Unstopped(world, TPESampler(seed=space.seed)),
    "documented": lambda world, space: Documented(world, space.seed),
    "pareto_pruner": lambda world, space: ParetoPruner(world, TPESampler(seed=space.seed)),
    "ours": _ours(),
    "sampler_tpe": _ours(sampler="tpe"),
    "sampler_qmc": _ours(sampler="qmc"),
    "no_stopping": _ours(early_stopping=None),
    "reduction_2": _ours(early_stopping=EarlyStopping(reduction=2)),
    "reduction_4": _ours(early_stopping=EarlyStopping(reduction=4)),
    "rungs_3_9": _ours(early_stopping=EarlyStopping(grace=3)),
    "first_three_go_on": _ours(rung=FirstThreeGoOn),
    "syne_tune_rung": _ours(rung=SyneTuneRung),
    "joint_sobol": _ours(joint=True),
    "observed_front": _ours(estimated=False),
    "no_imputation": _ours(imputed=False),
}
