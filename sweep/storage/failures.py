"""Classifies the failures of trials. The worker classifies each failure once, and the driver acts on the cause."""

from __future__ import annotations

import errno
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from mmpkd.machine.errors import error_chain, is_out_of_memory, with_fault
from mmpkd.types import DivergedError, UserError
from sweep.patience import is_of_store, patiently, shown_duration
from sweep.storage.layout import SweepFolder
from sweep.transfer.refusals import in_words

Cause = Literal["diverged", "goal", "memory", "storage", "error"]
FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # nothing can be written on any path
LOST_DISK: Final = (errno.EIO, errno.ESTALE, errno.ENOLCK, errno.EREMOTEIO, errno.ENODEV)
MAX_LOST_NODES: Final = 100  # a trial that loses more nodes than that fails, so that no trial runs for ever
START_SECONDS: Final = 300.0  # how long trouble of all workers is waited out before any has reported an epoch
REFUSED_PATH: Final = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)  # errors that concern a single path
# Errors of a network file system whose server or process (sshfs, s3fs) is away, and of sockets, which have no path.
LOST_SERVER: Final = (errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EKEYEXPIRED)
ERRNOS: Final = (*FULL_DISK, *LOST_DISK, *REFUSED_PATH, *LOST_SERVER)


class GoalError(UserError):
    """Raised for a goal of the search that trainings never report."""


def cause_of(error: Exception, places: Sequence[Path]) -> Cause:
    """Returns the cause of a failure, in one word.

    Args:
        places: folders that every trial needs: the sweep's folder and the cache.
    """
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, GoalError):
        return "goal"
    if any(map(is_out_of_memory, error_chain(error))):
        return "memory"
    return "storage" if disk_problem(error, places) else "error"


def message_of(error: Exception, places: Sequence[Path]) -> str:
    """Returns the message of a failure for tables and the console. It has one or a few lines."""
    if problem := disk_problem(error, places):
        return f"{problem}, in a worker"
    return (with_fault(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}").strip()


def disk_problem(error: Exception, places: Sequence[Path]) -> str:
    """Returns a text that names the unusable path and the reason, if the disk caused the error; otherwise an empty
    text.

    The disk counts as the cause if it is full, or if it is lost or refuses access for a path in one of `places`. Errors
    of sockets, or of a library's own files, do not count.
    """
    if isinstance(error, OSError) and is_of_store(error):
        return in_words(error)
    if not isinstance(error, OSError) or error.errno not in ERRNOS:
        return ""
    if not isinstance(error.filename, str):
        if error.errno in (*REFUSED_PATH, *LOST_SERVER):
            return ""
        disks = ", ".join(map(str, places))
        return (
            f"nothing more can be written ({error.strerror}); check the disks of {disks}, of temporary files and of "
            "the output"
        )
    is_inside = any(Path(error.filename).absolute().is_relative_to(place.absolute()) for place in places)
    if not is_inside and error.errno not in FULL_DISK:
        return ""
    return f"{error.filename}: cannot be read or written any more ({error.strerror})"


class Deaths:
    """Counts how often the worker of each trial died, apart from the nodes that were lost with a trial.

    Ray often knows that a node is lost only seconds after it knows that its workers are. Each count therefore looks
    again at the nodes of all earlier deaths.

    Args:
        allowed: deaths after which a trial is tried again.

    Attributes:
        node_of: function that returns the id of the node of a trial, by Ray Tune's trial id; empty if it is not known.
        lost_nodes: function that returns the ids of the nodes that were lost.
    """

    def __init__(self, allowed: int):
        self._allowed = allowed
        self._nodes: dict[int, list[str]] = defaultdict(list)  # the node of each death, by the trial's number
        self.node_of: Callable[[str], str] = lambda trial_id: ""
        self.lost_nodes: Callable[[], Collection[str]] = tuple

    def add(self, number: int, trial_id: str) -> str:
        """Counts a death, and returns why the trial is not tried again. The text is empty if it is."""
        self._nodes[number].append(self.node_of(trial_id))
        lost = set(self.lost_nodes())
        num_lost = sum(node in lost for node in self._nodes[number])
        deaths = len(self._nodes[number]) - num_lost
        if deaths > self._allowed:
            with_nodes = f", and {num_lost} times its node was lost" if num_lost else ""
            return f"its worker process died {deaths} times (out of memory?){with_nodes}"
        return f"its node was lost {num_lost} times" if num_lost > MAX_LOST_NODES else ""


class StorageTrouble:
    """The nodes whose workers have trouble with a disk. Their trials are handed out again. The sweep goes on as long
    as some worker reports epochs.

    Args:
        patience: seconds for which the sweep goes on while no worker reports an epoch.
    """

    def __init__(self, patience: float):
        self._patience = patience
        self._has_reported = False  # whether a worker has reported an epoch to this driver
        self._since: float | None = None  # time of the first trouble after the last report
        self._nodes: dict[str, float] = {}  # nodes with trouble, and when it began

    def add(self, node: str, message: str, last_signs: Iterable[float] = (), num_waiting: int = 0) -> list[str]:
        """Notes that a worker handed its trial back. Returns lines for the user.

        Args:
            last_signs: when each of the other open trials was handed out or has last reported, in seconds since 1970.
            num_waiting: the number of open trials that have no worker yet.

        Raises:
            UserError: no worker has reported an epoch for too long. Before the first report, too long is START_SECONDS,
                because then the folder is probably not shared by the nodes, unless another worker still trains its
                first epoch.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        others_train = sum(time.time() - sign >= START_SECONDS for sign in last_signs) > num_waiting
        is_shared = self._has_reported or others_train
        if now - self._since >= (self._patience if is_shared else min(self._patience, START_SECONDS)):
            raise UserError(message)
        if node in self._nodes:
            return []
        self._nodes[node] = now
        return [f"{message} on {node}; its trials are continued elsewhere, or there once it can be used again"]

    def note_report(self, node: str) -> list[str]:
        """Notes that a worker reported an epoch. Returns lines for the user."""
        self._has_reported, self._since = True, None
        if (begun := self._nodes.pop(node, None)) is None:
            return []
        return [f"{node} trains again, after {shown_duration(time.monotonic() - begun)}"]


def failure_of(folder: SweepFolder, number: int, result: Mapping[str, Any]) -> tuple[str, str]:
    """Returns cause and message of a trial's failure. Both texts are empty if the worker process died without reporting
    them.
    """
    if "error" in result:
        return result["cause"], result["error"]
    error_file = folder.shared_error(number)
    try:
        content = patiently(lambda: error_file.read_bytes() if error_file.exists() else b"", Path(str(error_file)))
    except FileNotFoundError:
        return "", ""
    cause, _, message = content.decode(errors="replace").partition("\n\n")[0].partition(": ")
    return cause, message
