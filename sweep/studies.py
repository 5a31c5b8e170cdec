"""The sweep's Optuna storage, the only truth about its trials: one study per arm.

The storage is written by one driver and asked by nobody: who comes next is proposed by
`sampling.py`, from memory. So what lies here is what happened, and a trial is one line when it
starts, one for each rung that it reaches, and two when it ends.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from mmpkd.config import TrialConfig, validate
from sweep.choosers import Replay
from sweep.draw import Drawn, draw
from sweep.front import Values
from sweep.halving import Arrival
from sweep.records import Record, State, cut_torn_line
from sweep.sampling import Proposal
from sweep.space import Space

STATES: Final[Mapping[TrialState, State]] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
TOLD: Final[Mapping[State, TrialState]] = {state: told for told, state in STATES.items()}
RUNG: Final = "rung "  # + epoch: the user attribute that holds what a rung saw


@dataclass(frozen=True)
class Ending:
    """What became of a trial.

    Attributes:
        learned: what the sampler is told instead of the trial's values; None: nothing.
    """

    state: State
    epochs: int
    seconds: float
    device_seconds: float
    metrics: Mapping[str, float]
    error: str = ""
    cause: str = ""
    learned: Values | None = None


class Studies:
    """Keeps every trial under its number in the sweep (Optuna counts within an arm).

    Args:
        journal: the file; whoever opens it holds the sweep's lock.
        generation: how often the sweep's space was extended; each extension has studies of its own.
    """

    def __init__(self, journal: Path, space: Space, goals: Sequence[str], generation: int = 0):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        cut_torn_line(journal)  # a killed driver's half line would spoil the next one
        with contextlib.suppress(FileNotFoundError):
            Path(f"{journal}.lock").unlink()  # and its lock would be waited for
        self._storage = JournalStorage(JournalFileBackend(str(journal)))
        self._space, self._goals = space, tuple(goals)
        self._of = {arm: self._study(study_name(arm, generation)) for arm in space.arms}
        self._trials: dict[int, tuple[str, FrozenTrial]] = {}
        for arm, study in self._of.items():
            for frozen in study.get_trials(deepcopy=False):
                self._trials[frozen.user_attrs["number"]] = arm, frozen

    @property
    def next_number(self) -> int:
        """Above all numbers that this sweep has given, in earlier generations too."""
        studies = [self._study(name) for name in optuna.get_all_study_names(self._storage)]
        said = [one.user_attrs for study in studies for one in study.get_trials(deepcopy=False)]
        return max((attributes.get("number", -1) for attributes in said), default=-1) + 1

    def start(
        self, number: int, proposal: Proposal, config: TrialConfig, repeat_of: int | None = None, turn: int = 0
    ) -> None:
        """Records a trial as running, in one line, so that no kill leaves half of one."""
        said = {"number": number, "sampled": proposal.drawn.values, "config": config.model_dump_json()}
        if repeat_of is not None:
            said |= {"repeat_of": repeat_of, "turn": turn}
        self._add(number, proposal.arm, proposal, said)

    def _add(self, number: int, arm: str, proposal: Proposal, said: Mapping[str, Any]) -> None:
        study = self._of[arm]
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(proposal.params),
                distributions=dict(proposal.distributions),
                user_attrs=dict(said),
                system_attrs=dict(proposal.internal),
            )
        )
        self._trials[number] = arm, study.get_trials(deepcopy=False)[-1]

    def reach(self, arrival: Arrival) -> None:
        """Records what a rung saw, before anyone acts on the decision."""
        self._set(arrival.number, f"{RUNG}{arrival.rung}", [*arrival.values, arrival.goes_on])

    def close(self, number: int, ending: Ending) -> None:
        """Records what became of a trial. Killed between the lines: it is running, and ends again."""
        arm, frozen = self._trials[number]
        state, said = ending.state, {name: value for name, value in vars(ending).items() if name != "state"}
        self._set(number, "ending", said)
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
        arm, frozen = self._trials[number]
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


def study_name(arm: str, generation: int) -> str:
    return f"{arm} {generation}" if generation else arm


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
