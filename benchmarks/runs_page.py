"""Time until MLflow's page of runs shows a sweep, with few trials and with many.

    python benchmarks/runs_page.py [--trials 3 300] [--epochs 30] [--repeats 5]

Sweeps of both sizes are made as in `benchmarks/tracking_size.py`, each in an SQLite file of its own, and an MLflow
server on loopback shows each. A Chromium without a window opens the page of complete trials, sorted by AUROC, with a
new profile, in turn for both sizes. The time is from the start of the request until the table shows the name of a
trial.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.tracking_size import measure
from sweep.options import sqlite_uri

FILTER: Final = quote("tags.outcome = 'complete'", safe="")
QUERY: Final = (
    f"workflowType=machine_learning&searchFilter={FILTER}&orderByKey=metrics.%60val%2Fauroc%60&orderByAsc=false"
)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def served(database: Path) -> Iterator[str]:
    """Serves MLflow's pages of an SQLite file, and yields their address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = [
        "server",
        "--host=127.0.0.1",
        f"--port={port}",
        "--workers=1",
        f"--backend-store-uri={sqlite_uri(database)}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def seconds_to_show(browser: Any, address: str, experiment: str) -> float:
    context = browser.new_context(viewport={"width": 1600, "height": 900})
    page = context.new_page()
    begin = time.perf_counter()
    page.goto(f"{address}/#/experiments/{experiment}/runs?{QUERY}")
    page.get_by_text(re.compile(r"^\d+ (none|tabular) ")).first.wait_for(timeout=60_000)
    seconds = time.perf_counter() - begin
    context.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs=2, default=[3, 300])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    from mlflow import MlflowClient
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        pages: dict[int, tuple[str, str]] = {}
        for trials in options.trials:
            place = Path(temporary) / str(trials)
            measure(trials, options.epochs, False, place)
            experiment = MlflowClient(sqlite_uri(place / "mlflow.db")).get_experiment_by_name("sweep")
            assert experiment is not None
            pages[trials] = stack.enter_context(served(place / "mlflow.db")), experiment.experiment_id
        chromium = stack.enter_context(sync_playwright()).chromium
        browser = chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        seconds: dict[int, list[float]] = {trials: [] for trials in pages}
        for repeat in range(options.repeats + 1):
            for trials, page in pages.items():
                shown = seconds_to_show(browser, *page)
                if repeat:  # the first time warms the server
                    seconds[trials].append(shown)
        browser.close()
    medians = {trials: statistics.median(values) for trials, values in seconds.items()}
    for trials, values in seconds.items():
        print(f"{trials} trials: median {medians[trials]:.2f} s of {', '.join(f'{value:.2f}' for value in values)}")
    few, many = options.trials
    print(f"{many} / {few} trials: {medians[many] / medians[few]:.2f}")


if __name__ == "__main__":
    main()
