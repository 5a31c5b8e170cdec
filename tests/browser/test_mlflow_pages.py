"""What a person sees of a sweep in `mlflow ui`, through the links that the end of `sweep.run` prints."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from sweep.options import sqlite_uri
from sweep.storage.events import EpochEnded, Spool, SweepBegan, SweepClosed, SweepSummarized, TrialEnded, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.tracking.mlflow import Tracker

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, WebError

GOALS: Final = ["val/auroc", "val/pointing"]
AUROC: Final = {0: 0.62, 1: 0.71, 2: 0.55, 3: 0.68}  # of the last epoch of each trial
POINTING: Final = {0: 0.31, 1: 0.12, 2: 0.25, 3: 0.4}
STATES: Final = {0: "complete", 1: "complete", 2: "pruned", 3: "complete"}
ANSWER: Final = (
    """**val/auroc**: the best is 0.710 of [trial 1](trial:1) ([config.yaml](trial:1/config.yaml))

| trial | val/auroc |
|---|---|
| 1 | 0.71 |

"""
    + "- a line\n" * 9
)
OWN_PROBE: Final = "/users/current"  # MLflow's own page asks for a user, and its server without accounts answers 404
SECONDS: Final = 60_000  # milliseconds that the browser waits at most for anything


def write_sweep(folder: Path) -> Spool:
    """Writes a spool of four trials, as a sweep with two arms leaves it."""
    folder.mkdir(parents=True)
    spool = Spool(SweepFolder(folder))
    spool.append(SweepBegan(id="a1", words=[], goals=GOALS, user="ann"))
    for number, state in STATES.items():
        arm = ("none", "tabular")[number % 2]
        name, config = f"{number} {arm} lr=0.{number}", f'{{"epochs": 2, "seed": {number}}}'
        params = {"optimizer.lr": number / 10, "epochs": 2}
        spool.append(
            TrialStarted(number=number, arm=arm, params=params, tags={}, name=name, colour="#0072B2", config=config)
        )
        for epoch in (1, 2):
            goals = {"val/auroc": AUROC[number] - 0.1 * (2 - epoch), "val/pointing": POINTING[number]}
            spool.append(
                EpochEnded(number=number, arm=arm, epoch=epoch, seconds=1.0, metrics=goals, terms={"task": 1 / epoch})
            )
        spool.append(
            TrialEnded(number=number, state=state, error="", scores={"val/auroc_se": 0.03, "val/pointing_se": 0.05})
        )
    spool.append(SweepSummarized(4, ANSWER, {"best/val/auroc": 0.71}, {"1": {"front": "yes"}, "3": {"front": "yes"}}))
    spool.append(SweepClosed("FINISHED"))
    return spool


@pytest.fixture(scope="module")
def pages(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Links into a running `mlflow ui`, by what they show."""
    root = tmp_path_factory.mktemp("runs")
    uri = sqlite_uri(root / "mlflow.db")
    tracker = Tracker(uri, "demo", "a1", write_sweep(root / "demo"), root / "mlartifacts")
    tracker.start()
    assert tracker.close(60) == 0 and not tracker.refused
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    log = (root / "server.log").open("wb")
    # Without its seven processes for jobs, which these pages do not need, the server starts in a quarter of the time.
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=root, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, root / "server.log")
        yield tracker.pages(f"http://127.0.0.1:{port}/")
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it has nothing to save, and takes seconds to end by itself
        server.wait()
        log.close()


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser of 1440 x 800 pixels, which keeps MLflow's scripts from page to page."""
    with browser.new_context(viewport={"width": 1440, "height": 800}) as context:
        context.set_default_timeout(SECONDS)
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A new page. The test fails if it, or a page that it opens, logs an error."""
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.location["url"].endswith(OWN_PROBE):
            errors.append(message.text)

    def note_error(error: WebError) -> None:
        errors.append(str(error.error))

    context.on("console", note)
    context.on("weberror", note_error)
    yield context.new_page()
    for opened in context.pages:
        opened.close()
    context.remove_listener("console", note)
    context.remove_listener("weberror", note_error)
    assert not errors


def rows_of(page: Page) -> list[list[str]]:
    """Returns the cells of the table of runs that are seen at once: name, goals, arm, outcome and front, by row."""
    page.locator(".ag-pinned-left-cols-container").get_by_text("1 tabular lr=0.1").wait_for()
    names = page.locator(".ag-pinned-left-cols-container .ag-row a").all_inner_texts()
    columns = [f"tags.`{name}`" for name in ("val/auroc", "val/pointing", "arm", "outcome", "front")]
    cells = [page.locator(f'.ag-center-cols-container [col-id="{column}"]').all_inner_texts() for column in columns]
    right = page.locator('.ag-header-cell[col-id="tags.`front`"]').bounding_box()
    table = page.locator(".ag-center-cols-viewport").bounding_box()
    assert right and table and right["x"] + right["width"] <= table["x"] + table["width"], "front is cut off"
    return [list(row) for row in zip(names, *cells, strict=True)]


def test_the_printed_link_shows_scores_arm_and_outcome_and_leads_to_a_config(page: Page, pages: dict[str, str]) -> None:
    page.goto(pages["trials by val/auroc"])
    assert rows_of(page) == [
        ["1 tabular lr=0.1", "0.710 ± 0.030", "0.120 ± 0.050", "tabular", "complete", "yes"],
        ["3 tabular lr=0.3", "0.680 ± 0.030", "0.400 ± 0.050", "tabular", "complete", "yes"],
        ["0 none lr=0.0", "0.620 ± 0.030", "0.310 ± 0.050", "none", "complete", "-"],
        ["2 none lr=0.2", "0.550 ± 0.030", "0.250 ± 0.050", "none", "pruned", "-"],
    ]
    page.get_by_role("link", name="1 tabular lr=0.1").click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("config.yaml").first.click()
    page.get_by_text("seed: 1").wait_for()


def test_the_page_where_mlflow_opens_leads_to_the_answer_and_to_the_best_config(
    page: Page, pages: dict[str, str]
) -> None:
    """MLflow decides for a page for chat models; on the first visit it asks there for a click of its own."""
    page.goto(pages["the sweep itself"].partition("/runs/")[0])
    page.get_by_role("button", name="Got it").click()
    with page.expect_popup() as sweep:  # MLflow opens the links of a description in a new tab
        page.get_by_role("link", name="the sweep itself").click()
    description = sweep.value.get_by_test_id("note-editor-preview-content").last
    answer = description.get_by_text("val/auroc: the best is 0.710 of trial 1")
    answer.wait_for()
    shown = sweep.value.get_by_test_id("truncation-gradient").locator("..").bounding_box()
    line = answer.bounding_box()
    assert shown and line and line["y"] + line["height"] < shown["y"] + shown["height"], "it is hidden"
    assert description.get_by_role("cell", name="0.71", exact=True).count() == 1, "a table is a table"
    front = description.get_by_role("link", name="Pareto front").get_attribute("href")
    assert front and pages["Pareto front"].endswith(front)
    with sweep.value.expect_popup() as config:
        description.get_by_role("link", name="config.yaml").click()
    config.value.get_by_text("seed: 1").wait_for()
