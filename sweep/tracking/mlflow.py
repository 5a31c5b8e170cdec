"""Sends the events of a sweep to MLflow.

Only the driver writes to MLflow. A thread reads the spool (the file of events) and sends new events, so that a slow or
unreachable server neither delays the sweep nor loses an event. A file beside the spool notes how many bytes of the
spool the server has received; the next driver continues from there. Sending an event twice does no harm; see
`mlflow_runs.py`.

Files follow the records, and how far they have come is noted as a number of its own. They may go to another place than
the records, and where that place is away, the records still arrive.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.files import write_atomically
from mmpkd.types import UserError
from sweep.options import redact_passwords
from sweep.patience import patiently
from sweep.storage.events import EpochEnded, Event, Spool, TrialEnded, TrialEvent
from sweep.tracking.mlflow_runs import MAX_METRICS, MlflowRuns
from sweep.tracking.sender import EventSender, has_files
from sweep.transfer.mirror import Mirror

if TYPE_CHECKING:
    from mlflow.entities import Metric

MAX_EVENTS: Final = 200  # number of events sent before the offset is written again
COUNTED_BYTES: Final = 2**20  # of unsent events, of which every line is counted
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two attempts


class Tracker:
    """Sends the events of the spool to an MLflow server, in a thread of its own.

    Args:
        uri: address of the tracking server, or of an SQLite file.
        name: name of the sweep, which is also the name of its experiment.
        sweep_id: identity that distinguishes this sweep from others of the same name on the same server.
        spool: the sweep's spool, from which events are read.
        artifacts: folder for files, used if the server has no artifact store of its own.
        mirror: copies the spool to an object store, if the sweep lies there. Only copied events are sent. An event that
            the next driver may not know would otherwise stay on the server, where another trial gets its number.

    Attributes:
        trouble: message of the last error; empty while there is no problem.
        runs: the MLflow runs of the sweep on the server.
    """

    def __init__(self, uri: str, name: str, sweep_id: str, spool: Spool, artifacts: Path, mirror: Mirror | None = None):
        self._uri, self._spool, self._mirror = uri, spool, mirror
        self._offset_file = spool.folder.spool_sent
        self._sent, self._files_sent = self._read_offsets()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self.trouble = ""
        self.runs = MlflowRuns(uri, name, sweep_id, artifacts)
        self._sender = EventSender(self.runs, spool.folder)

    @property
    def refused(self) -> list[str]:
        """Messages about records that the server will never accept."""
        return self.runs.refused

    def _read_offsets(self) -> tuple[int, int]:
        """Returns the numbers of bytes of the spool whose records, and whose files, this server has received. They are
        0 if the noted numbers belong to another server. Earlier versions noted one number for both.
        """
        try:
            offset, server, *of_files = self._offset_file.read_text().split()
            sent, files_sent = int(offset), int((of_files or [offset])[0])
            with self._spool.path.open("rb") as file:
                for position in filter(None, (sent, files_sent)):
                    file.seek(max(position - 1, 0))
                    if file.read(1) != b"\n":
                        return 0, 0
        except (OSError, ValueError):
            return 0, 0
        return (sent, files_sent) if server == fingerprint([self._uri, sent]) else (0, 0)

    def pages(self, server: str) -> dict[str, str]:
        """Returns the links to the server's pages of the sweep. There are none if the server was never reached."""
        return self._sender.pages(server)

    def start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def close(self, seconds: float) -> int:
        """Sends the unsent events of the spool, within the given number of seconds, and ends the thread.

        Returns:
            The number of events that the server has not received.
        """
        if self._mirror:
            self._mirror.copy_now()
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return patiently(self._num_unsent, self._spool.path)

    def _num_unsent(self) -> int:
        events = self._spool.read(min(self._sent, self._files_sent))
        return sum(end > self._sent or (end > self._files_sent and has_files(event)) for end, event in events)

    def lag(self) -> tuple[int, float | None]:
        """Returns the number of events that the server has not received, and when the oldest of them happened. The
        time is None if there is none.

        Of more than `COUNTED_BYTES` of unsent events, the first are counted, and the number of all is estimated from
        their mean size.
        """
        sent = self._sent
        oldest = next((event.time for _, event in self._spool.read(sent)), None)
        with self._spool.path.open("rb") as file:
            unsent = os.fstat(file.fileno()).st_size - sent
            file.seek(sent)
            first = file.read(COUNTED_BYTES)
        return round(first.count(b"\n") * max(unsent / max(len(first), 1), 1)), oldest

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            ending = self._ending.is_set()  # read before sending, so that all events before the request are sent
            try:
                caught_up = self._send()
                self.trouble, pause = "", FIRST_PAUSE
            except Exception as error:
                self.trouble = redact_passwords(_in_words(error))
                caught_up, pause = False, min(pause * 2, LONGEST_PAUSE)
            if ending and caught_up:
                return
            if ending and self.trouble:
                time.sleep(1)
            elif caught_up or self.trouble:
                self._ending.wait(pause)

    def _send(self) -> bool:
        """Sends the next part of the spool, and returns whether every event is now sent."""
        self._open()
        points: dict[int, list[Metric]] = {}  # metrics by trial; the metrics of one trial are sent together
        offset = self._sent
        limit = self._mirror.sendable if self._mirror else math.inf
        for count, (end, event) in enumerate(self._spool.read(self._sent), start=1):
            if end > limit:
                break
            offset = end
            if isinstance(event, EpochEnded):
                points.setdefault(event.number, []).extend(self._sender.points(event))
                if len(points[event.number]) > MAX_METRICS // 2:
                    break
                continue
            if isinstance(event, TrialEvent) and event.number in points:
                self.runs.log_metrics(self.runs.run(event.number), points.pop(event.number))
            self._sender.send(event)
            if count >= MAX_EVENTS:
                break
        for number, metrics in points.items():
            self.runs.log_metrics(self.runs.run(number), metrics)
        if offset == self._sent:
            return self._send_files()
        self._note_sent(offset, self._files_sent)
        return False

    def _send_files(self) -> bool:
        """Sends the next files of events whose records are sent, and returns whether all of them are now sent."""
        for end, event in self._spool.read(self._files_sent):
            if end > self._sent:
                return True
            if has_files(event):
                self._sender.send_files(event)
                self._note_sent(self._sent, end)
                return False  # records come first
            self._files_sent = end
        return True

    def _note_sent(self, offset: int, of_files: int) -> None:
        self._sent, self._files_sent = offset, of_files
        write_atomically(self._offset_file, f"{offset} {fingerprint([self._uri, offset])} {of_files}\n")

    def _open(self) -> None:
        if self.runs.is_open:
            return
        began = next((int(event.time * 1000) for _, event in self._spool.read()), None)
        self.runs.open(began)  # a server that gets the spool later shows when the sweep began, too
        sent_events = list(self._sent_events())
        if any(isinstance(event, TrialEnded) and event.number not in self.runs.ended for event in sent_events):
            # Another server, or an older copy of its file, has this address now.
            self._sent = self._files_sent = 0
            self._sender = EventSender(self.runs, self._spool.folder)

    def _sent_events(self) -> Iterator[Event]:
        """Yields the events that earlier drivers have sent, and notes what later events depend on."""
        for end, event in self._spool.read():
            if end > self._sent:
                return
            self._sender.note(event)
            yield event


def _in_words(error: Exception) -> str:
    """Returns why the last attempt failed, in one line."""
    first_line = str(error).partition("\n")[0]
    if isinstance(error, UserError):
        return first_line
    if "Max retries exceeded" in first_line:  # the cause stands at the end of a long chain of exceptions
        reason = re.search(r"\[Errno -?\d+\] ([\w ]+)", first_line)
        return f"the server does not answer: {reason[1] if reason else 'no connection'}"
    return f"{type(error).__name__}: {first_line}"
