"""The display names a machine that the cluster loses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from sweep.cluster import Reservation
from sweep.workers.tune import Heartbeat


def node(name: str, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": alive}


def test_a_lost_machine_is_named_once_and_a_new_one_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    search: Any = SimpleNamespace(warnings=[], deaths=SimpleNamespace())
    heartbeat = Heartbeat(search, Reservation(1, 0), tmp_path / "stop")
    for nodes in (
        [node("1"), node("2"), node("3", alive=False)],  # the third was lost before this driver began
        [node("1"), node("2", alive=False), node("4")],
        [node("1"), node("2", alive=False), node("4")],
        [node("1"), node("4")],
    ):
        monkeypatch.setattr(ray, "nodes", lambda nodes=nodes: nodes)
        heartbeat._warn_of_lost_machines()
    assert search.warnings == ["lost machine 10.0.0.2; its trials are continued on others"]
