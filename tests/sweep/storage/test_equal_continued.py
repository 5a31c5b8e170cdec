"""How a sweep continues whose folder does not say what its arms share, because it began before `search.equal`."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import yaml

from sweep import run
from sweep.search.searcher import Search
from sweep.storage.layout import SweepFolder
from tests.sweep.fake import play, play_all
from tests.sweep.swept import refused, swept, untracked

__all__ = ["untracked"]  # a fixture


def dear(search: Search, trials: int) -> None:
    """Plays trials of which those of the second arm cost ten times as much."""
    for index in range(trials):
        job = search.suggest(str(index))
        play(search, str(index), job, seconds=10.0 if job["arm"] == "tabular" else 1.0)


def begin_without_the_key(tmp_path: Path, *overrides: str) -> SweepFolder:
    swept(tmp_path, "trials=8", "search.equal=hours", *overrides, play=partial(dear, trials=8))
    folder = SweepFolder(tmp_path / "runs" / "fake")
    content = folder.read_plan()
    del content["leaves"]["search.equal"]
    folder.write_plan(content)
    space = folder.read_space()
    del space["search"]["equal"]
    folder.space.write_text(yaml.safe_dump(space))
    return folder


def arms(search: Search) -> Counter[str]:
    return Counter(record.arm for record in search.records())


def test_a_sweep_without_the_key_keeps_sharing_device_hours(tmp_path: Path) -> None:
    folder = begin_without_the_key(tmp_path)
    for trials in (10, 12):  # the second driver finds a folder that this version of the program has written
        search, text = swept(tmp_path, f"trials={trials}", play=partial(dear, trials=2))
        assert search.state.ledger.equal == "hours" and "extended" not in text
        assert "search.equal" not in folder.read_plan()["leaves"]
    assert arms(search) == {"none": 11, "tabular": 1}, "44 device-seconds against 40"
    search, _ = swept(tmp_path, "trials=14", "search.equal=hours", play=partial(dear, trials=2))
    assert arms(search) == {"none": 12, "tabular": 2}, "naming what it does already is no change"


def test_a_sweep_without_the_key_changes_its_rule_only_when_it_is_extended(tmp_path: Path) -> None:
    begin_without_the_key(tmp_path)
    text = refused(tmp_path, "trials=12", "search.equal=trials")
    assert "search.equal: was absent, is now 'trials'" in text
    search, text = swept(tmp_path, "trials=12", "search.equal=trials", "extend=true")
    assert "extended: 8 of 8 earlier trials" in text
    assert arms(search) == {"none": 7, "tabular": 5}, "the arm that is behind gets all trials until it has caught up"
    assert refused(tmp_path, "trials=12", "search.equal=hours").count("search.equal: was 'trials', is now 'hours'") == 1
    search, _ = swept(tmp_path, "trials=15", play=play_all)
    assert arms(search) == {"none": 8, "tabular": 7}


def test_the_plan_of_a_sweep_without_the_key_shows_what_would_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_without_the_key(tmp_path)
    shown: list[str] = []
    monkeypatch.setattr("sweep.driver.show_plan", lambda space, *others: shown.append(space.search.equal))
    words = [f"space={tmp_path / 'fake.yaml'}", f"storage={tmp_path / 'runs'}", "plan=true"]
    run.main(words)
    run.main([*words, "name=new"])
    assert shown == ["hours", "trials"]


def test_a_sweep_without_the_key_keeps_its_sampler(tmp_path: Path) -> None:
    """Such a sweep began when the default was another sampler."""
    folder = begin_without_the_key(tmp_path, "search.sampler=tpe")
    for trials in (10, 12):
        search, text = swept(tmp_path, f"trials={trials}", play=partial(dear, trials=2))
        assert search.space.search.sampler == "tpe" and "extended" not in text
        assert folder.read_plan()["leaves"]["search.sampler"] == "tpe"
    assert "search.sampler: was 'tpe', is now 'gp'" in refused(tmp_path, "trials=14", "search.sampler=gp")
