"""When a sweep waits for the first machine of a cluster, and what it requests meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sweep import interrupt
from sweep.space.search_config import SearchConfig
from sweep.workers import first_machine
from sweep.workers.first_machine import has_room, wait_for_first_machine

NO_REQUEST = Path("no-request")
HEAD: Mapping[str, float] = {"node:__internal_head__": 1.0}


class Growing:
    """A cluster that begins with its head alone, and has one more machine after it was looked at three times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, machine: Mapping[str, float], gpus_come: bool):
        self.requests: list[list[dict[str, float]]] = []
        self.removed = 0
        self._looks, self._machine = 0, machine
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        monkeypatch.setattr("sweep.cluster.expects_gpus", lambda: gpus_come)
        for name, stand_in in {
            "expects_gpus": lambda: gpus_come,
            "living_machines": self._look,
            "placement_group": self.requests.append,
            "remove_placement_group": self._remove,
            "POLL_SECONDS": 0.0,
        }.items():
            monkeypatch.setattr(first_machine, name, stand_in)

    def _look(self) -> list[Mapping[str, float]]:
        self._looks += 1
        return [HEAD, self._machine] if self._looks > 3 else [HEAD]

    def _remove(self, request: Any) -> None:
        self.removed += 1


def test_a_machine_is_awaited_if_trials_per_gpu_are_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, notes = Growing(monkeypatch, {"CPU": 8.0, "GPU": 1.0}, gpus_come=True), list[str]()
    wait_for_first_machine(SearchConfig(), 2, NO_REQUEST, notes.append)
    assert cluster.requests == [[{"CPU": 2.0, "GPU": 1.0}]] and cluster.removed == 1
    assert notes == ["waits for the first machine of the cluster: a trial wants 2 cores and a GPU"]


def test_a_machine_is_awaited_if_trials_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, notes = Growing(monkeypatch, {"CPU": 8.0}, gpus_come=False), list[str]()
    wait_for_first_machine(SearchConfig(trials_per_device=4), 1, NO_REQUEST, notes.append)
    assert cluster.requests == [[{"CPU": 1.0}]] and len(notes) == 1


@pytest.mark.parametrize("search", [{"gpus": 0.25}, {"trials_per_device": 4}, {"gpus": 0}])
def test_no_machine_is_awaited_if_the_space_says_what_a_trial_reserves(
    search: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Growing(monkeypatch, {"CPU": 8.0, "GPU": 1.0}, gpus_come=True)
    wait_for_first_machine(SearchConfig(**search), 1, NO_REQUEST, pytest.fail)
    assert not cluster.requests


@pytest.mark.parametrize("name", ["", "another driver has taken over"])
def test_a_driver_that_waits_can_be_asked_to_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By sweep.stop, or by a thread that has lost the lease of the sweep."""
    cluster = Growing(monkeypatch, {"CPU": 8.0, "GPU": 1.0}, gpus_come=True)
    monkeypatch.setattr(interrupt, "_request", interrupt._Request(name))
    if not name:
        (tmp_path / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        wait_for_first_machine(SearchConfig(), 2, tmp_path / "stop", lambda line: None)
    assert cluster.removed == 1 and interrupt.requested() == (name or "sweep.stop")


def test_room_is_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_machine, "living_machines", lambda: [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}])
    assert has_room(first_machine.Reservation(4.0, 0.0)) and has_room(first_machine.Reservation(1.0, 0.5))
    assert not has_room(first_machine.Reservation(2.0, 0.5)), "the cores are on another machine than the GPU"
