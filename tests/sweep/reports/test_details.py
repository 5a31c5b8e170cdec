"""What sweep.status shows of a running, a stalled, a dead and a finished driver, here and on other machines."""

from __future__ import annotations

import json
import re
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmpkd.types import UserError
from sweep import driver_status
from sweep import status as command
from sweep.driver_status import SILENT_SECONDS, DriverStatus, TrialStatus, read_status, this_driver, write_status
from sweep.storage.events import Spool, SweepBegan, SweepClosed
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import hold_driver_lock, is_locked
from sweep.storage.reader import is_running, read_sweep
from tests.sweep.folders import add, locked, make

ELSEWHERE = "process 7 on another-machine"
HERE = "this process"  # its number differs between the processes that run the tests
MINUTE = 60.0


def status_of(driver: str, age: float = 0.0, **changes: Any) -> DriverStatus:
    """A driver of 12 running trials, which last reported 1 to 12 minutes before the status was written."""
    at = time.time() - age
    trials = [TrialStatus(number, "tabular", 3, 8, at - (12 - number) * MINUTE) for number in range(12)]
    status = DriverStatus(driver, began=at - 3600, time=at, phase="training", observed=at)
    return replace(status, running=12, waiting=2, trials=trials, nodes=3, cpus=24, gpus=6, **changes)


def begun(tmp_path: Path, status: DriverStatus) -> SweepFolder:
    """A sweep with a complete and an open trial, a price of 3 device-hours, and a lock file of this process."""
    spool = make(tmp_path / "breast")
    folder = spool.folder
    add(spool, 0, "complete", 0.8, 0.4)
    add(spool, 1, "open", 0.7, 0.3, arm="tabular")
    arms = [{"arm": "none", "hours_halving": 1.0}, {"arm": "tabular", "hours_halving": 2.0}]
    folder.write_plan(folder.read_plan() | {"price": {"hours_halving": 3.0, "arms": arms}})
    folder.driver_lock.write_text(this_driver() + "\n")
    write_status(folder, status)
    return folder


def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    command.main([f"storage={tmp_path}", *words])
    return capsys.readouterr().out


def state(folder: SweepFolder, held: bool) -> str:
    with locked(folder.driver_lock) if held else nullcontext():
        return read_sweep(folder).state


@pytest.mark.parametrize(
    ("driver", "age", "phase", "held", "expected"),
    [
        (HERE, 0, "training", True, "running"),
        (HERE, 0, "starting", True, "starting"),
        (HERE, 5 * MINUTE, "training", True, "stalled"),
        (HERE, 0, "training", False, "stopped"),  # killed a moment ago
        (HERE, 5 * MINUTE, "training", False, "stopped"),
        (HERE, 0, "ended", False, "stopped"),
        (ELSEWHERE, 5 * MINUTE, "training", True, "starting"),  # the lock is another driver's
        (ELSEWHERE, 0, "training", False, "running"),  # its lock cannot be seen from here
        (ELSEWHERE, 0, "ended", False, "stopped"),
        (ELSEWHERE, SILENT_SECONDS + 1, "training", False, "stopped"),
    ],
)
def test_the_state_follows_from_lock_and_heartbeat(
    driver: str, age: float, phase: str, held: bool, expected: str, tmp_path: Path
) -> None:
    driver = this_driver() if driver == HERE else driver
    folder = begun(tmp_path, replace(status_of(driver, age), phase=phase))
    assert state(folder, held) == expected


@pytest.mark.parametrize(
    ("driver", "age", "goes_on", "is_refused"),
    [
        (ELSEWHERE, 5.0, True, True),
        (ELSEWHERE, 5 * MINUTE, True, True),  # the clock of its machine is slow
        (ELSEWHERE, 5.0, False, False),
        (HERE, 5.0, True, False),
    ],
)
def test_a_second_driver_is_refused_where_locks_do_not_travel(
    driver: str, age: float, goes_on: bool, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver of another machine may also have died a moment ago. On this machine the lock decides."""
    monkeypatch.setattr(driver_status, "WATCHED_SECONDS", 0.1)
    monkeypatch.setattr(driver_status, "POLL_SECONDS", 0.01)
    driver = this_driver() if driver == HERE else driver
    folder = begun(tmp_path, status_of(driver, age))
    if goes_on:
        signs = iter([read_status(folder), *(status_of(driver, age - 1) for _ in range(100))])
        monkeypatch.setattr(driver_status, "read_status", lambda folder: next(signs))
    refusal = pytest.raises(UserError, match=r"another driver runs this sweep \(process 7 on")
    with refusal if is_refused else nullcontext(), hold_driver_lock(folder):
        assert not is_refused
    assert not is_locked(folder.driver_lock)


def test_a_copy_without_a_lock_runs_by_its_heartbeat(tmp_path: Path) -> None:
    folder = begun(tmp_path, status_of(this_driver()))
    folder.driver_lock.unlink()
    assert is_running(folder)
    write_status(folder, status_of(this_driver(), 5 * MINUTE))
    assert not is_running(folder)


def test_a_sweep_without_a_status_runs_by_its_lock(tmp_path: Path) -> None:
    """A version that wrote no status may run it, or the file is damaged."""
    folder = begun(tmp_path, status_of(this_driver()))
    folder.status.write_text("{")
    assert state(folder, True) == "running" and state(folder, False) == "stopped"


def test_a_running_sweep_in_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trouble = {"tracking": "ConnectionError: refused", "results": "trials.parquet cannot be written (full)"}
    status = status_of(ELSEWHERE, device_hours=0.75, trouble=trouble, unsent=120, results=time.time() - 10 * MINUTE)
    times = {"expected_end": time.time() + 3 * 3600 + 1, "oldest_unsent": time.time() - 3 * MINUTE}
    begun(tmp_path, replace(status, expected_by="by price and pace", **times))
    text = shown(tmp_path, capsys)
    lines = text.splitlines()
    assert any(line.startswith(f"{ELSEWHERE}: runs trials; last sign of life ") for line in lines)
    assert "  3 machines, 24 cores, 6 GPUs; trials: 12 running, 2 waiting" in lines
    assert "  0.75 device-hours spent of 3 planned" in lines
    assert re.search(r"^  expected end: 20[-: 0-9]*, in about 3 h \(by price and pace\)$", text, re.MULTILINE)
    assert "  tracking: 120 events not sent yet, the oldest from 3 min ago: ConnectionError: refused" in lines
    assert "not written at the last attempt (trials.parquet cannot be written (full)); as of 10 min ago" in text
    table = lines[[line.split() for line in lines].index(["trial", "arm", "epoch", "last", "sign"]) :][:12]
    rows = [line.split() for line in table[1:11]]
    assert rows[0] == ["0", "tabular", "3", "of", "8", "12", "min", "ago"]
    assert rows[9] == ["9", "tabular", "3", "of", "8", "3", "min", "ago"], "the oldest reports come first"
    assert table[11] == "and 4 more, with later signs"
    tables = [line for line in lines if not line.startswith("  t") and str(tmp_path) not in line]
    assert max(map(len, tables)) <= 80


def test_a_stalled_sweep_says_since_when(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begun(tmp_path, status_of(this_driver(), 12 * MINUTE))
    with locked(folder.driver_lock):
        text = shown(tmp_path, capsys)
    assert "stalled" in text and f"{this_driver()}: runs trials; last sign of life 12 min ago" in text
    assert "it is stopped or hangs" in text and "python -m sweep.stop breast" in text


def test_a_dead_sweep_says_since_when_and_how_to_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path, status_of(this_driver(), 12 * MINUTE))
    text = shown(tmp_path, capsys)
    assert f"its driver ({this_driver()}) is gone; last sign of life 12 min ago" in text
    assert "this command continues it" in text and "12 running" not in text


def test_a_loop_that_waits_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path, replace(status_of(ELSEWHERE), observed=time.time() - 4 * MINUTE))
    assert "  these numbers were noted 4 min ago; since then the driver waits" in shown(tmp_path, capsys)


def test_a_finished_sweep_shows_nothing_of_its_driver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begun(tmp_path, replace(status_of(this_driver(), 12 * MINUTE), phase="ended"))
    Spool(folder).append(SweepClosed(status="FINISHED"))
    text = shown(tmp_path, capsys)
    assert "finished" in text and "sign of life" not in text and "process" not in text


def test_json_for_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begun(tmp_path, status_of(ELSEWHERE, 5.0, trouble={"tracking": "away"}, arms={"none": 0.25}))
    Spool(folder).append(SweepBegan(id="x"))
    (sweep,) = json.loads(shown(tmp_path, capsys, "json=true"))["sweeps"]
    assert (sweep["state"], sweep["drivers"], sweep["planned_device_hours"]) == ("running", 2, 3.0)
    assert sweep["arms"]["tabular"]["planned_device_hours"] == 2.0 and sweep["budget_device_hours"] is None
    known = set(DriverStatus.__dataclass_fields__)
    ages = {"last_sign", "observation", "oldest_unsent_event", "results"}
    assert set(sweep["driver"]) == known | {f"seconds_since_{name}" for name in ages}
    assert 5 <= sweep["driver"]["seconds_since_last_sign"] < 60
    first = sweep["driver"]["trials"][0]
    assert set(first) == {"number", "arm", "epoch", "epochs", "last_sign", "seconds_since_last_sign"}
    assert 12 * MINUTE + 5 <= first["seconds_since_last_sign"] < 14 * MINUTE
    assert sweep["driver"]["seconds_since_results"] is None and sweep["driver"]["trouble"] == {"tracking": "away"}


def test_an_earlier_version_has_no_price_of_an_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begun(tmp_path, status_of(ELSEWHERE))
    price = {"hours_halving": 3.0, "arms": [{"arm": "none", "low": 0.1, "high": 0.2, "trials": 1.5}]}
    folder.write_plan(folder.read_plan() | {"price": price})
    (sweep,) = json.loads(shown(tmp_path, capsys, "json=true"))["sweeps"]
    assert sweep["planned_device_hours"] == 3.0 and sweep["arms"]["none"]["planned_device_hours"] is None
    assert "0 device-hours spent of 3 planned" in shown(tmp_path, capsys)


def test_a_sweep_without_a_status_has_none_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "breast")
    (sweep,) = json.loads(shown(tmp_path, capsys, "json=true"))["sweeps"]
    assert sweep["driver"] is None and sweep["drivers"] == 1 and sweep["planned_device_hours"] is None
