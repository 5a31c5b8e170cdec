"""The searches that `search_efficiency.py` compares, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.record_curves import EPOCHS, GOALS
from benchmarks.recorded import Curves, Row
from sweep.search.choosers import OptunaChooser
from sweep.search.halving import ArmHalving
from sweep.search.searcher import Search
from sweep.search.state import SweepState
from sweep.search.studies import Studies
from sweep.space.draw import draw
from sweep.space.space import Space
from sweep.storage.events import Spool
from sweep.storage.layout import SweepFolder


@dataclass
class Trial:
    key: str
    row: Row
    epoch: int = 0
    job: Any = None

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(float(value) for value in self.row.values_ET[self.epoch - 1])


class Way(Protocol):
    """A search: it says which trial runs next, and whether a trial goes on after an epoch."""

    def next(self, key: str) -> Trial | None: ...
    def goes_on(self, trial: Trial) -> bool: ...
    def ended(self, trial: Trial) -> None: ...


class Free:
    """Optuna alone; no trial is stopped."""

    def __init__(self, space: Space, curves: Curves, sampler: optuna.samplers.BaseSampler):
        self._space, self._curves = space, curves
        self._study = optuna.create_study(directions=["maximize"] * len(GOALS), sampler=sampler)

    def next(self, key: str) -> Trial:
        trial = self._study.ask()
        arm, sampled = _drawn(self._space, trial)
        return Trial(key, self._curves.nearest(arm, sampled, trial.distributions), job=trial)

    def goes_on(self, trial: Trial) -> bool:
        return True

    def ended(self, trial: Trial) -> None:
        self._study.tell(trial.job, trial.values)


def _drawn(space: Space, trial: Any) -> tuple[str, Mapping[str, Any]]:
    arm = trial.suggest_categorical("arm", list(space.arms))
    return arm, draw(space.arms[arm], OptunaChooser(trial), arm).values


class Documented:
    """OptunaSearch and ASHAScheduler with their defaults, on one number: the mean of the goals' ranks."""

    def __init__(self, space: Space, curves: Curves, seed: int):
        self._curves = curves
        self._drawn: dict[str, tuple[str, Mapping[str, Any], Mapping[str, BaseDistribution]]] = {}
        self._key = ""

        def define(trial: Any) -> dict[str, Any]:
            arm, sampled = _drawn(space, trial)
            self._drawn[self._key] = arm, sampled, trial.distributions
            return {}

        self._search = OptunaSearch(space=define, metric="score", mode="max", seed=seed)
        self._asha = ASHAScheduler(time_attr="epoch", metric="score", mode="max", max_t=EPOCHS)
        self._seen: dict[int, list[tuple[float, ...]]] = {}
        self._scores: dict[str, dict[str, Any]] = {}

    def next(self, key: str) -> Trial:
        self._key = key
        self._search.suggest(key)
        trial = Trial(key, self._curves.nearest(*self._drawn.pop(key)), job=SimpleNamespace(trial_id=key))
        self._asha.on_trial_add(None, trial.job)  # type: ignore[arg-type]
        return trial

    def goes_on(self, trial: Trial) -> bool:
        seen = self._seen.setdefault(trial.epoch, [])
        seen.append(trial.values)
        ranks = [np.mean([values[goal] <= value for values in seen]) for goal, value in enumerate(trial.values)]
        result = {"epoch": trial.epoch, "training_iteration": trial.epoch, "score": float(np.mean(ranks))}
        self._scores[trial.key] = result
        going = self._asha.on_trial_result(None, trial.job, result) == "CONTINUE"  # type: ignore[arg-type]
        if going and trial.epoch < EPOCHS:
            self._search.on_trial_result(trial.key, result)
        return going

    def ended(self, trial: Trial) -> None:
        self._search.on_trial_complete(trial.key, self._scores.pop(trial.key))


class Ours:
    """The sweep's own searcher, storage and scheduler; only Ray's clock is simulated."""

    def __init__(self, space: Space, curves: Curves, slots: int, folder: Path):
        self._curves = curves
        state = SweepState(
            space, GOALS, Studies(SweepFolder(folder), space, GOALS), Spool(SweepFolder(folder)), SweepFolder(folder)
        )
        self.search = Search(space, state, SweepFolder(folder), folder, folder, wait=True)
        self.search.max_running = slots
        stopping = space.search.early_stopping
        assert stopping is not None
        rungs = stopping.rungs(EPOCHS)
        self._halving = ArmHalving(
            list(space.arms), GOALS, rungs, stopping.reduction, on_arrival=state.studies.record_arrival
        )

    def next(self, key: str) -> Trial | None:
        job = self.search.suggest(key)
        if self.search.error:
            raise self.search.error
        if not isinstance(job, dict):
            return None
        proposal = self.search.running[key].proposal
        row = self._curves.nearest(proposal.arm, proposal.drawn.values, proposal.distributions)
        return Trial(key, row, job=SimpleNamespace(config=job))

    def goes_on(self, trial: Trial) -> bool:
        result = self._result(trial)
        going = self._halving.on_trial_result(None, trial.job, result) == self._halving.CONTINUE
        if going and trial.epoch < EPOCHS:
            self.search.on_trial_result(trial.key, result)
        return going

    def ended(self, trial: Trial) -> None:
        self.search.on_trial_complete(trial.key, self._result(trial))

    def _result(self, trial: Trial) -> dict[str, Any]:
        metrics = dict(zip(GOALS, trial.values, strict=True))
        seconds = float(trial.row.seconds_E[trial.epoch - 1])
        return {"reports": [{"epoch": trial.epoch, "seconds": seconds, "metrics": metrics, "terms": {}}]}
