"""A sweep whose samplers learn from another sweep before it begins, without adopting its trials."""

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
from tests.sweep.fake import play
from tests.sweep.fake_sweep import FakeStore
from tests.sweep.swept import GOALS, Killed, dies, drawn, from_lr, numbers, refused, swept, untracked

__all__ = ["untracked"]  # a fixture of every test here
NONE = "arms.tabular=false"


def seen(search: Search, arm: str = "none") -> list[FrozenTrial]:
    """Returns the trials that an arm's sampler knows."""
    trials: list[FrozenTrial] = search.state.samplers.by_arm[arm].study.trials
    return trials


def stopping(search: Search) -> None:
    """Runs all trials, and stops every other one half-way."""
    for index in range(search.space.search.trials):
        play(search, str(index), search.suggest(str(index)), epochs=4 - 2 * (index % 2))


# --- what the samplers know, and what it changes ---


def test_the_samplers_know_results_of_another_sweep_that_are_no_trials_here(tmp_path: Path) -> None:
    other, _ = swept(tmp_path, "name=breast", "trials=8")
    search, text = swept(tmp_path, "trials=4", "warm_start=breast")
    assert "warm start: 8 of 8 results of breast fit this space (none 4, tabular 4)" in text
    assert len(search.records()) == 4 and numbers(tmp_path / "runs" / "fake") == [0, 1, 2, 3]
    assert search.state.num_started == 4 and search.state.ledger.total == 8.0
    for arm in ("none", "tabular"):
        known = seen(search, arm)[:4]
        records = [record for record in other.records() if record.arm == arm]
        assert [trial.values for trial in known] == [list(record.values(other.goals)) for record in records]
        lr = f"{arm}/optimizer.lr"
        assert [trial.params[lr] for trial in known] == [record.sampled[lr] for record in records]
    # With the same seed the design continues here where it ended there, so its first trials do not run again.
    assert not [record for record in search.records() if record.sampled in [known.sampled for known in other.records()]]


def test_the_sampler_uses_the_other_sweeps_results(tmp_path: Path) -> None:
    swept(tmp_path, "name=breast", "trials=25", NONE, "search.sampler=nsga2")
    words = ("trials=1", NONE, "search.sampler=nsga2")
    cold, _ = swept(tmp_path, *words, "name=cold")
    warm, _ = swept(tmp_path, *words, "name=warm", "warm_start=breast")
    assert cold.records()[0].sampled != warm.records()[0].sampled
    generation = "NSGAIISampler:generation"
    assert [trial.system_attrs[generation] for trial in seen(warm)] == [0] * 25 + [1], "a child of those results"
    assert seen(cold)[0].system_attrs[generation] == 0


def test_a_stopped_trial_counts_with_the_values_that_its_sampler_learned(tmp_path: Path) -> None:
    other, _ = swept(tmp_path, "name=breast", "trials=4", NONE, play=stopping)
    search, text = swept(tmp_path, "trials=1", NONE, "warm_start=breast")
    assert "4 of 4 results" in text
    learned = other.state.studies.learned
    records = other.records()
    expected = [
        list(record.values(other.goals) if record.state == "complete" else learned(record.number) or ())
        for record in records
    ]
    assert [trial.values for trial in seen(search)[:4]] == expected
    assert {record.state for record in records} > {"pruned"}


def test_a_configuration_counts_with_its_mean_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "metrics_of", lambda config, epoch: dict.fromkeys(GOALS, 0.1 * config.seed))
    swept(tmp_path, "name=breast", "trials=1", NONE, "search.repeats=3")
    search, text = swept(tmp_path, "trials=1", NONE, "warm_start=breast")
    assert "1 of 1 results" in text
    assert seen(search)[0].values == pytest.approx([0.1, 0.1]), "of seeds 0, 1 and 2"


def test_only_results_that_the_space_holds_and_with_all_goals_count(tmp_path: Path) -> None:
    swept(tmp_path, "name=breast", "trials=8")
    lrs = drawn(tmp_path / "runs" / "breast")
    low = sorted(lrs.values())[3]
    fitting = [number for number, lr in lrs.items() if lr >= low]
    search, text = swept(tmp_path, "name=narrow", "trials=1", NONE, from_lr(low), "warm_start=breast")
    own = sum(number in fitting for number in (0, 2, 4, 6))
    assert f"warm start: {own} of 8 results of breast fit this space (none {own})" in text and 0 < own < 4
    assert len(seen(search)) == own + 1

    # An arm that only the other sweep has, a leaf that holds whole numbers here, and a leaf that was fixed there.
    whole = "arms.tabular.objectives.soft.logits.params.temperature={int: [1, 10]}"
    _, text = swept(tmp_path, "name=whole", "trials=1", whole, "warm_start=breast", play=lambda search: None)
    assert "of 8 results" in text and "none 4" in text and "tabular 4" not in text
    freed = "optimizer.batch_size={choice: [16, 32]}"
    _, text = swept(tmp_path, "name=freed", "trials=1", freed, "warm_start=breast", play=lambda search: None)
    assert "8 of 8 results" in text

    swept(tmp_path, "name=blind", "trials=4", NONE, "search.maximize=[val/auroc]", play=stopping)
    _, text = swept(tmp_path, "name=both", "trials=1", NONE, "warm_start=blind", play=lambda search: None)
    assert "2 of 4 results of blind" in text, "the values learned from stopped trials lack a goal"
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


def test_an_extended_sweep_counts_with_its_newest_generation(tmp_path: Path) -> None:
    swept(tmp_path, "name=breast", "trials=6")
    low = sorted(drawn(tmp_path / "runs" / "breast").values())[4]
    swept(tmp_path, "name=breast", "trials=2", from_lr(low), "extend=true")
    _, text = swept(tmp_path, "trials=1", NONE, "warm_start=breast", play=lambda search: None)
    assert "of 2 results of breast" in text


# --- continue_command ---


def test_a_restart_continues_alike_after_the_other_sweep_is_deleted(tmp_path: Path) -> None:
    swept(tmp_path, "name=breast", "trials=16", NONE)
    words = (NONE, "warm_start=breast")
    uninterrupted, _ = swept(tmp_path, *words, "name=whole", "trials=14")
    swept(tmp_path, *words, "name=cut", "trials=12")
    shutil.rmtree(tmp_path / "runs" / "breast")
    cut, text = swept(tmp_path, *words, "name=cut", "trials=14")
    assert "16 of 16 results of breast" in text
    assert [record.sampled for record in cut.records()] == [record.sampled for record in uninterrupted.records()]


def test_another_warm_start_needs_an_extension(tmp_path: Path) -> None:
    for name in ("breast", "lung"):
        swept(tmp_path, f"name={name}", f"trials={2 if name == 'lung' else 4}")
    swept(tmp_path, "trials=2", "warm_start=breast")
    text = refused(tmp_path, "trials=2", "warm_start=lung")
    assert "search.warm_start: was 'breast', is now 'lung'" in text and "extend=true" in text
    search, text = swept(tmp_path, "trials=2", "warm_start=lung", "extend=true")
    assert "2 of 2 results of lung" in text and "extended: 2 of 2" in text
    assert len(seen(search)) == 2
    assert "search.warm_start: was 'lung', is now None" in refused(tmp_path, "trials=2")


def test_a_path_names_the_same_sweep_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(tmp_path, "name=breast", "trials=2")
    monkeypatch.chdir(tmp_path)
    _, text = swept(tmp_path, "trials=2", "warm_start=runs/breast")
    assert "2 of 2 results of breast" in text
    monkeypatch.chdir(tmp_path / "runs")
    _, text = swept(tmp_path, "trials=2", "warm_start=./breast")
    assert "2 of 2 results of breast" in text


# --- the other sweep ---


def test_a_running_sweep_is_read_without_a_change_to_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "breast"
    with pytest.raises(Killed):
        swept(tmp_path, "name=breast", "trials=8", play=dies)
    with (folder / "journal.log").open("ab") as file:
        file.write(b'{"op_code":4,"wor')  # the driver is writing this line
    os.symlink(folder / "journal.log", folder / "journal.log.lock")

    def content() -> dict[Path, tuple[bytes, int]]:
        return {path: (path.read_bytes(), path.lstat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}

    with hold_driver_lock(SweepFolder(folder)):
        before = content()
        _, text = swept(tmp_path, "trials=1", NONE, "warm_start=breast")
        assert content() == before
    assert "of 6 results of breast fit" in text


# --- refusals ---


def test_refused_warm_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(tmp_path, "name=breast", "trials=2")
    swept(tmp_path, "name=empty", "trials=2", play=lambda search: None)
    problems = {
        "braest": "did you mean 'breast'",
        f"{tmp_path}/nowhere": f"there is no sweep in {tmp_path}/nowhere",
        "fake": "is this sweep itself",
        str(tmp_path / "runs" / "fake"): "is this sweep itself",
        "empty": "empty has no finished results yet",
    }
    for word, problem in problems.items():
        with pytest.raises(ConfigError) as error:
            swept(tmp_path, "trials=1", f"warm_start={word}")
        (mistake,) = error.value.mistakes
        assert mistake.path == "search.warm_start" and problem in mistake.problem
        assert not (tmp_path / "runs" / "fake").exists(), "a refused start leaves no folder"
    monkeypatch.setattr(FakeStore, "fingerprint", "other images")
    with pytest.raises(ConfigError, match="breast was run on another cohort"):
        swept(tmp_path, "trials=1", "warm_start=breast")
    monkeypatch.undo()
    journal = tmp_path / "runs" / "breast" / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(b"".join(whole.splitlines(keepends=True)[:9]))  # an older copy that was put back
    with pytest.raises(ConfigError, match=f"{journal} has lost trials: it does not know trials 1, which are in"):
        swept(tmp_path, "trials=1", "warm_start=breast")
    journal.unlink()
    with pytest.raises(ConfigError, match=f"{journal} is missing"):
        swept(tmp_path, "trials=1", "warm_start=breast")


def test_results_of_shorter_trainings_do_not_count(tmp_path: Path) -> None:
    swept(tmp_path, "name=short", "trials=4", "epochs=2")
    search, text = swept(tmp_path, "trials=2", "warm_start=short")
    assert "warm start: 0 of 4 results of short fit this space" in text
    assert not [trial for arm in ("none", "tabular") for trial in seen(search, arm)[2:]]
