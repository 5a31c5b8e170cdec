"""Proposes the next configuration of an arm.

Each arm's sampler works on its own Optuna study in memory, not on the sweep's storage, for two reasons. First, in this
study a pruned trial can count with the values that it would have reached. Optuna itself cannot express this for several
goals: it then accepts no intermediate values, and treats all pruned trials alike. Second, the study can hold results of
an earlier sweep without making them trials of this sweep. Proposals are made in a thread beside Ray Tune's loop, so
that the results of running trials never wait for a sampler.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from threadpoolctl import threadpool_limits

from mmpkd.config import TrialConfig, validate
from mmpkd.machine.checksums import fingerprint
from mmpkd.types import ConfigError
from sweep.pareto import admit
from sweep.search.choosers import NotInSpace, OptunaChooser, ReplayChooser
from sweep.search.samplers import SAMPLERS
from sweep.search.samplers.random import Random
from sweep.space.design import SpaceFillingDesign, random_points
from sweep.space.draw import Drawn, draw, leaf_name, value_at
from sweep.space.encoding import encode
from sweep.space.grammar import Choice, Node, Range, spots
from sweep.space.space import Space
from sweep.types import Values

SAMPLER_TRIES: Final = 16  # how often the sampler may try to propose a configuration that has not been run
MAX_RESULTS: Final = 200  # number of an arm's latest results from which a model is fitted
RANDOM_TRIES: Final = 500  # random draws after these tries; if all of them have been run, the arm is exhausted


@dataclass(frozen=True)
class Proposal:
    """A configuration that is not yet a trial, in two forms: as it was drawn from the search space, and as Optuna
    stores it.

    Attributes:
        drawn: the configuration with the names, values and paths of its leaves.
        params: the values that Optuna has drawn, by the name of the leaf. A choice is represented by its label.
        internal: Optuna system attributes in which the sampler keeps notes. NSGA-II notes the generation.
        foreign: whether this is a trial of another sweep. Samplers know its result, but it is no trial of this sweep.
    """

    arm: str
    drawn: Drawn
    config: TrialConfig
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    internal: Mapping[str, Any]
    foreign: bool = False


def redraw(
    space: Space, arm: str, params: Mapping[str, Any], config: str, internal: Mapping[str, Any]
) -> Proposal | None:
    """Converts a trial that was drawn from another space to a proposal of `space`. Returns None if `space` does not
    contain the trial's configuration.

    A leaf that was fixed in the other space may be sampled in this one: its value is in the trial's configuration.

    Args:
        config: the configuration of the trial, as JSON.
    """
    if arm not in space.arms:
        return None
    content, given = json.loads(config), {}
    for spot in spots(space.arms[arm]):
        if isinstance(spot.node, Range):
            given[leaf_name(arm, spot.path)] = value_at(content, spot.place)
        elif isinstance(spot.node, Choice):
            labels = (label for label, value in spot.node.values.items() if value == value_at(content, spot.place))
            given[leaf_name(arm, spot.path)] = next(labels, None)
    given |= params
    chooser = ReplayChooser(given)
    try:
        drawn = draw(space.arms[arm], chooser, arm)
        redrawn = validate(TrialConfig, drawn.config)
    except (NotInSpace, ConfigError):
        return None
    chosen = {name: given[name] for name in chooser.distributions}
    if any(drawn.values[name] != value for name, value in chosen.items() if not isinstance(value, str)):
        return None  # for example 2.7 for a leaf that is a whole number in this space
    return Proposal(arm, drawn, redrawn, chosen, chooser.distributions, internal)


class ArmSampler:
    """Proposes the configurations of one arm, and knows the results of the arm's trials.

    The points that the space lists come first, in their order; the values that a point leaves out are sampled.

    Attributes:
        study: Optuna study of all known trials. Trials of other sweeps and of earlier drivers come first.
    """

    def __init__(self, space: Space, arm: str, goals: Sequence[str]):
        self._node: Node = space.arms[arm]
        self._arm, self._seed = arm, space.seed
        self._sampler = SAMPLERS[space.search.sampler]
        self._points = list(space.points_of(arm))
        self._design = SpaceFillingDesign(self._node, arm, space.seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = [StudyDirection.MAXIMIZE] * len(goals)
        self.study = optuna.create_study(directions=directions, sampler=RandomSampler())
        self._numbers: dict[str, int] = {}  # number of the trial in the study, by fingerprint of its configuration
        self._num_foreign = 0  # another sweep's trials count as turns: the design goes on after them

    def propose(self, number: int) -> Proposal | None:
        """Returns a configuration that no trial of the arm has had. Returns None if no such configuration was found.

        Args:
            number: the number of the trial that will run the configuration. The number is part of the sampler's seed. A
                restarted driver therefore repeats no draw of the earlier driver, and draws the same as an uninterrupted
                driver.
        """
        for attempt in range(SAMPLER_TRIES + RANDOM_TRIES):
            self.study.sampler = self._make_sampler(number, attempt)
            if self._points:
                self.study.enqueue_trial(dict(self._points.pop(0)))
            elif not attempt and (chosen := self._choose(number)):
                self.study.enqueue_trial(chosen)
            trial = self.study.ask()
            drawn = draw(self._node, OptunaChooser(trial), self._arm)
            config = validate(TrialConfig, drawn.config)
            if config.fingerprint() not in self._numbers:
                self._numbers[config.fingerprint()] = trial.number
                attributes = self.study.get_trials(deepcopy=False)[trial.number].system_attrs
                notes = {name: value for name, value in attributes.items() if name != "fixed_params"}
                return Proposal(self._arm, drawn, config, dict(trial.params), dict(trial.distributions), notes)
            self.study.tell(trial.number, state=TrialState.FAIL)  # a trial of this configuration has run or is running
        return None

    def add_trial(self, proposal: Proposal, learned: Values | None = None, running: bool = False) -> None:
        """Adds a trial of an earlier driver or, if the proposal is foreign, of another sweep.

        Args:
            learned: the values that the sampler learns from the trial. None means that the trial shows nothing about
                its configuration.
            running: whether the trial is still running.
        """
        if not proposal.foreign:  # each trial has used one point, even if another point fits it, too
            fitting = [point for point in self._points if point.items() <= proposal.params.items()]
            for point in fitting[:1]:
                self._points.remove(point)
        state = TrialState.RUNNING if running else TrialState.FAIL if learned is None else TrialState.COMPLETE
        self.study.add_trial(
            create_trial(
                state=state,
                params=dict(proposal.params),
                distributions=dict(proposal.distributions),
                values=list(learned) if learned is not None and not running else None,
                system_attrs=dict(proposal.internal),
            )
        )
        if proposal.foreign:
            self._num_foreign += 1
        else:
            self._numbers[proposal.config.fingerprint()] = len(self.study.get_trials(deepcopy=False)) - 1

    def learn(self, proposal: Proposal, values: Values | None) -> None:
        """Ends a proposed trial in the study, with the values that the sampler learns from the trial.

        Args:
            values: None if the trial shows nothing about its configuration, for example because its worker died.
        """
        number = self._numbers[proposal.config.fingerprint()]
        if values is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, list(values))

    def _choose(self, number: int) -> dict[str, Any] | None:
        """Returns the values of a point of the space-filling design or of the sampler's best candidate. Returns None if
        it is the turn of the Optuna sampler.
        """
        trials, turn = self.study.get_trials(deepcopy=False), len(self._numbers) + self._num_foreign
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        if self._sampler.takes_design(turn, len(complete)):
            return self._design.point(sum(self._sampler.takes_design(past, len(complete)) for past in range(turn)))
        if not self._sampler.num_candidates:
            return None
        seed = int(fingerprint([self._seed, self._arm, number])[:8], 16)
        tried = {frozenset(trials[index].params.items()) for index in self._numbers.values()}
        drawn = random_points(self._node, self._arm, seed, self._sampler.num_candidates)
        candidates = [point for point in drawn if frozenset(point.items()) not in tried]
        if not candidates:
            return None
        running = [trial.params for trial in trials if trial.state is TrialState.RUNNING]
        modelled = _front_and_latest(complete)
        results = [trial.params for trial in modelled]
        x = [encode(self._node, self._arm, rows) for rows in (results, running, candidates)]
        scores = np.array([trial.values for trial in modelled])
        with threadpool_limits(1):  # the matrices are small, and the cores are busy with trials
            return candidates[self._sampler.choose(x[0], scores, x[1], x[2], seed)]

    def _make_sampler(self, number: int, attempt: int) -> BaseSampler:
        sampler = self._sampler if attempt < SAMPLER_TRIES else Random
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)  # Optuna warns about `gamma` of the TPE
            return sampler.make(int(fingerprint([self._seed, self._arm, number, attempt])[:8], 16))


def _front_and_latest(complete: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials from which a model is fitted: those on the front, and the latest `MAX_RESULTS`.

    The time of a fit grows with the cube of their number, and the latest trials lie where the model looks for better
    ones.
    """
    front: dict[int, Values] = {}
    for index, trial in enumerate(complete):
        admit(front, index, trial.values)
    return [trial for index, trial in enumerate(complete) if index in front or index >= len(complete) - MAX_RESULTS]


class SamplerThread:
    """Runs the samplers of all arms in one thread, in the order of the calls.

    Attributes:
        by_arm: each arm's sampler.
    """

    def __init__(self, by_arm: Mapping[str, ArmSampler]):
        self.by_arm = by_arm
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._request: tuple[str, Future[Proposal | None]] | None = None
        self._updates: list[Future[None]] = []

    @property
    def requested_arm(self) -> str | None:
        """The arm for which a proposal is being made. None if no proposal is being made."""
        return self._request[0] if self._request else None

    def request(self, arm: str, number: int) -> None:
        """Starts to make a proposal in the thread. Only one proposal is made at a time."""
        assert self._request is None
        self._request = arm, self._executor.submit(self.by_arm[arm].propose, number)

    def collect(self, wait: bool = False) -> tuple[bool, Proposal | None]:
        """Returns whether the requested proposal is ready, and the proposal. The proposal is None if it is not ready,
        or if the arm is exhausted.

        Raises:
            Exception: any exception that a sampler has raised since the last call.
        """
        assert self._request is not None
        for update in self._updates:
            if update.done():
                update.result()
        self._updates = [update for update in self._updates if not update.done()]
        if not (wait or self._request[1].done()):
            return False, None
        proposal = self._request[1].result()
        self._request = None
        return True, proposal

    def add_trial(self, proposal: Proposal, learned: Values | None = None, running: bool = False) -> None:
        """Calls `ArmSampler.add_trial` in the thread."""
        sampler = self.by_arm[proposal.arm]
        self._updates.append(self._executor.submit(sampler.add_trial, proposal, learned, running))

    def learn(self, proposal: Proposal, values: Values | None) -> None:
        """Calls `ArmSampler.learn` in the thread."""
        self._updates.append(self._executor.submit(self.by_arm[proposal.arm].learn, proposal, values))

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
