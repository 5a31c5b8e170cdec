"""A training that advances one epoch at a time.

`mmpkd.train.train` is a loop with a callback, but Ray Tune asks for one epoch per call. The loop therefore runs in its
own thread, which waits inside the callback until Tune asks for the next epoch. If a trial is stopped, the callback
raises an exception that ends the thread, and the process serves the next trial.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from mmpkd.types import EpochReport


class TrainingThread:
    """A training in a thread that advances one epoch at a time.

    Args:
        run: function that trains. Its argument is a callback, which it must call with the report of every epoch.
    """

    def __init__(self, run: Callable[[Callable[[EpochReport], None]], None]):
        self._run = run
        self._results: queue.SimpleQueue[EpochReport | BaseException | None] = queue.SimpleQueue()
        self._go = threading.Semaphore(0)
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)

    @property
    def has_begun(self) -> bool:
        """Whether the training has been started."""
        return self._thread.ident is not None

    def advance(self) -> EpochReport:
        """Trains one epoch and returns its report.

        Raises:
            RuntimeError: the training ended although another epoch was expected.
            Exception: the training itself raised this exception, which is passed on.
        """
        if not self.has_begun:
            self._thread.start()
        else:
            self._go.release()
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        if result is None:
            raise RuntimeError("training ended before its last epoch")
        return result

    def finish(self) -> None:
        """Lets a training that has reported its last epoch run to its end, and waits for the end. If an earlier attempt
        has reported it, this one may still have to export the student.
        """
        if not self.has_begun:
            self._thread.start()
        else:
            self._go.release()
        result = self._results.get()
        self._thread.join()
        if isinstance(result, BaseException):
            raise result

    def stop(self) -> None:
        """Ends a training that waits between two epochs, by an exception in its thread. Does nothing if the training
        has ended.
        """
        if self.has_begun:
            self._stopped = True
            self._go.release()
            self._thread.join()

    def _work(self) -> None:
        try:
            self._run(self._report)
            self._results.put(None)
        except _Stopped:
            pass
        except BaseException as error:
            self._results.put(error)

    def _report(self, report: EpochReport) -> None:
        self._results.put(report)
        self._go.acquire()
        if self._stopped:
            raise _Stopped


class _Stopped(BaseException):
    """Raised in the thread of a training to end it. Not a subclass of Exception, so that no handler in the training
    catches it.
    """
