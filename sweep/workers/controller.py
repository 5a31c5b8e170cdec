"""Keeps Ray Tune from ending workers that are still starting, and counts where the open trials are.

When a trial ends, Tune (2.60) gives its worker to any trial that has none, also to one whose own worker is just
starting, and ends the worker that was starting. Where trials are shorter than the start of a worker, a few workers then
take every trial, and the others never come to their first one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from sweep.types import Placement

# The methods of Tune's controller that are replaced here. If another version of Ray has renamed one, nothing would be
# replaced, so this is checked.
REPLACED: Final = ("_maybe_add_actors", "_maybe_reuse_cached_actor")


class SlotController(TuneController):
    """Ray Tune's controller, which gives a free worker to the trial that has waited longest for a place.

    Attributes:
        more_to_come: function that returns whether the search has further trials. If it has none, a free worker has
            nothing else to do, and may take a trial whose own worker is starting.
    """

    more_to_come: Callable[[], bool]

    def _maybe_add_actors(self) -> None:
        """Assigns free workers to waiting trials, and requests places for new trials.

        Without the loop, Tune would give a free worker to the newest trial, and a trial that has waited for a place
        might wait until the end of the sweep.
        """
        for trial in list(self._pending_trials_list):
            if not self._actor_cache.num_cached_objects:
                break
            if trial in self._pending_trials and trial in self._trial_to_actor and not self._is_starting(trial):
                self._maybe_reuse_cached_actor(trial)
        super()._maybe_add_actors()

    def _maybe_reuse_cached_actor(self, trial: Trial) -> bool:
        """Gives a free worker to a trial, unless the trial's own worker is starting and there is more for the free one
        to do. Returns whether the trial has a worker.
        """
        is_left_alone = self._is_starting(trial) and self.more_to_come()
        return is_left_alone or bool(super()._maybe_reuse_cached_actor(trial))

    def _is_starting(self, trial: Trial) -> bool:
        """Whether the trial has a place, and its own worker is starting there."""
        worker = self._trial_to_actor.get(trial)
        return (
            worker is not None
            and trial not in self._resetting_trials  # it has a free worker, which prepares for it
            and worker not in self._started_actors
            and self._actor_manager.is_actor_started(worker)  # Ray has given it its resources
        )

    def placement(self) -> Placement:
        """Returns where the open trials are."""
        pending = list(self._pending_trials)
        starting = sum(map(self._is_starting, pending))
        resetting = sum(trial in self._resetting_trials for trial in pending)
        return Placement(len(self._running_trials) + resetting, starting, len(pending) - starting - resetting)


@contextmanager
def controller_made_by(make: Callable[..., SlotController]) -> Iterator[None]:
    """Lets `make` make the controller of every `Tuner.fit` within this context.

    Raises:
        RuntimeError: this version of Ray Tune has another controller, for which this file must be adapted.
    """
    module: Any = importlib.import_module("ray.tune.tune")
    if not hasattr(module, "TuneController") or not all(hasattr(TuneController, name) for name in REPLACED):
        raise RuntimeError(
            "this version of Ray Tune has another controller; sweep/workers/controller.py replaces 2.60's"
        )
    original, module.TuneController = module.TuneController, make
    try:
        yield
    finally:
        module.TuneController = original
