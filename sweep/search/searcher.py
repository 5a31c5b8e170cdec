"""Implements Ray Tune's `Searcher` interface for a sweep: it hands out trials and receives their results.

Everything that a later driver needs is also on disk. If a driver dies, its trials stay marked as running in the Optuna
storage. The next driver starts these trials first, under their old numbers, from their checkpoints. A trial is
restarted in the same way if its worker dies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ray.tune.search import Searcher

from mmpkd.config import TrialConfig
from mmpkd.types import UserError
from sweep.patience import patiently
from sweep.search.budget import reached_limit
from sweep.search.proposals import Proposal
from sweep.search.repeats import repeat_config
from sweep.search.state import RunningTrial, SweepState
from sweep.space.space import Space
from sweep.storage.failures import Deaths, StorageTrouble, failure_of
from sweep.storage.layout import SweepFolder
from sweep.types import Halt, Job, Placement, Places, Record, Scratch, State

FAILURES_TO_STOP: Final = 3  # if this many trials fail before any other result, the cause is not the configuration


class Search(Searcher):
    """Hands out trials until `space.search.trials` configurations have been started, and records the end of each trial
    exactly once.

    Attributes:
        running: the running trials, by Ray Tune's trial id.
        max_running: the number of trials that may be open at a time, running or not. The driver sets this.
        placement: where the open trials are. The driver sets this.
        devices: the share of a GPU that a trial holds, or its number of cores if it holds no GPU. The driver sets this.
        can_halve: whether the number of trials per device could be halved. The driver sets this.
        on_change: function that is called after every event, to update the display.
        halt: the reason why the search hands out no more trials. None while it still hands out trials.
        error: the exception that broke the search, or None.
        exhausted: names of the arms that have no configuration left to try.

    Args:
        folder: the folder of the sweep.
        cache: the cache in which workers read and write the outputs of teachers.
        store: the prepared cohort.
        num_folds: the number of folds into which the cohort's patients are divided.
        wait: whether Tune waits for every proposal. If False, Tune waits only when no trial is running.
        scratch: the use that workers make of the disk of their node.
        patience: seconds for which trouble of the workers' disks is waited out.
    """

    def __init__(
        self,
        space: Space,
        state: SweepState,
        folder: SweepFolder,
        cache: Path | str,
        store: Path,
        num_folds: int = 1,
        wait: bool = False,
        scratch: Scratch | None = None,
        patience: float = math.inf,
    ):
        super().__init__()
        self.space, self.state = space, state
        self._folder, self._num_folds, self._wait = folder, num_folds, wait
        self.places = Places(folder=str(folder), cache=str(cache), store=str(store), scratch=scratch)
        self.on_change: Callable[[], None] = lambda: None
        self.max_running = 1
        self.placement = Placement()
        self.devices = 1.0
        self.can_halve = False
        self.halt: Halt | None = None
        self.error: Exception | None = None
        self.running: dict[str, RunningTrial] = {}
        self.exhausted: set[str] = set()
        self.warnings: list[str] = []  # warnings that are not shown yet
        self._trouble = StorageTrouble(patience)
        self.deaths = Deaths(space.search.max_failures)
        self._ended: Counter[State] = Counter()  # number of trials that have ended under this driver
        self.check_limits()

    @property
    def goals(self) -> tuple[str, ...]:
        return self.state.goals

    @property
    def finished(self) -> Mapping[int, Record]:
        return self.state.finished

    @property
    def all_failed(self) -> bool:
        """Whether every trial of this driver has failed, and so many have failed that the cause must be common to all
        trials.
        """
        return self._ended["failed"] >= FAILURES_TO_STOP and self._ended.total() == self._ended["failed"]

    @property
    def remaining_configurations(self) -> int:
        """The number of configurations that have not been started yet."""
        if self.state.plateau.reached(self.exhausted) or self.exhausted >= set(self.space.arms):
            return 0
        return max(self.space.search.trials - self.state.num_started, 0)

    @property
    def remaining_trials(self) -> int:
        """The number of trials that a driver still has to run, including the trials that are running."""
        waiting = len(self.state.interrupted) + len(self.state.repeats.pending)
        return waiting + self.remaining_configurations + len(self.running)

    @property
    def has_more(self) -> bool:
        """Whether there are trials that have not been handed out."""
        return self.remaining_trials > len(self.running)

    def records(self) -> list[Record]:
        """Returns the finished trials, ordered by number."""
        return [self.finished[number] for number in sorted(self.finished)]

    def check_limits(self) -> None:
        """Halts the search if the budget is spent or the deadline has passed. Ray Tune's loop calls this about once a
        second.
        """
        if self.halt is None and (reason := reached_limit(self.space.search, self.state.ledger)):
            self.halt = Halt("limit", reason)

    def release_running(self) -> None:
        """Marks all running trials as interrupted, once no worker runs any more. They are handed out again later."""
        self.state.interrupted += [trial.number for trial in self.running.values()]
        self.running.clear()

    def warn(self, warning: str) -> None:
        """Notes a warning for the user, which the display of progress shows once."""
        self.warnings.append(warning)

    def take_warnings(self) -> list[str]:
        """Returns the new warnings for the user, each line once."""
        warnings, self.warnings = list(dict.fromkeys(self.warnings)), []
        return warnings

    # --- Ray Tune's interface ---

    def suggest(self, trial_id: str) -> Any:
        """Returns the next Job. Returns None if there is no job at the moment, and `FINISHED` if there will be none any
        more.
        """
        with self._guarded():
            if self.halt is not None:
                return None if self.running else str(self.FINISHED)
            if len(self.running) >= self.max_running:
                return None
            chosen = None if self.all_failed else self._choose()
            if chosen is None:
                # A worker of a running trial may still die; the trial is then handed out again.
                waiting = self.running or (self.state.samplers.requested_arm and not self.all_failed)
                return None if waiting else str(self.FINISHED)
            return self._hand_out(trial_id, *chosen)
        return str(self.FINISHED)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        with self._guarded():
            self._record(self.running[trial_id], result)
            self.check_limits()
            self.on_change()

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        with self._guarded():
            if trial_id in self.running:
                self._receive_last(trial_id, result or {}, error)
                self.check_limits()
            self.on_change()

    def save(self, checkpoint_path: str) -> None:
        """Does nothing. Ray Tune calls this to save the search, but the Optuna storage already holds the whole
        state.
        """

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a sweep continues from its Optuna storage")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles the searcher for its own restore, which is never used

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A context manager that stores an exception in `error`. The driver raises this exception at the end. Ray Tune
        (2.60) only logs many exceptions of searchers.
        """
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            self.halt = Halt("broken")

    # --- behind the interface ---

    def _choose(self) -> tuple[int, Proposal, TrialConfig] | None:
        """Returns the next trial to run, or None. Interrupted trials come first, then further seeds, then new
        configurations.
        """
        state = self.state
        if state.interrupted:
            number = state.interrupted.pop(0)
            proposal, turn = state.studies.proposal(number), state.studies.record(number).turn
            return number, proposal, repeat_config(proposal.config, turn, self._num_folds)
        if state.repeats.pending:
            repeat = state.repeats.pending.popleft()
            proposal = state.awaiting_seeds[repeat.configuration]
            config = repeat_config(proposal.config, repeat.turn, self._num_folds)
            return state.start(proposal, config, repeat), proposal, config
        new = self._propose()
        return (state.start(new, new.config), new, new.config) if new else None

    def _propose(self) -> Proposal | None:
        """Returns a new configuration. Returns None while a proposal is still being made, or if no more configurations
        are needed.
        """
        samplers = self.state.samplers
        while samplers.requested_arm or self.remaining_configurations:
            if not samplers.requested_arm:
                arms = [arm for arm in self.space.arms if arm not in self.exhausted]
                running = [(trial.proposal.arm, trial.reported.device_seconds) for trial in self.running.values()]
                samplers.request(self.state.ledger.neediest(arms, running), self.state.next_number)
            arm = samplers.requested_arm
            made, proposal = samplers.collect(self._wait or not self.running)
            if not made or proposal is not None:
                return proposal
            assert arm is not None
            self.exhausted.add(arm)
        return None

    def _hand_out(self, trial_id: str, number: int, proposal: Proposal, config: TrialConfig) -> Job:
        self.running[trial_id] = self.state.hand_out(number, proposal, config, self.devices)
        error_file = self._folder.shared_error(number)
        patiently(error_file.delete, Path(str(error_file)))
        self.on_change()
        stopping, repeat_of = self.space.search.early_stopping, self.state.studies.record(number).repeat_of
        return {
            "number": number,
            "arm": proposal.arm,
            "repeat_of": repeat_of,
            "trial": config.model_dump_json(),
            "goals": list(self.goals),
            "rungs": stopping.rungs(config.epochs) if stopping and repeat_of is None else [],
            **self.places,
        }

    def _record(self, trial: RunningTrial, result: Mapping[str, Any]) -> None:
        """Records the epochs and the notes in a result."""
        self.warnings += result.get("notes", ())
        if reports := result.get("reports", ()):
            self.state.record_epochs(trial, reports, self.devices)
            self.warnings += self._trouble.note_report(result.get("hostname", "a node"))

    def _receive_last(self, trial_id: str, result: Mapping[str, Any], error: bool) -> None:
        """Ends a trial with its last result. If its worker died, the trial is handed out again instead."""
        trial = self.running[trial_id]
        self._record(trial, result)
        cause, message = failure_of(self._folder, trial.number, result) if error or "error" in result else ("", "")
        if cause == "goal":  # this trial is not the cause, and all other trials will meet the same problem
            raise UserError(message)
        if cause == "memory" and self.can_halve:
            self.halt = Halt("memory", message)
        elif cause == "storage":
            signs = [other.last_sign for other in self.running.values() if other is not trial]
            num_waiting = self.placement.starting + self.placement.waiting
            self.warnings += self._trouble.add(result.get("hostname", "a node"), message, signs, num_waiting)
            self._hand_back(trial_id)
        elif cause == "leaving":
            self.warnings += [message] if message else []
            self._hand_back(trial_id)
        elif cause:
            self._end(trial_id, "failed", message, cause)
        elif error or not result.get("reports"):
            self._receive_death(trial_id)
        else:
            self._end(trial_id, "complete" if trial.reported.epoch >= trial.config.epochs else "pruned")

    def _receive_death(self, trial_id: str) -> None:
        if reason := self.deaths.add(self.running[trial_id].number, trial_id):
            self._end(trial_id, "failed", reason, "worker")
        else:
            self._hand_back(trial_id)

    def _hand_back(self, trial_id: str) -> None:
        """Marks a running trial as interrupted, so that it is handed out again."""
        self.state.interrupted.append(self.running.pop(trial_id).number)

    def _end(self, trial_id: str, state: State, error: str = "", cause: str = "") -> None:
        self.state.end(self.running[trial_id], state, error, cause)
        del self.running[trial_id]
        self._ended[state] += 1
