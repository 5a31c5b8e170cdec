"""Optuna's ask and tell behind Ray Tune's `Searcher`: who is next, and what became of them.

Nothing here is kept in memory only. A driver that dies leaves its trials running in the Optuna
storage; the next driver starts them again first, under their own numbers, from their checkpoints.
The same happens to a trial whose worker process dies.
"""

from __future__ import annotations

import shutil
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import Trial
from ray.tune.search import Searcher

from mmpkd.config import TrialConfig
from sweep.draw import Drawn
from sweep.records import Record, Spool, State, admit
from sweep.space import Space
from sweep.studies import Studies, resolved
from sweep.trial import Job, checkpoints_of, error_file

HOPELESS = 3  # trials that fail before any comes through: then it is not the configuration


@dataclass
class Live:
    """A trial in flight, and what its last epoch said."""

    number: int
    arm: str
    trial: Trial
    drawn: Drawn
    epochs: int  # it wants
    epoch: int = 0  # it has
    seconds: float = 0.0
    metrics: Mapping[str, float] | None = None


class Search(Searcher):
    """Hands out trials until `space.search.trials` have been started, and closes each exactly once.

    Args:
        folder: the sweep's.
        cache: where workers find, or leave, teachers' outputs.
        store: the prepared cohort.
        changed: called after every event, for the display.
    """

    def __init__(
        self,
        space: Space,
        goals: Sequence[str],
        studies: Studies,
        spool: Spool,
        folder: Path,
        cache: Path,
        store: Path,
        changed: Callable[[], None] = lambda: None,
    ):
        super().__init__()
        self.space, self.goals, self.studies = space, tuple(goals), studies
        self._spool, self._folder, self._cache, self._store = spool, folder, cache, store
        self.changed = changed
        self.most_live = 1  # the driver says how many trials run at a time, and one more to wait for a place
        self.live: dict[str, Live] = {}
        self.finished: dict[int, Record] = {}
        self._orphans: list[Record] = []
        self._deaths: Counter[int] = Counter()
        self._here: Counter[State] = Counter()  # closed by this driver
        self._front: dict[int, Sequence[float]] = {}
        self._broken: Exception | None = None
        self._catch_up()

    def _catch_up(self) -> None:
        """Takes up where the last driver stopped, at whichever line it was killed."""
        self._heard: defaultdict[int, int] = defaultdict(int)  # number -> last epoch in the spool
        ended, self._announced = set(), set()
        for _, event in self._spool.read():
            if event["event"] == "epoch":
                self._heard[event["number"]] = max(self._heard[event["number"]], event["epoch"])
            elif event["event"] == "start":
                self._announced.add(event["number"])
            elif event["event"] == "end":
                ended.add(event["number"])
        for record in self.studies.records():
            if record.state == "running":
                self._orphans.append(record)
            else:
                if record.number not in ended:
                    self._say_end(record)
                self._file(record)
        self._next = len(self.finished) + len(self._orphans)

    @property
    def hopeless(self) -> bool:
        """Every trial so far failed: whatever is wrong is wrong with all of them."""
        return self._here["failed"] >= HOPELESS and self._here.total() == self._here["failed"]

    @property
    def waiting(self) -> int:
        """Trials not yet started."""
        return len(self._orphans) + max(self.space.search.trials - self._next, 0)

    @property
    def left(self) -> int:
        """Trials that a driver would still have to run."""
        return self.waiting + len(self.live)

    def records(self) -> list[Record]:
        return [self.finished[number] for number in sorted(self.finished)]

    # --- Ray Tune's interface ---

    def suggest(self, trial_id: str) -> Any:
        if self._broken is not None:
            raise self._broken
        if len(self.live) >= self.most_live:
            return None
        if self._orphans and not self.hopeless:
            record = self._orphans.pop(0)
            number, arm = record.number, record.arm
            trial, drawn = self.studies.adopt(record)
        elif self.waiting and not self.hopeless:
            number, arm = self._next, self._neediest()
            self._next += 1
            trial, drawn = self.studies.ask(arm, number)
        else:
            # While any is in flight its worker may die, and it will be handed out again.
            return None if self.live else str(self.FINISHED)
        config = TrialConfig.model_validate(drawn.config)
        self.live[trial_id] = Live(number, arm, trial, drawn, config.epochs)
        error_file(self._folder, number).unlink(missing_ok=True)
        if number not in self._announced:
            self._announced.add(number)
            self._spool.append("start", number=number, arm=arm, params=resolved(drawn), tags=_tags(config))
        self.changed()
        return Job(  # or FINISHED, or None for 'not now'
            number=number,
            arm=arm,
            trial=config.model_dump_json(),
            goals=list(self.goals),
            folder=str(self._folder),
            cache=str(self._cache),
            store=str(self._store),
        )

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        self._hear(self.live[trial_id], result["reports"])
        self.changed()

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self.live:
            return
        try:
            self._complete(trial_id, result or {}, error)
        except Exception as broken:  # Tune logs and swallows what is raised here (2.60)
            self._broken = broken
        self.changed()

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the storage is the state."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a sweep continues from its Optuna storage")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what its own restore would want; we never use that

    # --- what happens behind it ---

    def _complete(self, trial_id: str, result: Mapping[str, Any], error: bool) -> None:
        live = self.live[trial_id]
        self._hear(live, result.get("reports", ()))
        story = error_file(self._folder, live.number)
        if result.get("error") or (error and story.exists()):
            self._close(trial_id, "failed", story.read_text().partition("\n\n")[0])
        elif error or live.metrics is None:
            self._worker_died(trial_id)
        elif live.epoch >= live.epochs:
            self._close(trial_id, "complete")
        else:
            self._close(trial_id, "pruned")

    def _hear(self, live: Live, reports: Sequence[Mapping[str, Any]]) -> None:
        """Takes in epochs; those that an earlier driver heard of are not told twice."""
        for report in reports:
            if report["epoch"] <= live.epoch:
                continue
            live.epoch = report["epoch"]
            live.seconds += report["seconds"]
            live.metrics = report["metrics"]
            if report["epoch"] > self._heard[live.number]:
                self._heard[live.number] = report["epoch"]
                told = {key: report[key] for key in ("epoch", "seconds", "metrics", "terms")}
                self._spool.append("epoch", number=live.number, arm=live.arm, **told)

    def _worker_died(self, trial_id: str) -> None:
        live = self.live[trial_id]
        self._deaths[live.number] += 1
        times = self._deaths[live.number]
        if times > self.space.search.max_failures:
            self._close(trial_id, "failed", f"its worker process died {times} times (out of memory?)")
            return
        del self.live[trial_id]
        self._orphans.append(self.studies.record(live.arm, live.number))

    def _close(self, trial_id: str, state: State, error: str = "") -> None:
        """In this order: should the driver die between two lines, `_catch_up` does the rest."""
        live = self.live.pop(trial_id)
        last = {"epochs": live.epoch, "seconds": live.seconds, "metrics": dict(live.metrics or {})}
        self.studies.close(live.arm, live.trial, state, last, error)
        record = self.studies.record(live.arm, live.number)
        self._here[state] += 1
        self._say_end(record)
        self._file(record)

    def _say_end(self, record: Record) -> None:
        self._spool.append("end", number=record.number, state=record.state, error=record.error)

    def _file(self, record: Record) -> None:
        """A finished trial leaves its checkpoints if it is on the front; whoever is not loses them."""
        self.finished[record.number] = record
        leaving = [record.number]
        if record.state == "complete":
            leaving = admit(self._front, record.number, record.values(self.goals))
        for number in leaving:
            shutil.rmtree(checkpoints_of(self._folder, number), ignore_errors=True)

    def _neediest(self) -> str:
        """The arm furthest behind its share of device-seconds; shares are equal.

        A trial in flight counts as what it will probably cost, and so does a failed one, lest an
        arm whose trials fail at once be handed all the rest. Of equal arms the first in the file.
        """
        cost = {arm: 0.0 for arm in self.space.arms}
        typical = self._typical_seconds()
        for record in self.finished.values():
            floor = typical[record.arm] if record.state == "failed" else 0.0
            cost[record.arm] += max(record.seconds, floor)
        for live in self.live.values():
            cost[live.arm] += max(live.seconds, typical[live.arm])
        return min(cost, key=lambda arm: cost[arm])

    def _typical_seconds(self) -> dict[str, float]:
        spent: defaultdict[str, list[float]] = defaultdict(list)
        for record in self.finished.values():
            if record.state != "failed":
                spent[record.arm].append(record.seconds)
        overall = statistics.fmean([one for seconds in spent.values() for one in seconds] or [1.0])
        return {arm: statistics.fmean(spent[arm]) if spent[arm] else overall for arm in self.space.arms}


def _tags(config: TrialConfig) -> dict[str, str]:
    """What a run is marked with in the tracking: the names of columns that nearly state the label, if taught from."""
    columns = {name for one in config.active_teachers() for name in config.teachers[one].params.get("near_label", ())}
    return {"near_label": ", ".join(sorted(columns))} if columns else {}
