"""The sweep's Optuna storage, the only truth about its trials: one study per arm.

The storage is written by one driver and asked by nobody: who comes next is proposed by
`sampling.py`, from memory. So what lies here is what happened, and a trial is one line when it
starts, one for each rung that it reaches, and two when it ends.

A sweep whose space is extended begins a new *generation* of studies, with copies of the earlier
trials that the new space holds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from mmpkd.config import TrialConfig, validate
from sweep.search.choosers import Replay
from sweep.search.samplers import Proposal
from sweep.search.warm_start import arm_and_generation, at, fitted, study_name
from sweep.space.draw import Drawn, draw
from sweep.space.space import Space
from sweep.storage.events import cut_torn_line
from sweep.storage.journal import BELONGS, Journal
from sweep.types import Arrival, Ending, Record, State, Values

STATES: Final[Mapping[TrialState, State]] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
TOLD: Final[Mapping[State, TrialState]] = {state: told for told, state in STATES.items()}
RUNG: Final = "rung "  # + epoch: the user attribute that holds what a rung saw
EXTENDED: Final = "extended"  # the cause that ends a running trial whose sweep's space no longer holds it


class Studies:
    """Keeps every trial under its number in the sweep (Optuna counts within an arm).

    Args:
        journal: the file; whoever opens it holds the sweep's lock.
        generation: how often the sweep's space was extended.
        anew: whether this generation begins now.
        belongs: what the sweep is known by, for its studies: its identity, and its cohort's.
    """

    def __init__(
        self,
        journal: Path,
        space: Space,
        goals: Sequence[str],
        generation: int = 0,
        anew: bool = False,
        belongs: Mapping[str, str] = {},
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        cut_torn_line(journal)  # a killed driver's half line would spoil the next one
        with contextlib.suppress(FileNotFoundError):
            Path(f"{journal}.lock").unlink()  # and its lock would be waited for
        self._storage = JournalStorage(Journal(journal))
        self._space, self._goals, self._generation = space, tuple(goals), generation
        for study in self._all():
            its = arm_and_generation(study.study_name)[1]
            if its > generation or (anew and its == generation):  # left by an extension that was cut off
                optuna.delete_study(study_name=study.study_name, storage=self._storage)
        self._of = {arm: self._study(study_name(arm, generation)) for arm in space.arms}
        for study in self._of.values():
            if belongs and BELONGS not in study.user_attrs:
                study.set_user_attr(BELONGS, dict(belongs))
        self._trials: dict[int, tuple[str, FrozenTrial]] = {}
        for arm, study in self._of.items():
            for frozen in study.get_trials(deepcopy=False):
                self._trials[frozen.user_attrs["number"]] = arm, frozen

    @property
    def next_number(self) -> int:
        """Above all numbers that this sweep has given, in earlier generations too."""
        said = [one.user_attrs for study in self._all() for one in study.get_trials(deepcopy=False)]
        return max((attributes.get("number", -1) for attributes in said), default=-1) + 1

    def take_over(self) -> str:
        """Copies every earlier trial that this space would run just so, and its further seeds; says how many.

        They keep their numbers, what they reached and what they came to.
        """
        for number, (arm, frozen) in sorted(self._earlier().items()):
            said = frozen.user_attrs
            proposal = fitted(self._space, arm, frozen.params, said["config"], frozen.system_attrs)
            if proposal is None or said.get("ending", {}).get("cause") == EXTENDED:
                continue
            if "repeat_of" in said:
                fits = said["repeat_of"] in self._trials and said["turn"] < self._space.search.repeats
            else:
                was = TrialConfig.model_validate_json(said["config"])
                fits = proposal.config.fingerprint() == was.fingerprint()
            if fits:
                self._add(number, proposal, said, frozen.state, frozen.values)
        kept, left = len(self._trials), len(self.left_behind)
        told = f"extended: {kept} of {kept + left} earlier trials lie in the new space and stay"
        does = "does not and is" if left == 1 else "do not and are"
        return f"{told}; {left} {does} kept in the journal and in MLflow only" if left else told

    @property
    def left_behind(self) -> list[int]:
        """Numbers of earlier trials that this space does not hold."""
        return sorted(set(self._earlier()) - set(self._trials))

    def settle_earlier(self) -> list[Record]:
        """Sees to it that nothing is left running in earlier generations; who was left behind there."""
        for _, study in self._studies_before():
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                ending = Ending("failed", 0, 0.0, 0.0, {}, "the sweep's space no longer holds it", EXTENDED)
                Trial(study, frozen._trial_id).set_user_attr("ending", _attributes(ending))
                study.tell(frozen.number, state=TrialState.FAIL)
        earlier = self._earlier()
        return [_record(number, *earlier[number]) for number in self.left_behind]

    def _studies_before(self) -> list[tuple[str, Study]]:
        """Arms and studies of earlier generations, the oldest first."""
        studies = [(*arm_and_generation(study.study_name), study) for study in self._all()]
        before = [one for one in studies if one[1] < self._generation]
        return [(arm, study) for arm, _, study in sorted(before, key=lambda one: one[1])]

    def _earlier(self) -> dict[int, tuple[str, FrozenTrial]]:
        """Arm and trial of earlier generations, by number, as the last of them had it."""
        return {
            frozen.user_attrs["number"]: (arm, frozen)
            for arm, study in self._studies_before()
            for frozen in study.get_trials(deepcopy=False)
        }

    def start(
        self, number: int, proposal: Proposal, config: TrialConfig, repeat_of: int | None = None, turn: int = 0
    ) -> None:
        """Records a trial as running, in one line, so that no kill leaves half of one."""
        said = {"number": number, "sampled": proposal.drawn.values, "config": config.model_dump_json()}
        if repeat_of is not None:
            said |= {"repeat_of": repeat_of, "turn": turn}
        self._add(number, proposal, said)

    def _add(
        self,
        number: int,
        proposal: Proposal,
        said: Mapping[str, Any],
        state: TrialState = TrialState.RUNNING,
        values: Sequence[float] | None = None,
    ) -> None:
        study = self._of[proposal.arm]
        study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=dict(proposal.params),
                distributions=dict(proposal.distributions),
                user_attrs=dict(said),
                system_attrs=dict(proposal.internal),
            )
        )
        self._trials[number] = proposal.arm, study.get_trials(deepcopy=False)[-1]

    def reach(self, arrival: Arrival) -> None:
        """Records what a rung saw, before anyone acts on the decision."""
        self._set(arrival.number, f"{RUNG}{arrival.rung}", [*arrival.values, arrival.goes_on])

    def close(self, number: int, ending: Ending) -> None:
        """Records what became of a trial. Killed between the lines: it is running, and ends again."""
        arm, frozen = self._trials[number]
        state = ending.state
        self._set(number, "ending", _attributes(ending))
        values = [ending.metrics[goal] for goal in self._goals] if state == "complete" else None
        self._of[arm].tell(frozen.number, values, state=TOLD[state])
        self._refresh(number)

    def arrivals(self) -> Iterator[Arrival]:
        """What all rungs have seen so far."""
        for number, (arm, _) in sorted(self._trials.items()):
            for rung, (*values, goes_on) in self._rungs(number).items():
                yield Arrival(number, arm, rung, tuple(values), goes_on)

    def reached(self, number: int) -> dict[int, Values]:
        """A trial's values at the rungs that it has reached."""
        return {rung: tuple(values) for rung, (*values, _) in self._rungs(number).items()}

    def records(self) -> list[Record]:
        """Every trial of the sweep, by number."""
        return [self.record(number) for number in sorted(self._trials)]

    def record(self, number: int) -> Record:
        return _record(number, *self._trials[number])

    def learned(self, number: int) -> Values | None:
        """What the sampler was told of a finished trial."""
        learned = self._trials[number][1].user_attrs["ending"]["learned"]
        return None if learned is None else tuple(learned)

    def proposal(self, number: int) -> Proposal:
        """What a trial was, drawn again: the data may have moved since."""
        arm, frozen = self._trials[number]
        replay = Replay(frozen.params)
        drawn = draw(self._space.arms[arm], replay, arm)
        config = validate(TrialConfig, drawn.config)
        return Proposal(arm, drawn, config, frozen.params, replay.distributions, frozen.system_attrs)

    def _all(self) -> list[Study]:
        names = optuna.get_all_study_names(self._storage)
        return [optuna.load_study(study_name=name, storage=self._storage) for name in names]

    def _study(self, name: str) -> Study:
        directions = [StudyDirection.MAXIMIZE] * len(self._goals)
        return optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=directions,
            sampler=RandomSampler(),  # never asked
            load_if_exists=True,
        )

    def _rungs(self, number: int) -> dict[int, list[Any]]:
        said = self._trials[number][1].user_attrs
        return {int(name.removeprefix(RUNG)): seen for name, seen in said.items() if name.startswith(RUNG)}

    def _set(self, number: int, name: str, value: Any) -> None:
        arm, frozen = self._trials[number]
        Trial(self._of[arm], frozen._trial_id).set_user_attr(name, value)
        self._refresh(number)

    def _refresh(self, number: int) -> None:
        arm, frozen = self._trials[number]
        self._trials[number] = arm, self._storage.get_trial(frozen._trial_id)


def _attributes(ending: Ending) -> dict[str, Any]:
    """Returns an ending as the journal keeps it: without the state, which Optuna keeps itself."""
    return {name: value for name, value in vars(ending).items() if name != "state"}


def _record(number: int, arm: str, frozen: FrozenTrial) -> Record:
    said = frozen.user_attrs
    ending = dict(said.get("ending") or {}) if frozen.state.is_finished() else {}
    ending.pop("learned", None)
    return Record(
        number=number,
        arm=arm,
        state=STATES[frozen.state],
        sampled=said["sampled"],
        config=said["config"],
        repeat_of=said.get("repeat_of"),
        turn=said.get("turn", 0),
        **{"epochs": 0, "seconds": 0.0, "metrics": {}, **ending},
    )


def resolved(drawn: Drawn) -> dict[str, Any]:
    """Each sampled value under its leaf name, and again under its path in the TrialConfig."""
    shown: dict[str, Any] = dict(drawn.values)
    for place in drawn.places.values():
        value = at(drawn.config, place)
        if value is not None and not isinstance(value, dict):
            shown[place] = json.dumps(value) if isinstance(value, list) else value
    return shown
