"""Reads and writes the Optuna storage of a sweep, the only authority on its trials, with one study for each arm.

One driver at a time writes the storage. No sampler reads it, because samplers propose from studies in memory
(`proposals.py`). The storage therefore only logs what happened: one line when a trial starts, one line for each rung
that a trial reaches, and two lines when a trial ends.

An extension of the search space begins a new *generation* of studies. It holds copies of the earlier trials that lie in
the new space.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from mmpkd.config import TrialConfig, validate
from sweep.search.choosers import ReplayChooser
from sweep.search.proposals import Proposal, redraw
from sweep.space.draw import draw
from sweep.space.space import Space
from sweep.storage.events import cut_torn_line
from sweep.storage.journal import BELONGS, Journal, arm_and_generation, study_name
from sweep.storage.layout import SweepFolder
from sweep.types import Arrival, Ending, Record, State, Values

STATES: Final[Mapping[TrialState, State]] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
OPTUNA_STATES: Final[Mapping[State, TrialState]] = {state: optuna_state for optuna_state, state in STATES.items()}
RUNG: Final = "rung "  # this prefix and the epoch of a rung name the user attribute with a trial's values at the rung
EXTENDED: Final = "extended"  # cause with which a running trial ends if it lies outside the extended space


class Studies:
    """Keeps every trial under its number in the sweep. Optuna's own numbers count within one arm.

    Args:
        folder: the folder of the sweep. This process must hold the sweep's lock, because it opens the journal.
        generation: number of extensions of the sweep's space so far.
        begins: whether this generation begins now.
        identity: the identities of the sweep and of its cohort, which are stored in each new study.
    """

    def __init__(
        self,
        folder: SweepFolder,
        space: Space,
        goals: Sequence[str],
        generation: int = 0,
        begins: bool = False,
        identity: Mapping[str, str] = {},
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        cut_torn_line(folder.journal)  # a half-written line of a killed driver would damage the next line
        self._storage = JournalStorage(Journal(folder.journal))
        self._space, self._goals, self._generation = space, tuple(goals), generation
        for study in self._stored():
            study_generation = arm_and_generation(study.study_name)[1]
            if study_generation > generation or (begins and study_generation == generation):
                # left by an extension that was cut off
                optuna.delete_study(study_name=study.study_name, storage=self._storage)
        self._studies = {arm: self._load_or_create(study_name(arm, generation)) for arm in space.arms}
        for study in self._studies.values():
            if identity and BELONGS not in study.user_attrs:
                study.set_user_attr(BELONGS, dict(identity))
            if study.metric_names is None:  # optuna-dashboard shows them; earlier versions wrote none
                with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                    study.set_metric_names(list(self._goals))
        self._trials: dict[int, tuple[str, FrozenTrial]] = {}
        for arm, study in self._studies.items():
            for frozen in study.get_trials(deepcopy=False):
                self._trials[frozen.user_attrs["number"]] = arm, frozen

    @property
    def next_number(self) -> int:
        """The number for the next trial. It is higher than all numbers that this sweep has used, earlier generations
        included.
        """
        attributes = [frozen.user_attrs for study in self._stored() for frozen in study.get_trials(deepcopy=False)]
        return max((known.get("number", -1) for known in attributes), default=-1) + 1

    # --- extensions of the space ---

    def adopt_earlier_trials(self) -> str:
        """Copies the earlier trials that this space would run in the same way, together with their runs on further
        seeds. Returns a line for the user.

        The copies keep their numbers, their values at the rungs and their results.
        """
        for number, (arm, frozen) in sorted(self._earlier().items()):
            attributes = frozen.user_attrs
            proposal = redraw(self._space, arm, frozen.params, attributes["config"], frozen.system_attrs)
            if proposal is None or attributes.get("ending", {}).get("cause") == EXTENDED:
                continue
            if "repeat_of" in attributes:
                fits = attributes["repeat_of"] in self._trials and attributes["turn"] < self._space.search.repeats
            else:
                earlier = TrialConfig.model_validate_json(attributes["config"])
                fits = proposal.config.fingerprint() == earlier.fingerprint()
            if fits:
                self._add(number, proposal, attributes, frozen.state, frozen.values)
        num_kept, num_left = len(self._trials), len(self.left_behind)
        line = f"extended: {num_kept} of {num_kept + num_left} earlier trials lie in the new space and stay"
        others = f"{num_left} {'is' if num_left == 1 else 'are'} left behind, in the journal and in MLflow only"
        return f"{line}; {others}" if num_left else line

    @property
    def left_behind(self) -> list[int]:
        """Returns the numbers of the earlier trials that this space does not contain."""
        return sorted(set(self._earlier()) - set(self._trials))

    def end_left_behind(self) -> list[Record]:
        """Ends all trials that are still marked as running in earlier generations. Returns the trials that this space
        does not contain.
        """
        for _, study in self._earlier_studies():
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                ending = Ending("failed", 0, 0.0, 0.0, {}, "the sweep's space no longer holds it", EXTENDED)
                Trial(study, frozen._trial_id).set_user_attr("ending", _attributes(ending))
                study.tell(frozen.number, state=TrialState.FAIL)
        earlier = self._earlier()
        return [_record(number, *earlier[number]) for number in self.left_behind]

    def _earlier_studies(self) -> list[tuple[str, Study]]:
        """Returns pairs of an arm and its study in earlier generations, the oldest generation first."""
        studies = [(*arm_and_generation(study.study_name), study) for study in self._stored()]
        earlier = [(generation, arm, study) for arm, generation, study in studies if generation < self._generation]
        return [(arm, study) for _, arm, study in sorted(earlier, key=lambda entry: entry[0])]

    def _earlier(self) -> dict[int, tuple[str, FrozenTrial]]:
        """Returns a mapping of the number of each trial of earlier generations to its arm and the trial itself. If
        several generations contain a trial, it is taken from the latest of them.
        """
        return {
            frozen.user_attrs["number"]: (arm, frozen)
            for arm, study in self._earlier_studies()
            for frozen in study.get_trials(deepcopy=False)
        }

    # --- what is written ---

    def start(
        self, number: int, proposal: Proposal, config: TrialConfig, repeat_of: int | None = None, turn: int = 0
    ) -> None:
        """Records a trial as running. This is one line in the journal, so that a kill never leaves a half-recorded
        trial.
        """
        attributes = {"number": number, "sampled": proposal.drawn.values, "config": config.model_dump_json()}
        if repeat_of is not None:
            attributes |= {"repeat_of": repeat_of, "turn": turn}
        self._add(number, proposal, attributes)

    def record_arrival(self, arrival: Arrival) -> None:
        """Records the arrival of a trial at a rung. The caller must do this before it acts on the decision at the
        rung.
        """
        self._set(arrival.number, f"{RUNG}{arrival.rung}", [*arrival.values, arrival.goes_on])

    def end(self, number: int, ending: Ending) -> None:
        """Records how a trial ended.

        If the driver is killed between the two writes, the trial still counts as running, and its end is recorded
        again later.
        """
        arm, frozen = self._trials[number]
        self._set(number, "ending", _attributes(ending))
        values = [ending.metrics[goal] for goal in self._goals] if ending.state == "complete" else None
        self._studies[arm].tell(frozen.number, values, state=OPTUNA_STATES[ending.state])
        self._refresh(number)

    def _add(
        self,
        number: int,
        proposal: Proposal,
        attributes: Mapping[str, Any],
        state: TrialState = TrialState.RUNNING,
        values: Sequence[float] | None = None,
    ) -> None:
        study = self._studies[proposal.arm]
        study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=dict(proposal.params),
                distributions=dict(proposal.distributions),
                user_attrs=dict(attributes),
                system_attrs=dict(proposal.internal),
            )
        )
        self._trials[number] = proposal.arm, study.get_trials(deepcopy=False)[-1]

    def _set(self, number: int, name: str, value: Any) -> None:
        arm, frozen = self._trials[number]
        Trial(self._studies[arm], frozen._trial_id).set_user_attr(name, value)
        self._refresh(number)

    def _refresh(self, number: int) -> None:
        arm, frozen = self._trials[number]
        self._trials[number] = arm, self._storage.get_trial(frozen._trial_id)

    # --- what is read ---

    def arrivals(self) -> Iterator[Arrival]:
        """Yields all arrivals at rungs that have been recorded so far."""
        for number, (arm, _) in sorted(self._trials.items()):
            for rung, (*values, goes_on) in self._rungs(number).items():
                yield Arrival(number, arm, rung, tuple(values), goes_on)

    def values_by_rung(self, number: int) -> dict[int, Values]:
        """Returns the values of a trial at the rungs that it has reached, by the epoch of the rung."""
        return {rung: tuple(values) for rung, (*values, _) in self._rungs(number).items()}

    def records(self) -> list[Record]:
        """Returns every trial of the sweep, ordered by number."""
        return [self.record(number) for number in sorted(self._trials)]

    def record(self, number: int) -> Record:
        return _record(number, *self._trials[number])

    def learned(self, number: int) -> Values | None:
        """Returns the values that the sampler has learned from a finished trial that is not complete, or None if it
        learned nothing.
        """
        learned = self._trials[number][1].user_attrs["ending"]["learned"]
        return None if learned is None else tuple(learned)

    def proposal(self, number: int) -> Proposal:
        """Returns the proposal of a trial. It is drawn again, because the paths of the data may have changed since the
        trial was proposed.
        """
        arm, frozen = self._trials[number]
        chooser = ReplayChooser(frozen.params)
        drawn = draw(self._space.arms[arm], chooser, arm)
        config = validate(TrialConfig, drawn.config)
        return Proposal(arm, drawn, config, frozen.params, chooser.distributions, frozen.system_attrs)

    def _stored(self) -> list[Study]:
        """Loads the studies of all generations."""
        names = optuna.get_all_study_names(self._storage)
        return [optuna.load_study(study_name=name, storage=self._storage) for name in names]

    def _load_or_create(self, name: str) -> Study:
        return optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=[StudyDirection.MAXIMIZE] * len(self._goals),
            sampler=RandomSampler(),  # never used
            load_if_exists=True,
        )

    def _rungs(self, number: int) -> dict[int, list[Any]]:
        attributes = self._trials[number][1].user_attrs
        return {int(name.removeprefix(RUNG)): entry for name, entry in attributes.items() if name.startswith(RUNG)}


def records_of(studies: Iterable[Study], generation: int) -> list[Record]:
    """Returns every trial of one generation among the studies of a journal, ordered by number."""
    named = [(*arm_and_generation(study.study_name), study) for study in studies]
    records = [
        _record(frozen.user_attrs["number"], arm, frozen)
        for arm, study_generation, study in named
        if study_generation == generation
        for frozen in study.get_trials(deepcopy=False)
    ]
    return sorted(records, key=lambda record: record.number)


def _attributes(ending: Ending) -> dict[str, Any]:
    """Returns an ending in the form that the journal stores. The state is left out, because Optuna stores it itself."""
    return {name: value for name, value in vars(ending).items() if name != "state"}


def _record(number: int, arm: str, frozen: FrozenTrial) -> Record:
    attributes = frozen.user_attrs
    ending = dict(attributes.get("ending") or {}) if frozen.state.is_finished() else {}
    ending.pop("learned", None)
    return Record(
        number=number,
        arm=arm,
        state=STATES[frozen.state],
        sampled=attributes["sampled"],
        config=attributes["config"],
        repeat_of=attributes.get("repeat_of"),
        turn=attributes.get("turn", 0),
        **{"epochs": 0, "seconds": 0.0, "metrics": {}, **ending},
    )
