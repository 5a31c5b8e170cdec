"""The lease that keeps two drivers of a sweep in an object store apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmpkd.types import UserError
from sweep.storage.layout import SweepFolder
from sweep.transfer import lease
from sweep.transfer.addresses import Place
from sweep.transfer.lease import Lease, LostLeaseError, hold_lease
from tests.patched import patch_within


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Place:
    """The object of the lease, in a store of this process, and short waits."""
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.2)
    Place("memory", "leases").delete()
    return Place("memory", "leases/demo/driver.lock")


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def beating(file: Place, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Lease]:
    """A lease whose holder beats, though perhaps late on a busy machine."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 60.0)
    first, ending = Lease(file, "process 1 on head"), threading.Event()
    first.take((), lines.append)

    def beat() -> None:
        while not ending.wait(0.02):
            first.renew()

    thread = threading.Thread(target=beat)
    thread.start()
    yield first
    ending.set()
    thread.join()


def test_a_second_driver_is_refused_while_the_first_beats(beating: Lease, file: Place, lines: list[str]) -> None:
    with pytest.raises(UserError, match=r"another driver runs this sweep \(process 1 on head\)"):
        Lease(file, "process 2 on other").take((), lines.append)
    assert lines == ["waits up to 60 s for a sign of life of the last driver (process 1 on head)"]
    beating.check()


def test_a_silent_lease_is_taken_and_its_holder_notices(file: Place, lines: list[str]) -> None:
    first, second = Lease(file, "process 1 on head"), Lease(file, "process 2 on other")
    first.take((), lines.append)
    begun = time.monotonic()
    assert second.take((), lines.append) == first.token
    assert time.monotonic() - begun >= 0.2
    with pytest.raises(LostLeaseError, match="process 2 on other"):
        first.renew()
    with pytest.raises(LostLeaseError):
        first.give_back()
    second.renew()


def test_a_lease_that_was_given_back_is_taken_at_once(file: Place, lines: list[str]) -> None:
    first = Lease(file, "process 1 on head")
    first.take((), lines.append)
    first.give_back()
    assert Lease(file, "process 2 on other").take((), lines.append) == first.token and not lines


def test_the_lease_of_a_driver_that_is_known_to_be_dead_is_taken_at_once(file: Place, lines: list[str]) -> None:
    first = Lease(file, "process 1 on head")
    first.take((), lines.append)
    assert Lease(file, "process 2 on head").take([first.token], lines.append) == first.token and not lines


def test_of_two_drivers_that_begin_together_one_goes_on(
    file: Place, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Lease(file, "process 1 on head"), Lease(file, "process 2 on other")

    def settle(seconds: float) -> None:
        patch_within(monkeypatch, lease, time, sleep=lambda seconds: None)
        second._write()  # it saw no lease either

    patch_within(monkeypatch, lease, time, sleep=settle)
    with pytest.raises(LostLeaseError, match="process 2 on other"):
        first.take((), lines.append)
    second.check()


def test_a_command_that_held_the_lease_leaves_it_in_the_name_of_the_last_driver(file: Place, lines: list[str]) -> None:
    first = Lease(file, "process 1 on head")
    first.take((), lines.append)
    first.give_back()
    folder = SweepFolder(Path("unused/demo"), Place("memory", "leases/demo"))
    with hold_lease(folder, lines.append), pytest.raises(LostLeaseError):
        first.check()
    assert Lease(file, "process 3 on head").take((), lines.append) == first.token


def test_what_is_no_lease_holds_nothing(file: Place, lines: list[str]) -> None:
    for content in (b"", b"{", b"[]", b'{"token": "x"}'):
        file.write_bytes(content)
        assert Lease(file, "process 2 on other").take((), lines.append) == "" and not lines
