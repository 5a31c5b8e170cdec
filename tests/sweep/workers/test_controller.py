"""Which trial gets a worker that has become free: never one whose own worker is starting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from ray.tune.execution.tune_controller import TuneController
from ray.tune.utils.object_cache import _ObjectCache

from sweep.types import Placement
from sweep.workers import controller
from sweep.workers.controller import SlotController, controller_made_by

PLACE = "the place of every trial"


class Trial:
    """A trial as far as Tune's controller looks at it."""

    placement_group_factory = PLACE
    config: ClassVar[dict[str, Any]] = {}
    experiment_tag = ""

    def __init__(self, name: str):
        self.name = name

    def set_ray_actor(self, actor: str) -> None:
        self.actor = actor


NAMES = ("starting", "old", "resetting", "new")


def made(kind: type[Any], *free: str) -> tuple[Any, dict[str, Trial], list[str]]:
    """Returns a controller as Tune leaves it between two steps, its trials by name, and the list of the workers that it
    ends.

    The trials 'old' and 'new' wait for a place, 'starting' has a place in which its worker starts, and a worker that
    was free prepares for 'resetting'. The workers in `free` have no trial.
    """
    trials, removed = {name: Trial(name) for name in NAMES}, list[str]()
    tune = kind.__new__(kind)
    tune.more_to_come = lambda: True
    tune._pending_trials, tune._running_trials = set(trials.values()), {Trial("running")}
    tune._pending_trials_list = list(trials.values())
    tune._resetting_trials = {trials["resetting"]}
    tune._trial_to_actor = {trial: f"worker of {name}" for name, trial in trials.items()}
    tune._actor_to_trial = {worker: trial for trial, worker in tune._trial_to_actor.items()}
    placed = {worker: (worker, None) for worker in ["worker of starting", "worker of resetting", *free]}
    tune._started_actors = {"worker of resetting", *free}
    tune._actor_manager = SimpleNamespace(
        is_actor_started=placed.__contains__, _live_actors_to_ray_actors_resources=placed
    )
    tune._actor_cache = _ObjectCache()
    tune._actor_cache.increase_max(PLACE, len(free))
    for worker in free:
        tune._actor_cache.cache_object(PLACE, worker)
    tune._resources_to_pending_trials = defaultdict(set)
    tune._remove_actor = lambda tracked_actor: removed.append(tracked_actor)
    tune._schedule_trial_reset = lambda trial, *rest: tune._resetting_trials.add(trial)
    return tune, trials, removed


def test_a_worker_that_is_starting_is_never_ended() -> None:
    tune, trials, removed = made(TuneController, "free")
    tune._maybe_reuse_cached_actor(trials["starting"])
    assert removed == ["worker of starting"], "what Ray Tune does; if it no longer does, our controller can go"

    tune, trials, removed = made(SlotController, "free")
    assert tune._maybe_reuse_cached_actor(trials["starting"])
    assert not removed and tune._actor_cache.num_cached_objects == 1
    assert tune._trial_to_actor[trials["starting"]] == "worker of starting"


def test_the_last_trials_do_not_wait_for_workers_that_are_starting() -> None:
    tune, trials, removed = made(SlotController, "free")
    tune.more_to_come = lambda: False
    assert tune._maybe_reuse_cached_actor(trials["starting"])
    assert tune._trial_to_actor[trials["starting"]] == "free" and removed == ["worker of starting"]


def test_a_free_worker_goes_to_the_trial_that_has_waited_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that waits for a place has no worker that could be ended; only its request is taken back."""
    monkeypatch.setattr(TuneController, "_maybe_add_actors", lambda self: None)
    tune, _, removed = made(SlotController, "first", "second", "third")
    tune._maybe_add_actors()
    workers = {trial.name: worker for trial, worker in tune._trial_to_actor.items()}
    assert workers == {
        "starting": "worker of starting",
        "old": "first",
        "resetting": "worker of resetting",
        "new": "second",
    }
    assert removed == ["worker of old", "worker of new"] and tune._actor_cache.num_cached_objects == 1


def test_a_trial_runs_once_a_worker_prepares_for_it() -> None:
    tune, _, _ = made(SlotController)
    assert tune.placement() == Placement(running=2, starting=1, waiting=2)


def test_another_version_of_tune_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**options: Any) -> SlotController:
        raise AssertionError

    make: Callable[..., SlotController] = never
    monkeypatch.setattr(controller, "REPLACED", ("_maybe_add_actors", "renamed"))
    with pytest.raises(RuntimeError, match="another controller"), controller_made_by(make):
        pass
