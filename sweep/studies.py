"""The sweep's Optuna storage, the only truth about its trials: one study per arm."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from mmpkd.config import TrialConfig, fingerprint, validate
from sweep.draw import Drawn, draw
from sweep.records import Record, State, cut_torn_line
from sweep.space import Space

STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

STARTUP = 10  # trials of an arm drawn at random before TPE models it


class Studies:
    """Asks for configurations and keeps what became of them.

    Each trial carries user attributes: its number in the sweep (Optuna counts within an arm), its
    sampled values, its TrialConfig as JSON, and, set before it is told, what its last epoch said.

    Args:
        journal: the file; whoever opens it holds the sweep's lock.
    """

    def __init__(self, journal: Path, space: Space, goals: Sequence[str]):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        cut_torn_line(journal)  # a killed driver's half line would spoil the next one
        with contextlib.suppress(FileNotFoundError):
            Path(f"{journal}.lock").unlink()  # and its lock would be waited for
        storage = JournalStorage(JournalFileBackend(str(journal)))
        self._space = space
        self._goals = tuple(goals)
        directions = [StudyDirection.MAXIMIZE] * len(self._goals)
        self._of = {
            arm: optuna.create_study(storage=storage, study_name=arm, directions=directions, load_if_exists=True)
            for arm in space.arms
        }

    def ask(self, arm: str, number: int) -> tuple[Trial, Drawn]:
        """A new configuration of an arm, recorded as running under `number`."""
        study = self._of[arm]
        study.sampler = self._sampler(arm, number)
        trial = study.ask()
        trial.set_user_attr("number", number)
        return trial, self._drawn(arm, trial)

    def adopt(self, record: Record) -> tuple[Trial, Drawn]:
        """A trial that a dead driver left running; suggestions it had not yet got are made now."""
        study = self._of[record.arm]
        study.sampler = self._sampler(record.arm, record.number)
        trial = Trial(study, self._frozen(record.arm, record.number)._trial_id)
        return trial, self._drawn(record.arm, trial)

    def close(self, arm: str, trial: Trial, state: State, last: Mapping[str, Any], error: str = "") -> None:
        """Tells what became of a trial.

        Args:
            last: `epochs`, `seconds`, and the `metrics` of its last epoch.
        """
        trial.set_user_attr("last", dict(last))
        if error:
            trial.set_user_attr("error", error)
        if state == "complete":
            self._of[arm].tell(trial, [last["metrics"][goal] for goal in self._goals])
        else:
            self._of[arm].tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)

    def records(self) -> list[Record]:
        """Every trial of the sweep by number; one that was never given a number gets the next."""
        found = [(arm, one) for arm, study in self._of.items() for one in study.get_trials(deepcopy=False)]
        for arm, one in found:
            if "number" not in one.user_attrs:  # the driver died between asking and numbering
                taken = [other.user_attrs.get("number", -1) for _, other in found]
                Trial(self._of[arm], one._trial_id).set_user_attr("number", max(taken) + 1)
                return self.records()
        return sorted((_record(arm, one) for arm, one in found), key=lambda record: record.number)

    def record(self, arm: str, number: int) -> Record:
        return _record(arm, self._frozen(arm, number))

    def _frozen(self, arm: str, number: int) -> FrozenTrial:
        trials = self._of[arm].get_trials(deepcopy=False)
        return next(one for one in trials if one.user_attrs.get("number") == number)

    def _drawn(self, arm: str, trial: Trial) -> Drawn:
        drawn = draw(self._space.arms[arm], _Chooser(trial), arm)
        config = validate(TrialConfig, drawn.config)
        trial.set_user_attr("sampled", drawn.values)
        trial.set_user_attr("config", config.model_dump_json())
        return drawn

    def _sampler(self, arm: str, number: int) -> TPESampler:
        """A sampler for one question. Its seed holds the number, so that a restarted driver neither
        repeats the draws of its predecessor nor departs from what an uninterrupted one would ask."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                n_startup_trials=STARTUP,
                n_ei_candidates=24,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=int(fingerprint([self._space.seed, arm, number])[:8], 16),
            )


class _Chooser:
    """The grammar's questions put to an Optuna trial."""

    def __init__(self, trial: Trial):
        self._trial = trial

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        return self._trial.suggest_float(name, low, high, log=log)

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        return self._trial.suggest_int(name, low, high, log=log)

    def category(self, name: str, labels: Sequence[str]) -> str:
        chosen = self._trial.suggest_categorical(name, labels)
        assert isinstance(chosen, str)
        return chosen


def _record(arm: str, trial: FrozenTrial) -> Record:
    said = trial.user_attrs
    last = said.get("last", {"epochs": 0, "seconds": 0.0, "metrics": {}})
    return Record(
        number=said["number"],
        arm=arm,
        state=STATES[trial.state],
        epochs=last["epochs"],
        seconds=last["seconds"],
        sampled=said.get("sampled", {}),
        metrics=last["metrics"],
        config=said.get("config", ""),
        error=said.get("error", ""),
    )


def resolved(drawn: Drawn) -> dict[str, Any]:
    """Each sampled value under its leaf name, and again under its path in the TrialConfig."""
    shown: dict[str, Any] = dict(drawn.values)
    for place in drawn.places.values():
        value: Any = drawn.config
        for step in place.split(".") if place else ():
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, dict):
            shown[place] = json.dumps(value) if isinstance(value, list) else value
    return shown
