"""Ask and tell behind Ray Tune's `Searcher`: who is next, and what became of them.

Nothing here is kept in memory only. A driver that dies leaves its trials running in the Optuna
storage; the next driver starts them again first, under their own numbers, from their checkpoints.
The same happens to a trial whose worker process dies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from mmpkd.config import TrialConfig
from mmpkd.types import UserError
from sweep.search.budget import limit
from sweep.search.repeats import repeated
from sweep.search.samplers import Proposal
from sweep.search.state import Books, Live
from sweep.space.space import Space
from sweep.storage.failures import error_file, told_error
from sweep.types import Halt, Job, Record, State

HOPELESS = 3  # trials that fail before any comes through: then it is not the configuration


class Search(Searcher):
    """Hands out trials until `space.search.trials` configurations have been started, and closes each exactly once.

    Args:
        folder: the sweep's.
        cache: where workers find, or leave, teachers' outputs.
        store: the prepared cohort.
        num_folds: that its patients were dealt into.
        wait: for every proposal, on Tune's time; without it only when nothing is running.
    """

    def __init__(
        self,
        space: Space,
        books: Books,
        folder: Path,
        cache: Path,
        store: Path,
        num_folds: int = 1,
        wait: bool = False,
    ):
        super().__init__()
        self.space, self.books = space, books
        self._folder, self._cache, self._store = folder, cache, store
        self._num_folds, self._wait = num_folds, wait
        self.changed: Callable[[], None] = lambda: None  # called after every event, for the display
        self.most_live = 1  # the driver says how many trials run at a time, and one more to wait for a place
        self.devices = 1.0  # that a trial holds: a share of a GPU, or cores
        self.can_halve = False  # whether fewer trials to a device could be run
        self.halt: Halt | None = None
        self._warnings: list[str] = []  # not shown yet
        self.broken: Exception | None = None
        self.live: dict[str, Live] = {}
        self.exhausted: set[str] = set()  # arms that have nothing left to try
        self._deaths: Counter[int] = Counter()
        self._here: Counter[State] = Counter()  # closed by this driver
        self.look()

    @property
    def goals(self) -> tuple[str, ...]:
        return self.books.goals

    @property
    def finished(self) -> Mapping[int, Record]:
        return self.books.finished

    @property
    def hopeless(self) -> bool:
        """Every trial so far failed: whatever is wrong is wrong with all of them."""
        return self._here["failed"] >= HOPELESS and self._here.total() == self._here["failed"]

    @property
    def fresh(self) -> int:
        """Configurations not yet started."""
        if self.books.plateau.reached(self.exhausted) or self.exhausted >= set(self.space.arms):
            return 0
        return max(self.space.search.trials - self.books.started, 0)

    @property
    def left(self) -> int:
        """Trials that a driver would still have to run."""
        return len(self.books.orphans) + len(self.books.seeds.due) + self.fresh + len(self.live)

    def records(self) -> list[Record]:
        return [self.finished[number] for number in sorted(self.finished)]

    def look(self) -> None:
        """Whether it is time to stop; the driver asks now and then."""
        if self.halt is None and (why := limit(self.space.search, self.books.ledger)):
            self.halt = Halt("limit", why)

    def release(self) -> None:
        """Nothing runs any more: whoever was in flight is handed out again by the next driver, or the next drive."""
        self.books.orphans += [live.number for live in self.live.values()]
        self.live.clear()

    def take_warnings(self) -> list[str]:
        """What workers found that the user should know, each line once."""
        taken, self._warnings = list(dict.fromkeys(self._warnings)), []
        return taken

    # --- Ray Tune's interface ---

    def suggest(self, trial_id: str) -> Any:
        with self._guarded():
            if self.halt is not None:
                return None if self.live else str(self.FINISHED)
            if len(self.live) >= self.most_live:
                return None
            chosen = None if self.hopeless else self._choose()
            if chosen is None:
                # While any is in flight its worker may die, and it will be handed out again.
                waiting = self.live or (self.books.sampling.asked and not self.hopeless)
                return None if waiting else str(self.FINISHED)
            return self._hand_out(trial_id, *chosen)
        return str(self.FINISHED)  # or a Job, or None for 'not now'

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        with self._guarded():
            self._warnings += result.get("notes", ())
            self.books.hear(self.live[trial_id], result["reports"], self.devices)
            self.look()
            self.changed()

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        with self._guarded():
            if trial_id in self.live:
                self._complete(trial_id, result or {}, error)
                self.look()
            self.changed()

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the storage is the state."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a sweep continues from its Optuna storage")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what its own restore would want; we never use that

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Tune logs and swallows much of what is raised to it (2.60); the driver raises it after the end."""
        try:
            yield
        except Exception as broken:
            self.broken = self.broken or broken
            self.halt = Halt("broken")

    # --- what happens behind it ---

    def _choose(self) -> tuple[int, Proposal, TrialConfig] | None:
        """Who is next: what was begun before what is new."""
        books = self.books
        if books.orphans:
            number = books.orphans.pop(0)
            proposal, turn = books.studies.proposal(number), books.studies.record(number).turn
            return number, proposal, repeated(proposal.config, turn, self._num_folds)
        if books.seeds.due:
            due = books.seeds.due.popleft()
            proposal = books.waiting[due.number]
            config = repeated(proposal.config, due.turn, self._num_folds)
            return books.start(proposal, config, due), proposal, config
        proposed = self._proposed()
        return (books.start(proposed, proposed.config), proposed, proposed.config) if proposed else None

    def _proposed(self) -> Proposal | None:
        """A new configuration; None while it is being thought about, and when no more are wanted."""
        sampling = self.books.sampling
        while sampling.asked or self.fresh:
            if not sampling.asked:
                arms = [arm for arm in self.space.arms if arm not in self.exhausted]
                flying = [(live.proposal.arm, live.device_seconds) for live in self.live.values()]
                sampling.ask(self.books.ledger.neediest(arms, flying), self.books.next_number)
            arm = sampling.asked
            there, proposal = sampling.answer(self._wait or not self.live)
            if not there or proposal is not None:
                return proposal
            assert arm is not None
            self.exhausted.add(arm)
        return None

    def _hand_out(self, trial_id: str, number: int, proposal: Proposal, config: TrialConfig) -> Job:
        self.live[trial_id] = self.books.announce(number, proposal, config, self.devices)
        error_file(self._folder, number).unlink(missing_ok=True)
        self.changed()
        return Job(
            number=number,
            arm=proposal.arm,
            repeat_of=self.books.studies.record(number).repeat_of,
            trial=config.model_dump_json(),
            goals=list(self.goals),
            folder=str(self._folder),
            cache=str(self._cache),
            store=str(self._store),
        )

    def _complete(self, trial_id: str, result: Mapping[str, Any], error: bool) -> None:
        live = self.live[trial_id]
        self._warnings += result.get("notes", ())
        self.books.hear(live, result.get("reports", ()), self.devices)
        cause, message = told_error(self._folder, live.number, result) if error or "error" in result else ("", "")
        if cause in ("storage", "goal"):  # not this trial's fault, and all others will meet it
            raise UserError(message)
        if cause == "memory" and self.can_halve:
            self.halt = Halt("memory", message)
        elif cause:
            self._close(trial_id, "failed", message, cause)
        elif error or live.metrics is None:
            self._worker_died(trial_id)
        else:
            self._close(trial_id, "complete" if live.epoch >= live.config.epochs else "pruned")

    def _worker_died(self, trial_id: str) -> None:
        live = self.live[trial_id]
        self._deaths[live.number] += 1
        times = self._deaths[live.number]
        if times > self.space.search.max_failures:
            self._close(trial_id, "failed", f"its worker process died {times} times (out of memory?)", "worker")
            return
        del self.live[trial_id]
        self.books.orphans.append(live.number)

    def _close(self, trial_id: str, state: State, error: str = "", cause: str = "") -> None:
        self.books.close(self.live[trial_id], state, error, cause)
        del self.live[trial_id]
        self._here[state] += 1
