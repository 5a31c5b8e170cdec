"""Measures how long MLflow's page of runs takes with 300 trials of 30 epochs, compared with 3 trials.

    python -m benchmarks.mlflow_page

Both sweeps are written by hand into one database and shown by one server, through the links that `sweep.run` prints.
The page counts as shown when the best trial stands in the table. The two pages are opened in turn, `REPEATS` times
each, each time in a new browser context without a cache, after one round that is not counted. Chromium must be
installed.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, sync_playwright

from sweep.options import sqlite_uri
from sweep.storage.events import EpochEnded, Spool, SweepBegan, TrialEnded, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.tracking.mlflow import Tracker

SIZES: Final = (3, 300)
EPOCHS: Final = 30
REPEATS: Final = 5
GOALS: Final = ["val/auroc", "val/pointing"]


def logged(root: Path, uri: str, num_trials: int) -> Tracker:
    """Writes a sweep, sends it to MLflow, and returns its tracker."""
    folder = root / f"sweep{num_trials}"
    folder.mkdir()
    spool = Spool(SweepFolder(folder))
    spool.append(SweepBegan(id=folder.name, goals=GOALS))
    for number in range(num_trials):
        arm = ("none", "tabular")[number % 2]
        params = {f"objectives.logits.setting{index}": number / (index + 1) for index in range(8)}
        name = f"{number} {arm} T=5.6 w={number}"
        spool.append(TrialStarted(number=number, arm=arm, params=params, tags={}, name=name, config="{}"))
        for epoch in range(1, EPOCHS + 1):
            goals = {"val/auroc": 0.5 + number / 1000 + epoch / 10000, "val/pointing": 0.3}
            terms = {"task": 1 / epoch, "logits": 2 / epoch, "attention": 3 / epoch}
            spool.append(EpochEnded(number=number, arm=arm, epoch=epoch, seconds=1.0, metrics=goals, terms=terms))
        spool.append(TrialEnded(number=number, state="complete", error="", scores={"val/auroc_se": 0.02}))
    tracker = Tracker(uri, folder.name, folder.name, spool, root / "mlartifacts")
    tracker.start()
    assert tracker.close(1800) == 0
    return tracker


def seconds_until_shown(browser: Browser, link: str, best: str) -> float:
    with browser.new_context(viewport={"width": 1440, "height": 800}) as context:
        page = context.new_page()
        begin = time.perf_counter()
        page.goto(link)
        page.get_by_role("link", name=best).wait_for(timeout=120_000)
        return time.perf_counter() - begin


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder)
        uri = sqlite_uri(root / "mlflow.db")
        trackers = {size: logged(root, uri, size) for size in SIZES}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = f"http://127.0.0.1:{port}/"
        command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
        command += ["--port", str(port), "--workers", "1"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            wait_for(f"{address}health")
            seconds: dict[int, list[float]] = {size: [] for size in SIZES}
            for _ in range(REPEATS + 1):
                for size, tracker in trackers.items():
                    best = f"{size - 1} {('none', 'tabular')[(size - 1) % 2]} "
                    link = tracker.pages(address)["trials by val/auroc"]
                    seconds[size].append(seconds_until_shown(browser, link, best))
        finally:
            browser.close()
            server.terminate()
            server.wait(20)
    medians = {size: statistics.median(values[1:]) for size, values in seconds.items()}
    for size, values in seconds.items():
        shown = ", ".join(f"{value:.2f}" for value in values[1:])
        print(f"{size} trials of {EPOCHS} epochs: median {medians[size]:.2f} s ({shown})")
    print(f"ratio {medians[SIZES[1]] / medians[SIZES[0]]:.2f}")


def wait_for(address: str) -> None:
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)


if __name__ == "__main__":
    main()
