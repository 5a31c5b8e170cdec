"""Which trials are saved when the driver is asked to end: those whose current epoch will soon end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sweep.workers import tune
from sweep.workers.tune import SAVE_SECONDS, save_trials


class Actor:
    """A worker that notes that it was asked to stop."""

    def __init__(self) -> None:
        self.stopped = 0
        self.stop = SimpleNamespace(remote=self._stop)

    def _stop(self) -> Actor:
        self.stopped += 1
        return self


def trial(actor: Actor | None, status: str, **last_result: float) -> Any:
    return SimpleNamespace(
        temporary_state=SimpleNamespace(ray_actor=actor),
        status=status,
        run_metadata=SimpleNamespace(last_result=last_result),
    )


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Actor], float]]:
    waits: list[tuple[list[Actor], float]] = []
    monkeypatch.setattr(tune.ray, "wait", lambda stops, num_returns, timeout: waits.append((stops, timeout)))
    return waits


def test_only_running_trials_with_short_epochs_are_waited_for(waits: list[tuple[list[Actor], float]]) -> None:
    quick, slow, ended, fresh = (Actor() for _ in range(4))
    save_trials(
        [
            trial(quick, "RUNNING", time_this_iter_s=SAVE_SECONDS),
            trial(slow, "RUNNING", time_this_iter_s=SAVE_SECONDS + 0.1),
            trial(ended, "TERMINATED", time_this_iter_s=0.1),
            trial(fresh, "RUNNING"),
            trial(None, "PENDING"),
        ]
    )
    assert [actor.stopped for actor in (quick, slow, ended, fresh)] == [1, 0, 0, 0]
    assert waits == [([quick], SAVE_SECONDS)]


def test_nothing_is_waited_for_if_no_epoch_will_soon_end(waits: list[tuple[list[Actor], float]]) -> None:
    save_trials([trial(Actor(), "RUNNING", time_this_iter_s=60.0), trial(None, "PENDING")])
    assert not waits
