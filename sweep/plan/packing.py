"""Judges how well trials train side by side on one device, from measured steps a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

NO_CORES: Final = "there are no cores for more"
TOO_SHORT: Final = "the sweep is so short that measuring more would take longer than it could save"
MIN_GAIN: Final = 1.1  # factor in throughput; a smaller gain is not worth the memory of twice the trials per device


@dataclass(frozen=True)
class Packing:
    """The throughput of a device for several numbers of trials that train on it at the same time.

    Attributes:
        rates: for each number of trials, in ascending order, the steps of the optimiser per second, summed over these
            trials. It is 0 if the trials could not be timed, or did not fit into the memory of the device.
        ending: why no larger number was measured although it might be better; "" if it is known not to be.
    """

    rates: Sequence[tuple[int, float]]
    ending: str = ""

    @property
    def best(self) -> int:
        """The best number of trials per device. A number is better than the one before it if its throughput is at least
        MIN_GAIN times as high.
        """
        best = self.rates[0][0]
        for (_, rate), (more, higher_rate) in pairwise(self.rates):
            if not higher_rate >= MIN_GAIN * rate > 0:
                break
            best = more
        return best

    def line(self) -> str:
        """Returns the number of trials per device and the measured figures, as one line for a console."""
        figures = ", ".join(f"{number}: {self._figure(rate)}" for number, rate in self.rates)
        trials = "1 trial" if self.best == 1 else f"{self.best} trials"
        ending = f"; {self.ending}" if self.ending else ""
        return f"{trials} to a device, measured: {figures} of one trial's steps a second{ending}"

    def warnings(self) -> list[str]:
        """Returns a warning if a second trial on a device gains too little."""
        if self.best > 1 or len(self.rates) < 2 or not self.rates[0][1]:
            return []
        number, rate = self.rates[1]
        if not rate:
            problem = f"{number} trials at a time do not fit on a device, or could not be timed there"
            return [f"{problem}, so each trial has a device to itself"]
        return [
            f"trials share a device badly: {number} at a time make {self._figure(rate)} of one trial's steps a second, "
            "so each trial has a device to itself"
        ]

    def _figure(self, rate: float) -> str:
        return f"{rate / self.rates[0][1]:.0%}".replace("%", " %") if rate else "not possible"
