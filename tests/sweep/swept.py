"""Runs drivers of one sweep one after another, without Ray or MLflow, and reads what they leave."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from mmpkd.config import TrialConfig
from mmpkd.types import UserError
from sweep import driver
from sweep.driver import SweepFunctions
from sweep.options import read_run_options
from sweep.search.searcher import Search
from sweep.space.space import load_space
from sweep.storage.events import Event, Spool, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.tracking.mlflow import Tracker
from tests.sweep.fake import SPACE, play, play_all, report
from tests.sweep.fake_sweep import FAKE

GOALS = ("val/auroc", "val/pointing")
Kind = TypeVar("Kind", bound=Event)


class Killed(BaseException):
    """Stands for the kill of a driver between two lines."""


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow takes seconds to import, and the spool holds what it would receive; a report takes half of each sweep."""
    monkeypatch.setattr("sweep.reports.results.write_report", lambda *args: None)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(Tracker, "start", lambda self: None)
    monkeypatch.setattr(Tracker, "close", lambda self, seconds: 0)


def swept(
    tmp_path: Path, *words: str, play: Callable[[Search], Any] | None = play_all, functions: SweepFunctions = FAKE
) -> tuple[Search, str]:
    """Runs one driver; returns its search and the text of its console. Where `play` is None, Ray runs the trials."""
    (tmp_path / "fake.yaml").write_text(SPACE)
    options, mistakes = read_run_options([f"space={tmp_path / 'fake.yaml'}", f"storage={tmp_path / 'runs'}", *words])
    space, space_mistakes = load_space(options.space, options.overrides)
    assert space is not None and not mistakes and not space_mistakes
    example = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}, "epochs": 4})
    goals = space.search.maximize or GOALS
    planned: Any = SimpleNamespace(goals=goals, facts=None, example=example, as_json=lambda: {"goals": list(goals)})
    searches: list[Search] = []

    def without_ray(search: Search, *rest: Any) -> None:
        search.max_running, search._wait = 3, True
        assert play
        play(search)

    def finish(search: Search, *rest: Any) -> int:
        searches.append(search)
        return finishing(search, *rest)

    console, finishing = Console(file=io.StringIO(), width=200, markup=False), driver.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "run_trials", without_ray if play else driver.run_trials)
        patch.setattr(driver, "finish", finish)
        driver.run_sweep(space, planned, options, console, functions)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return searches[0], text


def dies(search: Search) -> None:
    """Plays six trials to their end and one epoch of two more, and then kills the driver."""
    for index in range(6):
        play(search, str(index), search.suggest(str(index)))
    for index in (6, 7):
        search.on_trial_result(str(index), {"reports": [report(search.suggest(str(index)), 1)]})
    raise Killed


def refused(tmp_path: Path, *words: str) -> str:
    """Returns the message with which a start is refused, and checks that it changes no file."""

    def content() -> dict[Path, bytes]:
        there = (path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.name != "driver.lock")
        return {path: path.read_bytes() for path in there}

    before = content()
    with pytest.raises(UserError) as error:
        swept(tmp_path, *words)
    assert content() == before
    return str(error.value)


def events(folder: Path, kind: type[Kind]) -> list[Kind]:
    """Returns the events of one kind in a sweep's folder."""
    return [event for _, event in Spool(SweepFolder(folder)).read() if isinstance(event, kind)]


def drawn(folder: Path, leaf: str = "optimizer.lr") -> dict[int, float]:
    """Returns the drawn value of a leaf by trial number, of every trial that was ever started."""
    return {event.number: event.params[leaf] for event in events(folder, TrialStarted)}


def from_lr(low: float) -> str:
    return f"optimizer.lr={{log_uniform: [{low!r}, 1e-1]}}"


def further(folder: Path, low: float) -> float:
    """Returns the third lowest lr that is at least `low`: a bound that excludes two more trials."""
    return sorted(lr for lr in drawn(folder).values() if lr >= low)[2]


def states(folder: Path) -> dict[str, Counter[str]]:
    """Returns how many trials of each state every study in the storage has."""
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return {study.study_name: Counter(trial.state.name for trial in study.trials) for study in studies}


def numbers(folder: Path) -> list[int]:
    trial_numbers: list[int] = pd.read_parquet(folder / "trials.parquet")["number"].tolist()
    return trial_numbers


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The storage that a killed driver leaves, and an lr between those of its two running trials."""
    tmp_path = tmp_path_factory.mktemp("dead")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Tracker, "start", lambda self: None)
        swept(tmp_path, "trials=8", play=dies)
    lrs = drawn(tmp_path / "runs" / "fake")
    return tmp_path / "runs", 0.99 * max(lrs[6], lrs[7])


@pytest.fixture
def dead(left: tuple[Path, float], tmp_path: Path) -> tuple[Path, float]:
    """A copy of the killed driver's sweep, in which a test continues."""
    shutil.copytree(left[0], tmp_path / "runs")
    return tmp_path / "runs" / "fake", left[1]
