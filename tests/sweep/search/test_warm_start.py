"""A sweep that begins with what another has learned, without taking its trials for its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial

from mmpkd.types import ConfigError
from sweep.search.searcher import Search
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import hold_driver_lock
from tests.sweep import fake
from tests.sweep.fake import FakeWorker, play
from tests.sweep.swept import GOALS, Killed, dies, drawn, from_lr, numbers, refused, swept, untracked

__all__ = ["untracked"]  # a fixture of every test here
NONE = "arms.tabular=false"


def seen(search: Search, arm: str = "none") -> list[FrozenTrial]:
    """What an arm's sampler knows."""
    trials: list[FrozenTrial] = search.state.samplers.by_arm[arm].study.trials
    return trials


def stopping(search: Search) -> None:
    """Every other trial is stopped half-way."""
    for index in range(search.space.search.trials):
        play(search, str(index), search.suggest(str(index)), epochs=4 - 2 * (index % 2))


# --- what is known, and what it changes ---


def test_anothers_results_are_known_and_are_no_trials(tmp_path: Path) -> None:
    other, _ = swept(tmp_path, "name=breast", "trials=8")
    search, text = swept(tmp_path, "trials=4", "warm_start=breast")
    assert "warm start: 8 of 8 results of breast fit this space (none 4, tabular 4)" in text
    assert len(search.records()) == 4 and numbers(tmp_path / "runs" / "fake") == [0, 1, 2, 3]
    assert search.state.num_started == 4 and search.state.ledger.total == 8.0
    for arm in ("none", "tabular"):
        known = seen(search, arm)[:4]
        theirs = [one for one in other.records() if one.arm == arm]
        assert [one.values for one in known] == [list(one.values(other.goals)) for one in theirs]
        assert [one.params[f"{arm}/optimizer.lr"] for one in known] == [
            one.sampled[f"{arm}/optimizer.lr"] for one in theirs
        ]
    # With the same seed the even sequence goes on here where theirs ended, so their first trials are not run again.
    assert not [one for one in search.records() if one.sampled in [known.sampled for known in other.records()]]


def test_the_sampler_goes_by_them(tmp_path: Path) -> None:
    swept(tmp_path, "name=breast", "trials=25", NONE, "search.sampler=nsga2")
    words = ("trials=1", NONE, "search.sampler=nsga2")
    cold, _ = swept(tmp_path, *words, "name=cold")
    warm, _ = swept(tmp_path, *words, "name=warm", "warm_start=breast")
    assert cold.records()[0].sampled != warm.records()[0].sampled
    generation = "NSGAIISampler:generation"
    assert [one.system_attrs[generation] for one in seen(warm)] == [0] * 25 + [1], "their child"
    assert seen(cold)[0].system_attrs[generation] == 0


def test_a_result_is_the_mean_over_seeds_or_what_a_sampler_was_told(tmp_path: Path) -> None:
    other, _ = swept(tmp_path, "name=breast", "trials=4", NONE, play=stopping)
    search, text = swept(tmp_path, "trials=1", NONE, "warm_start=breast")
    assert "4 of 4 results" in text
    learned = other.state.studies.learned
    expected = [
        list(one.values(other.goals) if one.state == "complete" else learned(one.number) or ())
        for one in other.records()
    ]
    assert [one.values for one in seen(search)[:4]] == expected and {one.state for one in other.records()} > {"pruned"}


def test_of_several_seeds_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "metrics_of", lambda config, epoch: dict.fromkeys(GOALS, 0.1 * config.seed))
    swept(tmp_path, "name=breast", "trials=1", NONE, "search.repeats=3")
    search, text = swept(tmp_path, "trials=1", NONE, "warm_start=breast")
    assert "1 of 1 results" in text
    assert seen(search)[0].values == pytest.approx([0.1, 0.1]), "of seeds 0, 1 and 2"


def test_only_what_this_space_holds_and_this_sweep_scores(tmp_path: Path) -> None:
    swept(tmp_path, "name=breast", "trials=8")
    lrs = drawn(tmp_path / "runs" / "breast")
    low = sorted(lrs.values())[3]
    fitting = [number for number, lr in lrs.items() if lr >= low]
    search, text = swept(tmp_path, "name=narrow", "trials=1", NONE, from_lr(low), "warm_start=breast")
    own = sum(number in fitting for number in (0, 2, 4, 6))
    assert f"warm start: {own} of 8 results of breast fit this space (none {own})" in text and 0 < own < 4
    assert len(seen(search)) == own + 1

    # An arm that only the other has, a leaf that is whole here, a leaf that was fixed there.
    whole = "arms.tabular.objectives.soft.logits.params.temperature={int: [1, 10]}"
    _, text = swept(tmp_path, "name=whole", "trials=1", whole, "warm_start=breast", play=lambda search: None)
    assert "of 8 results" in text and "none 4" in text and "tabular 4" not in text
    freed = "optimizer.batch_size={choice: [16, 32]}"
    _, text = swept(tmp_path, "name=freed", "trials=1", freed, "warm_start=breast", play=lambda search: None)
    assert "8 of 8 results" in text

    swept(tmp_path, "name=blind", "trials=4", NONE, "search.maximize=[val/auroc]", play=stopping)
    _, text = swept(tmp_path, "name=both", "trials=1", NONE, "warm_start=blind", play=lambda search: None)
    assert "2 of 4 results of blind" in text, "what was told of stopped trials lacks a goal"
    _, text = swept(
        tmp_path,
        "name=one",
        "trials=1",
        NONE,
        "search.maximize=[val/pointing]",
        "search.select=val/pointing",
        "warm_start=breast",
        play=lambda search: None,
    )
    assert "4 of 8 results" in text


def test_of_an_extended_sweep_its_newest_generation(tmp_path: Path) -> None:
    swept(tmp_path, "name=breast", "trials=6")
    low = sorted(drawn(tmp_path / "runs" / "breast").values())[4]
    swept(tmp_path, "name=breast", "trials=2", from_lr(low), "extend=true")
    _, text = swept(tmp_path, "trials=1", NONE, "warm_start=breast", play=lambda search: None)
    assert "of 2 results of breast" in text


# --- continue_command ---


def test_a_restart_goes_on_alike_though_the_other_has_gone(tmp_path: Path) -> None:
    swept(tmp_path, "name=breast", "trials=16", NONE)
    words = (NONE, "warm_start=breast")
    whole, _ = swept(tmp_path, *words, "name=whole", "trials=14")
    swept(tmp_path, *words, "name=cut", "trials=12")
    shutil.rmtree(tmp_path / "runs" / "breast")
    cut, text = swept(tmp_path, *words, "name=cut", "trials=14")
    assert "16 of 16 results of breast" in text
    assert [one.sampled for one in cut.records()] == [one.sampled for one in whole.records()]


def test_it_changes_with_an_extension_only(tmp_path: Path) -> None:
    for name in ("breast", "lung"):
        swept(tmp_path, f"name={name}", f"trials={2 if name == 'lung' else 4}")
    swept(tmp_path, "trials=2", "warm_start=breast")
    text = refused(tmp_path, "trials=2", "warm_start=lung")
    assert "search.warm_start: was 'breast', is now 'lung'" in text and "extend=true" in text
    search, text = swept(tmp_path, "trials=2", "warm_start=lung", "extend=true")
    assert "2 of 2 results of lung" in text and "extended: 2 of 2" in text
    assert len(seen(search)) == 2
    assert "search.warm_start: was 'lung', is now None" in refused(tmp_path, "trials=2")


def test_a_path_says_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(tmp_path, "name=breast", "trials=2")
    monkeypatch.chdir(tmp_path)
    _, text = swept(tmp_path, "trials=2", "warm_start=runs/breast")
    assert "2 of 2 results of breast" in text
    monkeypatch.chdir(tmp_path / "runs")
    _, text = swept(tmp_path, "trials=2", "warm_start=./breast")
    assert "2 of 2 results of breast" in text


# --- the other ---


def test_a_running_sweep_is_read_and_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "breast"
    with pytest.raises(Killed):
        swept(tmp_path, "name=breast", "trials=8", play=dies)
    with (folder / "journal.log").open("ab") as file:
        file.write(b'{"op_code":4,"wor')  # it is being written to
    os.symlink(folder / "journal.log", folder / "journal.log.lock")

    def content() -> dict[Path, tuple[bytes, int]]:
        return {path: (path.read_bytes(), path.lstat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}

    with hold_driver_lock(SweepFolder(folder)):
        before = content()
        _, text = swept(tmp_path, "trials=1", NONE, "warm_start=breast")
        assert content() == before
    assert "of 6 results of breast fit" in text


# --- refusals ---


def test_what_is_no_sweep_to_begin_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(tmp_path, "name=breast", "trials=2")
    swept(tmp_path, "name=empty", "trials=2", play=lambda search: None)
    said = {
        "braest": "did you mean 'breast'",
        f"{tmp_path}/nowhere": f"there is no sweep in {tmp_path}/nowhere",
        "fake": "is this sweep itself",
        str(tmp_path / "runs" / "fake"): "is this sweep itself",
        "empty": "empty has no finished results yet",
    }
    for word, why in said.items():
        with pytest.raises(ConfigError) as error:
            swept(tmp_path, "trials=1", f"warm_start={word}")
        (mistake,) = error.value.mistakes
        assert mistake.path == "search.warm_start" and why in mistake.problem
        assert not (tmp_path / "runs" / "fake").exists(), "nothing is left of such a start"
    monkeypatch.setattr(FakeWorker, "fingerprint", "other images")
    with pytest.raises(ConfigError, match="breast was run on another cohort"):
        swept(tmp_path, "trials=1", "warm_start=breast")
    monkeypatch.undo()
    journal = tmp_path / "runs" / "breast" / "journal.log"
    journal.unlink()
    with pytest.raises(ConfigError, match=f"{journal} is missing"):
        swept(tmp_path, "trials=1", "warm_start=breast")


def test_results_of_shorter_trainings_say_nothing_here(tmp_path: Path) -> None:
    swept(tmp_path, "name=short", "trials=4", "epochs=2")
    search, text = swept(tmp_path, "trials=2", "warm_start=short")
    assert "warm start: 0 of 4 results of short fit this space" in text
    assert not [one for arm in ("none", "tabular") for one in seen(search, arm)[2:]]
