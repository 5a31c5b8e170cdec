"""The report in a real browser: on a wide screen, on a phone and on paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from sweep.reports.arms import ArmTotals
from sweep.reports.page.page import Ended, write_report
from sweep.storage.layout import SweepFolder
from tests.sweep.reports.test_html import GOALS, record

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ARMS = ("none", *(f"an_arm_with_a_long_name_{number}" for number in range(5)))
BROKEN = """[...document.querySelectorAll('td[data-name="arm"]')].filter(cell => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    return range.getClientRects().length !== 1;
}).length"""  # names of arms on more than one line
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sweep with six arms of ten trials, each with ten parameters, and with wide rows of pictures."""
    folder = SweepFolder(tmp_path_factory.mktemp("browser") / "a_sweep_with_a_name_that_is_longer_than_a_phone_is_wide")
    folder.path.mkdir()
    records = []
    for number in range(60):
        arm = ARMS[number % len(ARMS)]
        state = "pruned" if number % 7 == 5 else "complete"
        trial = record(number, 0.5 + 0.007 * (number * 37 % 60), 0.2 + 0.01 * (number * 11 % 60), arm, state)
        values = {f"{arm}/objectives.logits.params.value_{place}": 10.0 ** -(number * place % 7) for place in range(10)}
        metrics = {**trial.metrics, "val/pointing_prior": 0.9}
        records.append(replace(trial, sampled=values, metrics=metrics))
    epochs = [
        {
            "number": trial.number,
            "arm": trial.arm,
            "epoch": epoch,
            **{goal: trial.metrics[goal] - 0.01 * (9 - epoch) for goal in GOALS},
        }
        for trial in records
        for epoch in range(10)
    ]
    pd.DataFrame(epochs).to_parquet(folder.epochs)
    cells = f'<td><img alt="" src="{PIXEL}"></td>' * 9
    pictures = f'<div class="pictures"><table class="plain"><tr>{cells}</tr></table></div>'
    ended = Ended({"command": f"python -m sweep.run storage=/{'folder/' * 40}"}, pictures)
    totals = [ArmTotals(arm, 10, 8, 2, 0, 0.5) for arm in ARMS]
    write_report(folder, records, ARMS, GOALS, "val/auroc", 0.03, totals, "", ended)
    return folder.report


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_nothing_is_fetched(browser: Browser, report: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    assert page.evaluate(f"{beyond}.map(e => e.outerHTML.slice(0, 80))") == []
    assert page.locator('td[data-name="arm"]').count() > 6 and page.evaluate(BROKEN) == 0
    assert messages == [] and [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    first = page.locator("h2").first
    assert first.inner_text() == "The answer" and first.bounding_box()["y"] < 300  # type: ignore[index]
    assert "no trial is above what is reached without looking at the image" in page.locator("ul.answer").inner_text()
    assert page.locator("thead").first.is_visible() == (width == 1280), "a phone shows rows as cards"
    assert page.locator("svg").count() > 20 and page.locator("dl.bars").count() == 2 * len(ARMS)
    page.close()


def test_the_report_prints_on_a4(browser: Browser, report: Path, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 688, "height": 1000})  # the width of A4 without its margins
    page.emulate_media(media="print")
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 688 and page.evaluate(BROKEN) == 0
    assert page.locator("thead").first.is_visible(), "paper shows tables as tables"
    content = page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert content.startswith(b"%PDF") and 3 < content.count(b"/Type /Page\n") < 60
    page.close()


def test_the_report_is_small(report: Path) -> None:
    assert report.stat().st_size < 2_000_000
