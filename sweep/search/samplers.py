"""Who proposes the next configuration of an arm: Optuna's samplers by name, and what they are told.

A sampler asks an in-memory study of its own, the *sight*, not the sweep's storage: there a pruned
trial counts with what it would have reached, which Optuna cannot express for several goals (it takes
no intermediate values then, and treats all pruned trials alike), and an earlier sweep's results can
be known without being this sweep's trials. Asking happens in one thread beside Ray Tune's loop, so
that the results of running trials never wait for a suggestion.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from mmpkd.config import TrialConfig, validate
from mmpkd.machine.checksums import fingerprint
from sweep.search.choosers import Asked, Even
from sweep.space.draw import Drawn, draw
from sweep.space.grammar import Node
from sweep.space.space import Sampler, Space
from sweep.types import Values

STARTUP: Final = 10  # trials of an arm drawn at random before a model is made of them
TRIES: Final = 16  # proposals of the sampler that were all there before; then
LAST_TRIES: Final = 500  # random draws; were these there too, the arm has nothing else to offer


def _good(count: int) -> int:
    """How many of so many trials are modelled as good. Optuna's tenth is two or three trials of an arm for most of a
    sweep, and the model falls in on them: on recorded curves 40 proposals met 5 different rows of 80."""
    return math.ceil(0.3 * count)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(
        n_startup_trials=STARTUP,
        n_ei_candidates=4,  # Optuna's 24 are as greedy as its tenth
        gamma=_good,  # to go with Optuna 6, which has no other word for it yet
        multivariate=True,  # parameters are modelled together
        group=True,  # branch by branch
        constant_liar=True,  # trials in flight count as poor, so that parallel ones spread
        seed=seed,
    )


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(population_size=20, mutation_prob=None, crossover_prob=0.9, swapping_prob=0.5, seed=seed)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(
        n_startup_trials=STARTUP, deterministic_objective=False, warn_independent_sampling=False, seed=seed
    )


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


# By name: a sampler, and every how many proposals one is of the Sobol sequence instead, so that a lucky
# trial cannot capture the search for good (Falkner et al. 2018, BOHB, draw a third at random).
SAMPLERS: Final[Mapping[Sampler, tuple[Callable[[int], BaseSampler], int]]] = {
    "tpe": (_tpe, 3),
    "gp": (_gp, 2),
    "qmc": (_random, 1),
    "nsga2": (_nsga2, 0),
    "random": (_random, 0),
}


@dataclass(frozen=True)
class Proposal:
    """A configuration that is not yet a trial, as the grammar knows it and as Optuna does."""

    arm: str
    drawn: Drawn
    config: TrialConfig
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    internal: Mapping[str, Any]  # the sampler's own notes (NSGA-II: the generation)
    foreign: bool = False  # another sweep's: its result is known there, not here


class Sight:
    """What an arm's sampler has seen.

    Attributes:
        study: the trials that it goes by, those of other sweeps and of earlier drivers first.

    Args:
        points: asked for first, in this order; what they leave out is sampled.
    """

    def __init__(self, space: Space, arm: str, goals: Sequence[str]):
        self._node: Node = space.arms[arm]
        self._arm, self._seed, self._name = arm, space.seed, space.search.sampler
        self._points = list(space.points_of(arm))
        self._even = Even(self._node, arm, space.seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = [StudyDirection.MAXIMIZE] * len(goals)
        self.study = optuna.create_study(directions=directions, sampler=RandomSampler())
        self._taken: dict[str, int] = {}  # fingerprint of a configuration -> its number in the sight
        self._num_foreign = 0  # trials of another sweep: its even sequence goes on here, its model is there at once

    def propose(self, number: int) -> Proposal | None:
        """A configuration that no trial of the arm has had; None if none was found.

        Args:
            number: of the coming trial. The sampler's seed holds it, so that a restarted driver neither
                repeats its predecessor's draws nor departs from what an uninterrupted one would ask.
        """
        for attempt in range(TRIES + LAST_TRIES):
            self.study.sampler = self._sampler(number, attempt)
            if self._points:
                self.study.enqueue_trial(dict(self._points.pop(0)))
            elif not attempt and self._is_even(turn := len(self._taken) + self._num_foreign):
                self.study.enqueue_trial(self._even.point(sum(map(self._is_even, range(turn)))))
            trial = self.study.ask()
            drawn = draw(self._node, Asked(trial), self._arm)
            config = validate(TrialConfig, drawn.config)
            mark = config.fingerprint()
            if mark not in self._taken:
                self._taken[mark] = trial.number
                asked = self.study.get_trials(deepcopy=False)[trial.number]
                notes = {name: value for name, value in asked.system_attrs.items() if name != "fixed_params"}
                return Proposal(self._arm, drawn, config, dict(trial.params), dict(trial.distributions), notes)
            self.study.tell(trial.number, state=TrialState.FAIL)  # run before, or running: the machine is spared
        return None

    def recall(self, proposal: Proposal, learned: Values | None = None, running: bool = False) -> None:
        """A trial of an earlier driver or, if its arm is another sweep's, of that sweep."""
        if not proposal.foreign:  # each of ours has tried one point, though it may fit a vaguer one as well
            fitting = [point for point in self._points if point.items() <= proposal.params.items()]
            for tried in fitting[:1]:
                self._points.remove(tried)
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
            self._taken[proposal.config.fingerprint()] = len(self.study.get_trials(deepcopy=False)) - 1

    def learn(self, mark: str, values: Values | None) -> None:
        """What a configuration came to; None: nothing that speaks for it or against it (a lost worker)."""
        if values is None:
            self.study.tell(self._taken[mark], state=TrialState.FAIL)
        else:
            self.study.tell(self._taken[mark], list(values))

    def _is_even(self, turn: int) -> bool:
        """Whether the arm's proposal of this turn is the next of the even sequence."""
        every = SAMPLERS[self._name][1]
        return every > 0 and (turn < STARTUP or turn % every == 0)

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        make = SAMPLERS[self._name][0] if attempt < TRIES else _random
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)  # of `gamma`
            return make(int(fingerprint([self._seed, self._arm, number, attempt])[:8], 16))


class Sampling:
    """The sights of all arms, asked and told in one thread, in the order of the calls."""

    def __init__(self, sights: Mapping[str, Sight]):
        self.sights = sights
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._asked: tuple[str, Future[Proposal | None]] | None = None
        self._told: list[Future[None]] = []

    @property
    def asked(self) -> str | None:
        """The arm whose proposal is being thought about."""
        return self._asked[0] if self._asked else None

    def ask(self, arm: str, number: int) -> None:
        """Begins to think. Only one question at a time."""
        assert self._asked is None
        self._asked = arm, self._thread.submit(self.sights[arm].propose, number)

    def answer(self, wait: bool = False) -> tuple[bool, Proposal | None]:
        """Whether there is an answer, and the answer: None if the arm has nothing left.

        Raises:
            Exception: whatever a sampler raised since the last call.
        """
        assert self._asked is not None
        for told in self._told:
            if told.done():
                told.result()
        self._told = [told for told in self._told if not told.done()]
        if not (wait or self._asked[1].done()):
            return False, None
        proposal = self._asked[1].result()
        self._asked = None
        return True, proposal

    def recall(self, proposal: Proposal, learned: Values | None = None, running: bool = False) -> None:
        self._told.append(self._thread.submit(self.sights[proposal.arm].recall, proposal, learned, running))

    def learn(self, proposal: Proposal, values: Values | None) -> None:
        mark = proposal.config.fingerprint()
        self._told.append(self._thread.submit(self.sights[proposal.arm].learn, mark, values))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
