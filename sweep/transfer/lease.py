"""The lease of a sweep in an object store: a small object that keeps two drivers on two machines apart.

An object store has no locks. The driver that holds the lease writes its name and a growing number of beats into the
object. Another driver takes the lease if it was given back, or if no beat comes for LEASE_SECONDS. It measures this
time with its own clock, so that the clocks of the machines need not agree.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Final

from mmpkd.types import UserError
from sweep.driver_status import this_driver
from sweep.storage.layout import SweepFolder
from sweep.transfer.addresses import Place
from sweep.transfer.refusals import in_words

BEAT_SECONDS: Final = 10.0  # time between two beats
LEASE_SECONDS: Final = 60.0  # a driver without a beat for so long is taken for dead
POLL_SECONDS: Final = 2.0
SETTLE_SECONDS: Final = 1.0  # time in which another driver's write, begun at the same moment, has arrived


class LostLeaseError(UserError):
    """Another driver has taken the lease."""


@dataclass(frozen=True)
class Holder:
    """What the object says.

    Attributes:
        token: distinguishes the holder from all other drivers.
        driver: the holder's process and machine, for people.
        beats: the number of beats so far.
        has_ended: whether the holder has given the lease back.
    """

    token: str
    driver: str
    beats: int = 0
    has_ended: bool = False


@contextmanager
def hold_lease(folder: SweepFolder, show: Callable[[str], None]) -> Iterator[None]:
    """Keeps drivers away from a sweep at an address, for a command that changes a little there. Does nothing for a
    sweep in a folder.

    Args:
        show: prints a line.

    Raises:
        UserError: a driver lives, or the store does not answer or refuses.
    """
    if not folder.address:
        yield
        return
    lease = Lease(folder.address.child(folder.driver_lock.name), this_driver())
    try:
        last = lease.take((), show)
    except OSError as error:
        raise UserError(in_words(error)) from error
    try:
        yield
    finally:
        with suppress(OSError):
            lease.give_back(last)


class Lease:
    """The lease of one sweep, as one driver sees it.

    Args:
        file: the object.
        driver: the process and machine of this driver.

    Attributes:
        token: distinguishes this driver from all others.
    """

    def __init__(self, file: Place, driver: str):
        self._file = file
        self._holder = Holder(uuid.uuid4().hex, driver)

    @property
    def token(self) -> str:
        return self._holder.token

    def take(self, dead: Collection[str], show: Callable[[str], None]) -> str:
        """Takes the lease. Waits up to LEASE_SECONDS while another driver holds it and gives no beat.

        Args:
            dead: tokens of drivers that are known to have died; their leases are taken at once.
            show: prints a line.

        Returns:
            The token of the last holder. It is empty if there was none.

        Raises:
            UserError: another driver lives.
            OSError: the store does not answer, or refuses.
        """
        last = self._read()
        if last is not None and not last.has_ended and last.token not in dead:
            self._await_death(last, show)
        self._write()
        time.sleep(SETTLE_SECONDS)
        self.check()
        return last.token if last else ""

    def renew(self) -> None:
        """Gives a beat.

        Raises:
            LostLeaseError: another driver has taken the lease, because it missed the beats of this one.
            OSError: the store does not answer, or refuses.
        """
        self.check()
        self._holder = replace(self._holder, beats=self._holder.beats + 1)
        self._write()

    def check(self) -> None:
        """Checks that this driver still holds the lease; raises like `renew`."""
        self._refuse_other(self._read())

    def give_back(self, token: str = "") -> None:
        """Lets another driver take the lease at once; raises like `renew`.

        Args:
            token: token of the last holder, if this process has copied nothing. The copies are still those of the last
                holder.
        """
        self.check()
        self._holder = replace(self._holder, token=token or self.token, has_ended=True)
        self._write()

    def _await_death(self, last: Holder, show: Callable[[str], None]) -> None:
        show(f"waits up to {LEASE_SECONDS:.0f} s for a sign of life of the last driver ({last.driver})")
        begun = time.monotonic()
        while time.monotonic() - begun < LEASE_SECONDS:
            time.sleep(POLL_SECONDS)
            holder = self._read()
            if holder is None or holder.has_ended:
                return
            if holder != last:
                self._refuse_other(holder)

    def _refuse_other(self, holder: Holder | None) -> None:
        if holder is not None and holder.token != self.token:
            raise LostLeaseError(
                f"{self._file}: another driver runs this sweep ({holder.driver})\n"
                "  wait for it, stop it with python -m sweep.stop, or start another sweep with name=..."
            )

    def _read(self) -> Holder | None:
        try:
            content = json.loads(self._file.read_bytes())
            return Holder(**content)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return None  # nobody but a driver writes this object; whatever else lies there holds nothing

    def _write(self) -> None:
        self._file.write_bytes(json.dumps(asdict(self._holder)).encode())
