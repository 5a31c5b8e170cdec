"""Writes the results of a running sweep, and summarises them for the tracking server, in a process of its own.

The driver starts `python -m sweep.interim` at intervals: a model of thousands of trials and a page of as many curves
take many seconds, in which the driver could do nothing else. The process gets a copy of the driver's records
(`Snapshot`) on its standard input. Only the driver writes the spool, so the summary is handed back to it.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from dataclasses import asdict

from sweep.reports.results import write_results
from sweep.summary import summarize


def main(driver: int) -> None:
    """Writes the results of the snapshot on standard input, and prints a line of JSON with the summary of the sweep and
    the seconds of processor time that all this took. If it fails, prints the reason in a line on standard error and
    ends with status 1.

    Args:
        driver: process id of the driver, which has started this process.
    """

    def stop_without_driver() -> None:
        if os.getppid() != driver:  # the next driver may write newer results
            sys.exit("the driver has ended")

    os.nice(10)
    try:
        snapshot = pickle.load(sys.stdin.buffer)
        results = write_results(snapshot, running=True, check=stop_without_driver)
        summary = summarize(snapshot, results.shown)
    except OSError as error:
        sys.exit(f"{error.filename2 or error.filename or 'a file'} cannot be written ({error.strerror})")
    except Exception as error:  # its text may quote a table, and everybody who sees the folder reads the reason
        sys.exit(f"{type(error).__name__}, a bug in this program")
    print(json.dumps({"summary": asdict(summary), "seconds": time.process_time()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
